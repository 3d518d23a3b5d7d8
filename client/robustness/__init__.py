"""Adversarial robustness of a served model, measured through its endpoint.

In scope: black-box attacks on the uint8 image; the harness rounds, clips, counts queries and judges.
Not in scope: attacks that need gradients of the served model. Read `base.py` first, then `harness.py`.
"""

from temper.client.robustness.base import AttackConfig
from temper.client.robustness.harness import attack, attack_endpoint
from temper.client.robustness.result import AttackResult, Example

__all__ = ["AttackConfig", "AttackResult", "Example", "attack", "attack_endpoint"]
