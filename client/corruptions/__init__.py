"""Accuracy of a served model on corrupted images: noise, blur, weather and what cameras and files do to pixels.

In scope: the 15 kinds of ImageNet-C at 5 severities, through the endpoint, and the mean corruption error against
another variant. Not in scope: what an adversary does (`temper.client.robustness`). Read `config.py` first, then
`harness.py`; `library.py` is the only file that touches the library that corrupts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temper.lazy import lazy

if TYPE_CHECKING:
    from temper.client.corruptions.compare import (
        CorruptionComparison as CorruptionComparison,
        compare_corruptions as compare_corruptions,
    )
    from temper.client.corruptions.config import CorruptionsConfig as CorruptionsConfig
    from temper.client.corruptions.harness import (
        evaluate_corrupted as evaluate_corrupted,
        evaluate_corruptions as evaluate_corruptions,
    )
    from temper.client.corruptions.result import CorruptionResult as CorruptionResult

# Loaded when used: who reads a recipe wants the config alone, without gRPC.
_HOMES = {
    "CorruptionComparison": "temper.client.corruptions.compare",
    "compare_corruptions": "temper.client.corruptions.compare",
    "CorruptionsConfig": "temper.client.corruptions.config",
    "evaluate_corrupted": "temper.client.corruptions.harness",
    "evaluate_corruptions": "temper.client.corruptions.harness",
    "CorruptionResult": "temper.client.corruptions.result",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
