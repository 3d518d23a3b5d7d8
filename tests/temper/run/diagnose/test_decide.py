"""Which causes are named: served scores are made with a mistake in PyTorch, and nothing says which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from temper.run.diagnose.decide import Verdict, judge
from temper.run.diagnose.hypotheses import Hypothesis, Known, causes
from temper.run.diagnose.network import Networks
from temper.run.diagnose.pipeline import Picture, Pipeline, Precision, finish, fit, flat_pictures, normalise
from temper.run.diagnose.search import Bench

from .conftest import NUM_CLASSES, RIGHT, pictures

PICTURES = pictures(16, seed=1)
KNOWN = Known(num_classes=NUM_CLASSES, weights=("a.pt", "b.pt"))
ALONE = Known(num_classes=NUM_CLASSES, weights=("a.pt",))
ROWS = causes(RIGHT, KNOWN)

pytestmark = pytest.mark.slow


def serve(networks: Networks, how: Pipeline, shown: list[Picture] = PICTURES) -> np.ndarray[Any, Any]:
    """The scores of a server with a pipeline of its own."""
    values = normalise(np.stack([fit(one, how) for one in shown]), how)
    return finish(networks.logits(values, how), how)


def verdict_of(
    networks: Networks,
    served: np.ndarray[Any, Any],
    right: Pipeline = RIGHT,
    *,
    known: Known = KNOWN,
    precision: Precision = "fp32",
    probe: Callable[[], Bench] | None = None,
    shown: list[Picture] = PICTURES,
    effort: float = 1.0,
) -> Verdict:
    return judge(
        Bench(shown, networks, served),
        right,
        known,
        sent=None,
        precision=precision,
        effort=effort,
        progress=lambda done, total: None,
        probe=probe,
    )


def test_the_right_pipeline_agrees(networks: Networks) -> None:
    verdict = verdict_of(networks, serve(networks, RIGHT))
    assert verdict.agrees and verdict.causes == () and verdict.before < 1e-6


@pytest.mark.parametrize("cause", ROWS, ids=lambda one: one.words[:60])
def test_every_row_of_the_table_is_found_again(networks: Networks, cause: Hypothesis) -> None:
    served = serve(networks, cause.apply(RIGHT))
    verdict = verdict_of(networks, served)
    assert not verdict.agrees
    assert [one.hypothesis.words for one in verdict.causes] == [cause.words]
    assert verdict.causes[0].share["low"] > 0.99
    assert all(verdict.causes[0].hypothesis.mends.values())


PAIRS: list[tuple[dict[str, Any], set[str]]] = [
    ({"colour": "bgr", "scale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}, {"colour", "mean and std"}),
    ({"colour": "bgr", "resize": (32, 32)}, {"colour", "size and crop"}),
    ({"output": "softmax", "colour": "bgr"}, {"output", "colour"}),
    ({"order": (3, 1, 2, 0, *range(4, 12)), "times": 2}, {"labels", "mean and std"}),
]


@pytest.mark.parametrize(("changes", "kinds"), PAIRS, ids=lambda one: "+".join(sorted(one)))
def test_two_causes_at_once_are_both_named(networks: Networks, changes: dict[str, Any], kinds: set[str]) -> None:
    verdict = verdict_of(networks, serve(networks, replace(RIGHT, **changes)))
    assert {one.hypothesis.kind for one in verdict.causes} == kinds
    assert verdict.left < 1e-3


def test_outputs_in_any_order_are_found_by_their_values(networks: Networks) -> None:
    order = (5, 0, 7, 2, 1, 3, 4, 6, 11, 10, 9, 8)
    verdict = verdict_of(networks, serve(networks, replace(RIGHT, order=order)))
    assert [one.hypothesis.changes for one in verdict.causes] == [{"order": order}]


def test_softmax_that_is_meant_is_no_difference(networks: Networks) -> None:
    how = replace(RIGHT, output="softmax")
    assert verdict_of(networks, serve(networks, how), how).agrees
    missing = verdict_of(networks, serve(networks, RIGHT), how)
    assert [one.hypothesis.words for one in missing.causes] == ["logits where softmax is expected"]


@pytest.mark.parametrize("precision", ["bf16", "int8", "int8 of 7 bits"])
def test_a_precision_is_named_unless_it_is_meant(networks: Networks, precision: Precision) -> None:
    served = serve(networks, replace(RIGHT, precision=precision))
    served += np.random.default_rng(0).normal(0, 1e-3, served.shape).astype(np.float32)
    found = verdict_of(networks, served)
    assert [one.hypothesis.changes for one in found.causes] == [{"precision": precision}]
    assert verdict_of(networks, served, precision=precision).agrees


def test_a_cause_is_found_below_the_noise_of_int8(networks: Networks) -> None:
    served = serve(networks, replace(RIGHT, precision="int8", colour="bgr"))
    verdict = verdict_of(networks, served, precision="int8")
    assert [one.hypothesis.kind for one in verdict.causes] == ["colour"]


def test_other_weights_are_named_by_elimination_or_by_their_file(networks: Networks) -> None:
    served = serve(networks, replace(RIGHT, network=1))
    assert [one.hypothesis.words for one in verdict_of(networks, served).causes] == ["the weights of b.pt"]

    def probe() -> Bench:
        flat = flat_pictures(RIGHT)
        return Bench(flat, networks, serve(networks, replace(RIGHT, network=1), flat))

    alone = verdict_of(networks, served, known=ALONE, probe=probe)
    assert [one.hypothesis.kind for one in alone.causes] == ["weights"]
    assert "by elimination" in alone.causes[0].note
    assert "int8" not in alone.causes[0].hypothesis.words
    # Scales of int8 that fit no image leave as little of the answers.
    int8 = verdict_of(networks, served, known=ALONE, probe=probe, precision="int8")
    assert "or int8 that was calibrated on images prepared otherwise" in int8.causes[0].hypothesis.words
    assert "calibrate it again" in int8.causes[0].hypothesis.mends["graph"]


@pytest.mark.parametrize("values", ["zeros", "the same", "shares"])
def test_the_same_scores_for_every_image_have_no_cause_but_are_said(networks: Networks, values: str) -> None:
    row = {"zeros": np.zeros(NUM_CLASSES), "the same": np.arange(12.0), "shares": np.full(NUM_CLASSES, 1 / 12)}
    served = np.tile(row[values].astype(np.float32), (len(PICTURES), 1))
    right = replace(RIGHT, output="softmax" if values == "shares" else "logits")
    verdict = verdict_of(networks, served, right)
    assert not verdict.agrees and verdict.causes == ()
    assert verdict.note.startswith("every image gets the same scores")


def test_a_cause_that_the_first_images_do_not_show_is_found(networks: Networks) -> None:
    squares = [Picture(one.image.resize((80, 80))) for one in PICTURES[:4]]
    shown = [*squares, *PICTURES[4:]]
    how = replace(RIGHT, resize=32)  # of a square no different from squashing it
    verdict = verdict_of(networks, serve(networks, how, shown), shown=shown)
    assert [one.hypothesis.changes for one in verdict.causes] == [{"resize": 32}]
    assert verdict.causes[0].note == ""


def test_causes_that_the_images_cannot_tell_apart_are_all_said(networks: Networks) -> None:
    shown = [Picture(one.image.resize((80, 80))) for one in PICTURES]
    (cause,) = verdict_of(networks, serve(networks, replace(RIGHT, resize=32), shown), shown=shown).causes
    assert cause.hypothesis.changes == {"resize": (32, 32)}
    assert cause.note.startswith(
        "cannot tell between it and: images scaled with the shorter side at 32, then cropped"
    )
    both = replace(RIGHT, resize=32, colour="bgr")
    colour, size = verdict_of(networks, serve(networks, both, shown), shown=shown).causes
    assert {colour.hypothesis.kind, size.hypothesis.kind} == {"colour", "size and crop"}
    assert "cannot tell between it and: " in colour.note and "shorter side at 32" in colour.note


WRITTEN: list[tuple[str, Callable[[Any], Any]]] = [
    ("softmax", lambda scores: scores.round(3)),
    ("softmax", lambda scores: scores.astype(np.float16).astype(np.float32)),
    ("logits", lambda scores: scores.round(1)),
]


@pytest.mark.parametrize(("output", "write"), WRITTEN)
def test_scores_that_were_rounded_are_compared_as_they_are_written(
    networks: Networks, output: Any, write: Callable[[Any], Any]
) -> None:
    how = replace(RIGHT, output=output)
    assert verdict_of(networks, write(serve(networks, how)), how).agrees
    wrong = verdict_of(networks, write(serve(networks, replace(how, colour="bgr"))), how)
    assert [one.hypothesis.kind for one in wrong.causes] == ["colour"]


def test_softmax_beside_something_else_explains_its_own_share_alone(networks: Networks) -> None:
    images = np.stack([np.roll(fit(one, RIGHT)[::-1], 9, axis=1) for one in PICTURES])
    served = finish(networks.logits(normalise(images, RIGHT), RIGHT), replace(RIGHT, output="softmax"))
    verdict = verdict_of(networks, served, known=ALONE)
    # Without a server that is asked about flat images nobody can say that it is the weights.
    assert [one.hypothesis.kind for one in verdict.causes] == ["output"]
    assert 0.5 < verdict.causes[0].share["value"] < 1
    assert verdict.left > 0.3 and verdict.note.startswith("nothing explains it")


def test_how_much_is_tried_is_counted_and_not_timed(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(networks, RIGHT)[::-1].copy()  # the scores of other images
    ran: list[int] = []
    once = networks.logits

    def counted(values: Any, how: Pipeline) -> Any:
        ran.append(len(values))
        return once(values, how)

    monkeypatch.setattr(networks, "logits", counted)
    macs = networks.num_macs(RIGHT)
    assert 20e6 < macs < 60e6  # ResNet-18 at 32 pixels: 37 million
    found = verdict_of(networks, served, effort=100 * macs / 1e12, known=ALONE)
    assert "`--effort" in found.note and "tries more" in found.note
    assert 100 <= sum(ran) < 250
    again = verdict_of(networks, served, effort=100 * macs / 1e12, known=ALONE)
    assert again.note == found.note


def test_a_cause_that_is_no_row_is_not_named_but_localised(networks: Networks) -> None:
    def moved(shown: list[Picture]) -> np.ndarray[Any, Any]:
        images = np.stack([np.roll(fit(one, RIGHT)[::-1], 9, axis=1) for one in shown])
        return networks.logits(normalise(images, RIGHT), RIGHT)

    def probe() -> Bench:
        flat = flat_pictures(RIGHT)
        return Bench(flat, networks, moved(flat))

    verdict = verdict_of(networks, moved(PICTURES), known=ALONE, probe=probe)
    assert not verdict.agrees and verdict.causes == ()
    assert "Flat images are answered as in PyTorch" in verdict.note
    assert verdict.candidates
