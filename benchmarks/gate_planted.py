"""How often the gate ships what it should not, and what it should: variants with a true drop that is known.

A model answers images of 10 classes right at a known rate. Each variant is its answers with some of the right ones
flipped to wrong and some of the wrong ones to right, each at a known rate, so that its true drop is known and lies
between 0 and 3 times the limit. It goes through the gate as it is: once with the images there are, and, if these
are not enough, once more with as many new ones as the gate asked for. Nothing is served.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import write_results
from temper.gate.config import GateConfig
from temper.gate.decide import decide
from temper.gate.evidence import Answers, Evidence
from temper.gate.rules.accuracy import AccuracyRule, WorstClassRule
from temper.gate.rules.flips import FlipsRule
from temper.report.verdict import Answer

NUM_CLASSES = 10
LEVELS = {0.0: 60, 0.25: 20, 0.5: 20, 1.0: 20, 1.25: 20, 1.5: 20, 2.0: 20, 3.0: 20}
"""True drops, as multiples of the limit, and how many of 200 variants have each; bad are those of 1 or more."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A variant whose truth is known."""

    level: float
    """Its drop over the limit."""
    losses: npt.NDArray[np.float64]
    """[classes], share of all images of a class that only the reference gets right."""
    gains: float
    """Share of all images that only the variant gets right."""

    def draw(self, n: int, accuracy: float, rng: np.random.Generator) -> Evidence:
        """Answers to n new images."""
        labels = np.arange(n) % NUM_CLASSES
        before, luck = rng.random(n) < accuracy, rng.random(n)
        lost, won = luck < self.losses[labels] / accuracy, luck < self.gains / (1 - accuracy)
        after = np.where(before, ~lost, won)
        first, second = (
            Answers(classes=np.where(hits, labels, (labels + 1) % NUM_CLASSES)) for hits in (before, after)
        )
        names = [str(number) for number in range(NUM_CLASSES)]
        return Evidence(class_names=names, labels=labels, reference=first, candidate=second)


def everywhere(drop: float, gains: float) -> npt.NDArray[np.float64]:
    """Losses that are `drop` more than the gains, in all classes alike."""
    return np.full(NUM_CLASSES, gains + drop)


def in_one_class(drop: float, gains: float) -> npt.NDArray[np.float64]:
    """Losses of which one class alone has more than the gains."""
    return np.where(np.arange(NUM_CLASSES) == 3, gains + drop, gains)


Seen = tuple[float, Answer, Answer, int]
"""The level, and what `judge` returns."""
Losses = Callable[[float, float], npt.NDArray[np.float64]]
GATES: dict[str, tuple[GateConfig, float, Losses]] = {
    "accuracy, 0.5 points": (GateConfig(accuracy=AccuracyRule(max_drop=0.5)), 0.005, everywhere),
    "accuracy, 1 point": (GateConfig(accuracy=AccuracyRule(max_drop=1.0)), 0.01, everywhere),
    "worst class, 3 points": (GateConfig(worst_class=WorstClassRule(max_drop=3.0)), 0.03, in_one_class),
    "accuracy, 0.5 points; worst class, 3 points; flips, 2 %": (
        GateConfig(
            accuracy=AccuracyRule(max_drop=0.5),
            worst_class=WorstClassRule(max_drop=3.0),
            flips=FlipsRule(max=2.0),
        ),
        0.005,
        everywhere,
    ),
}
"""The gate, the limit that the levels are multiples of, and where the drop is."""


def main() -> None:
    """Plant, decide, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="in the first draw (default 1000)")
    parser.add_argument("--accuracy", type=float, default=0.93, help="of the reference (default 0.93)")
    parser.add_argument("--repeats", type=int, default=10, help="times the 200 variants (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = {
        name: measure(*gate, options.images, options.accuracy, options.repeats, options.seed)
        for name, gate in GATES.items()
    }
    for name, result in results.items():
        print(
            f"{name}: bad shipped {result['bad_shipped']:.1%}, good shipped {result['good_shipped']:.1%}, "
            f"of those for which more was asked {result['good_shipped_of_asked']:.1%}"
        )
        for row in result["levels"]:
            print("  " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    write_results("gate_planted", {"settings": vars(options), "measured": results})


def measure(
    config: GateConfig, limit: float, losses: Losses, images: int, accuracy: float, repeats: int, seed: int
) -> dict[str, Any]:
    """Send all variants through one gate.

    Returns:
        Shares that were shipped of the bad ones, of those without a drop, and of these where more images were
        asked for; in `levels` the shares of each answer, and the median number of images asked for.
    """
    rng = np.random.default_rng(seed)
    seen: list[Seen] = []
    for level, count in LEVELS.items():
        for _ in range(repeats * count):
            gains = float(rng.uniform(0.001, 0.01))  # 0.2 to 2 % of the images disagree without a drop
            planted = Planted(level=level, losses=losses(level * limit, gains), gains=gains)
            seen.append((level, *judge(config, planted, images, accuracy, rng)))
    good = [one for one in seen if one[0] == 0]
    return {
        "bad_shipped": _shipped([one for one in seen if one[0] >= 1]),
        "good_shipped": _shipped(good),
        "good_shipped_of_asked": _shipped([one for one in good if one[3]]),
        "levels": [_row(level, [one for one in seen if one[0] == level]) for level in LEVELS],
    }


def _shipped(seen: list[Seen]) -> float:
    return float(np.mean([one[1] == "SHIP" for one in seen]))


def judge(
    config: GateConfig, planted: Planted, images: int, accuracy: float, rng: np.random.Generator
) -> tuple[Answer, Answer, int]:
    """The last answer, the first one, and the images that were asked for in between, 0 for none."""
    first, findings, _ = decide(config, planted.draw(images, accuracy, rng))
    needed = max((finding.needed or 0 for finding in findings), default=0)
    if first != "NOT ENOUGH DATA" or not needed:
        return first, first, 0
    return decide(config, planted.draw(needed, accuracy, rng))[0], first, needed


def _row(level: float, seen: list[Seen]) -> dict[str, float]:
    last, first = (Counter(one[place] for one in seen) for place in (1, 2))
    asked = [one[3] for one in seen if one[3]]
    return {
        "drop_over_limit": level,
        "num": len(seen),
        "shipped": last["SHIP"] / len(seen),
        "held": last["HOLD"] / len(seen),
        "undecided": last["NOT ENOUGH DATA"] / len(seen),
        "shipped_at_once": first["SHIP"] / len(seen),
        "asked": len(asked) / len(seen),
        "asked_images_median": float(np.median(asked)) if asked else 0.0,
    }


if __name__ == "__main__":
    main()
