"""The differential attack: what it finds is wrong for the one model and right for the other, as both answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.errors import ClientError
from temper.client.model import ModelInfo
from temper.client.robustness import AttackResult, attack_endpoint
from temper.client.robustness.attacks.differential import DifferentialConfig
from temper.client.robustness.attacks.noise import NoiseConfig
from temper.client.robustness.base import REFERENCE
from temper.client.robustness.harness import check_reference
from temper.client.robustness.result import count_pairs

Digits = Any  # the fixture's class in conftest.py


@pytest.fixture(scope="module")
def other(digits: Digits, write_graph: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The classifier with weights of fewer bits, as the reference; its graph beside the attacked one's."""
    weights = np.round(digits.weights / 24).astype(np.int64) * 24
    graph = write_graph(tmp_path_factory.mktemp("differential") / "other.onnx", weights / 1e5)
    return replace(digits, weights=weights, surrogates=digits.surrogates | {REFERENCE: [graph]})


async def attack(digits: Digits, other: Digits, *, fail_after: int | None = None, **given: Any) -> AttackResult:
    settings = {"epsilon": 12, "max_queries": 3, "steps": 12, **given.pop("settings", {})}
    given = {"reference": other.endpoint().infer, "surrogates": other.surrogates, **given}
    return await attack_endpoint(
        digits.endpoint(fail_after=fail_after).infer,
        digits.images,
        digits.labels,
        DifferentialConfig(**settings),
        gallery=200,
        **given,
    )


@pytest.mark.parametrize("budget", [{"norm": "linf", "epsilon": 12}, {"norm": "l2", "epsilon": 250}])
async def test_found_images_are_right_for_the_reference_alone(
    digits: Digits, other: Digits, budget: dict[str, Any]
) -> None:
    endpoint = other.endpoint()
    result = await attack(digits, other, reference=endpoint.infer, settings=budget)
    assert np.array_equal(result.correct, digits.correct & other.correct)
    fooled = result.correct & ~result.survived
    assert result.success is not None
    assert result.success["num_images"] == result.correct.sum() > 100
    assert result.success["value"] == fooled.sum() / result.correct.sum() > 0.1
    assert [one.index for one in result.gallery] == np.flatnonzero(fooled).tolist()
    assert np.array_equal(result.taken_for[fooled], [one.served_label for one in result.gallery])
    for one in result.gallery:
        mine, theirs = (each.endpoint().scores(one.adversarial[None]).argmax() for each in (digits, other))
        assert mine == one.served_label != one.label == theirs
    assert result.stuck == 0
    # After the images themselves it is asked for what was wrong here, and for nothing else.
    asked = np.concatenate(endpoint.requests)[len(digits.images) :]
    assert len(asked) == result.reference_queries == result.to_json()["reference_queries"] < result.num_queries
    made_from = [np.abs(digits.images.astype(int) - image).sum(axis=(1, 2, 3)).argmin() for image in asked]
    assert (digits.endpoint().scores(asked).argmax(axis=1) != digits.labels[made_from]).all()


async def test_what_both_misjudge_does_not_fool(digits: Digits) -> None:
    """The reference answers as the attacked model does: nothing can be found, and all is asked."""
    surrogates = digits.surrogates | {REFERENCE: digits.surrogates["own"]}
    result = await attack(digits, digits, surrogates=surrogates, settings={"num_images": 40, "epsilon": 30})
    assert result.success is not None and result.success["value"] == 0 < result.reference_queries
    assert result.survived.sum() == result.correct.sum() and result.pairs == [] and result.distance is None
    assert (result.queries[result.correct] == 3).all()


async def test_reference_that_answers_nothing_fools_nobody(digits: Digits, other: Digits) -> None:
    endpoint = other.endpoint()

    async def infer(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = await endpoint.infer(images)
        return scores if endpoint.num_images <= 40 else np.full_like(scores, np.nan)

    result = await attack(digits, other, reference=infer, settings={"num_images": 40})
    assert result.success is not None and result.success["value"] == 0 < result.reference_queries
    assert result.errors == {}


async def test_interrupted_attack_resumes_to_the_same_result(
    digits: Digits, other: Digits, tmp_path: Path
) -> None:
    kept: dict[str, Any] = {"checkpoint": tmp_path / "finished.jsonl"}
    whole = await attack(digits, other)
    with pytest.raises(ClientError, match="run it again to go on"):
        await attack(digits, other, fail_after=16, **kept)
    resumed = await attack(digits, other, **kept)
    for one, two in zip(vectors(whole), vectors(resumed), strict=True):
        assert np.array_equal(one, two)
    figures = ("pairs", "success", "reference_queries", "num_queries", "curve")
    assert [resumed.to_json()[name] for name in figures] == [whole.to_json()[name] for name in figures]
    changed = replace(other, weights=np.roll(other.weights, 3, axis=0))
    with pytest.raises(ValueError, match="belongs to another attack .differs in answers."):
        await attack(digits, changed, **kept)


def vectors(result: AttackResult) -> list[npt.NDArray[Any]]:
    return [result.survived, result.correct, result.queries, result.distances, result.taken_for]


async def test_saved_vectors_have_the_answered_classes(digits: Digits, tmp_path: Path) -> None:
    config = NoiseConfig(epsilon=120, max_queries=4)
    result = await attack_endpoint(digits.endpoint().infer, digits.images, digits.labels, config)
    result.save_vectors(tmp_path)
    taken_for, fooled = np.load(tmp_path / "taken_for.npy"), result.correct & ~result.survived
    assert np.array_equal(taken_for >= 0, fooled) and fooled.any()
    assert (taken_for[fooled] != digits.labels[fooled]).all()
    assert result.pairs == count_pairs(digits.labels[fooled], taken_for[fooled])
    assert result.success is None and result.reference_queries == 0


def test_pairs_are_the_most_frequent_first() -> None:
    labels, answers = np.array([3, 1, 3, 1, 3, *range(10)]), np.array([8, 7, 8, 2, 8, *range(1, 11)])
    found = [tuple(pair.values()) for pair in count_pairs(labels, answers)]
    assert found[:4] == [(3, 8, 3), (1, 2, 2), (0, 1, 1), (1, 7, 1)] and len(found) == 10


INFO = ModelInfo(
    name="int8",
    version="1",
    input_name="image",
    image_shape=(16, 16, 3),
    output_name="logits",
    num_classes=10,
    max_batch_size=8,
)
REFERENCES = {
    "itself": ({}, "reference: got int8, which is the attacked model, expected another one"),
    "another shape": (
        {"name": "large", "image_shape": (32, 32, 3)},
        r"large has images \[32, 32, 3\] and 10 classes, expected \[16, 16, 3\] and 10 classes as int8 has; use ",
    ),
    "other classes": ({"name": "few", "num_classes": 9}, r"few has images \[16, 16, 3\] and 9 classes, expected "),
}


@pytest.mark.parametrize(("changes", "text"), REFERENCES.values(), ids=REFERENCES.keys())
def test_reference_that_does_not_fit_is_one_line(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_reference(INFO, replace(INFO, **changes))
    check_reference(INFO, replace(INFO, version="2"))


async def test_reference_belongs_to_an_attack_that_compares(digits: Digits, other: Digits) -> None:
    data = (digits.endpoint().infer, digits.images, digits.labels)
    with pytest.raises(ValueError, match="reference: got none, expected a second model to compare with .differen"):
        await attack(digits, other, reference=None)
    with pytest.raises(
        ValueError, match="reference: got one, expected none, as this attack compares with no other"
    ):
        await attack_endpoint(*data, NoiseConfig(), reference=other.endpoint().infer)
    with pytest.raises(ValueError, match="surrogates: reference: no such file, .* knows the reference's graph"):
        await attack(digits, other, surrogates=digits.surrogates)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "one surrogate": (
        {"surrogates": ("own",)},
        "surrogates: got 1, expected two: the attacked model's and the ref",
    ),
    "no steps": ({"steps": 0}, "steps: got 0, expected at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str) -> None:
    given, text = MISTAKES[name]
    with pytest.raises(ValueError, match=text):
        DifferentialConfig(**given)
