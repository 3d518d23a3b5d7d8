"""Adversarial robustness of a served model, measured through its endpoint.

In scope: black-box attacks on the uint8 image, by scores or by the answered class alone; the harness rounds,
clips, counts queries and judges. Weak spots: which class is taken for which, and what one model alone misjudges.
Not in scope: attacks that need gradients of the served model. Read `base.py` first, then `harness.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temper.lazy import lazy

if TYPE_CHECKING:
    from temper.client.robustness.base import AttackConfig as AttackConfig
    from temper.client.robustness.harness import attack as attack, attack_endpoint as attack_endpoint
    from temper.client.robustness.result import AttackResult as AttackResult, Example as Example

# Loaded when used: who reads a recipe wants the configs alone, without gRPC.
_HOMES = {
    "AttackConfig": "temper.client.robustness.base",
    "attack": "temper.client.robustness.harness",
    "attack_endpoint": "temper.client.robustness.harness",
    "AttackResult": "temper.client.robustness.result",
    "Example": "temper.client.robustness.result",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
