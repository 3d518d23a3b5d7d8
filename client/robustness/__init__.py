"""Adversarial robustness of a served model, measured through its endpoint.

In scope: black-box attacks on the uint8 image; the harness rounds, clips, counts queries and judges.
Not in scope: attacks that need gradients of the served model. Read `base.py` first, then `harness.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from temper.client.robustness.base import AttackConfig as AttackConfig
    from temper.client.robustness.harness import attack as attack
    from temper.client.robustness.harness import attack_endpoint as attack_endpoint
    from temper.client.robustness.result import AttackResult as AttackResult
    from temper.client.robustness.result import Example as Example

# Loaded when used: who reads a recipe wants the configs alone, without gRPC.
_HOMES = {
    "AttackConfig": "temper.client.robustness.base",
    "attack": "temper.client.robustness.harness",
    "attack_endpoint": "temper.client.robustness.harness",
    "AttackResult": "temper.client.robustness.result",
    "Example": "temper.client.robustness.result",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'temper.client.robustness' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
