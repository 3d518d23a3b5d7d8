"""What every attack must keep to, whatever its family: one table."""

from __future__ import annotations

import asyncio
import collections
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.errors import ServerUnavailable
from temper.client.robustness import AttackConfig, AttackResult, attack_endpoint
from temper.client.robustness.base import ATTACKS
from temper.client.robustness.result import build_result
from temper.plugins import PluginError

Digits = Any  # the fixture's class in conftest.py
FAMILIES = ("square", "simba", "hop-skip-jump", "noise", "art-square")


def config(name: str, **changes: Any) -> AttackConfig:
    settings = {"epsilon": 40, "max_queries": 60, "batch_size": 16, **changes}
    if name == "hop-skip-jump":  # so that it gets beyond its start
        settings = {"init_changes": 20, **settings}
    made: AttackConfig = ATTACKS.get(name).config(**settings)
    return made


async def run(digits: Digits, endpoint: Any, settings: AttackConfig, **arguments: Any) -> AttackResult:
    return await attack_endpoint(endpoint.infer, digits.images, digits.labels, settings, **arguments)


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"hop-skip-jump"}))
@pytest.mark.parametrize("epsilon", [1, 8.9, 255])
async def test_budget_is_kept_on_what_the_endpoint_receives(digits: Digits, name: str, epsilon: float) -> None:
    endpoint = digits.endpoint()
    settings = config(name, epsilon=epsilon, max_queries=30)
    result = await attack_endpoint(endpoint.infer, digits.images[:1], digits.labels[:1], settings)
    assert result.num_queries > 0
    change = np.abs(np.concatenate(endpoint.requests).astype(int) - digits.images[0].astype(int)).max()
    # The whole budget is used, too: only noise of 255 may fool this classifier before its first corner.
    assert change == int(epsilon) or (change < epsilon == 255 and name in ("noise", "simba"))


@pytest.mark.parametrize("name", FAMILIES)
async def test_queries_are_counted_as_the_endpoint_sees_them(digits: Digits, name: str) -> None:
    endpoint = digits.endpoint()
    result = await run(digits, endpoint, config(name))
    # ART needs to know the number of classes: one question more.
    assert endpoint.num_images == 160 + result.num_queries + (name == "art-square")
    assert result.queries.sum() == result.num_queries
    assert result.queries.max() <= 60
    assert endpoint.most_in_flight <= 4 and max(endpoint.batch_sizes) <= 16


@pytest.mark.parametrize("name", FAMILIES)
async def test_only_images_that_are_right_are_attacked(digits: Digits, name: str) -> None:
    result = await run(digits, digits.endpoint(), config(name))
    assert np.array_equal(result.correct, digits.correct)
    assert not result.correct.all() and not result.survived[~result.correct].any()
    assert (result.queries[~result.correct] == 0).all() and (result.queries[result.correct] > 0).all()
    assert result.clean_accuracy["value"] == digits.correct.mean() > result.accuracy["value"]


@pytest.mark.parametrize("name", FAMILIES)
async def test_an_image_that_counts_as_fooled_was_sent_and_misjudged(digits: Digits, name: str) -> None:
    endpoint = digits.endpoint()
    result = await run(digits, endpoint, config(name), gallery=1000)
    assert len(result.gallery) == (result.correct & ~result.survived).sum() > 3
    seen = {image.tobytes() for request in endpoint.requests for image in request}
    for example in result.gallery:
        assert example.adversarial.tobytes() in seen
        assert np.abs(example.adversarial.astype(int) - example.original.astype(int)).max() <= 40
        assert np.array_equal(example.original, digits.images[example.index])
        answer = int(endpoint.scores(example.adversarial[None]).argmax())
        assert answer == example.served_label != example.label == digits.labels[example.index]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["square", "hop-skip-jump", "noise", "art-square"])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_result_does_not_depend_on_batches_or_the_order_of_answers(
    digits: Digits, name: str, batch_size: int, concurrency: int
) -> None:
    settings = {"num_images": 90, "max_queries": 20}
    expected = await run(digits, digits.endpoint(), config(name, **settings))
    got = await run(
        digits,
        digits.endpoint(jitter=batch_size),
        config(name, **settings, batch_size=batch_size, concurrency=concurrency),
    )
    assert np.array_equal(got.survived, expected.survived)
    assert np.array_equal(got.queries, expected.queries)
    assert got.curve == expected.curve and got.per_class == expected.per_class
    assert [example.index for example in got.gallery] == [example.index for example in expected.gallery]
    for one, other in zip(got.gallery, expected.gallery, strict=True):
        assert np.array_equal(one.adversarial, other.adversarial)


@pytest.mark.parametrize("name", FAMILIES)
async def test_seed_changes_images_and_draws(digits: Digits, name: str) -> None:
    one, other = [await run(digits, digits.endpoint(), config(name, num_images=50, seed=seed)) for seed in (0, 1)]
    assert not np.array_equal(one.indices, other.indices)
    assert not np.array_equal(one.queries, other.queries)


async def test_square_draws_do_not_depend_on_the_other_images(digits: Digits) -> None:
    everything = await run(digits, digits.endpoint(), config("square"))
    some = await run(digits, digits.endpoint(), config("square", num_images=30))
    assert np.array_equal(some.queries, everything.queries[some.indices])


@pytest.mark.slow
async def test_square_beats_noise_and_art_within_the_same_budget(digits: Digits) -> None:
    results = {
        name: await run(digits, digits.endpoint(), config(name, epsilon=24, max_queries=240))
        for name in ("square", "noise", "art-square")
    }
    robust = {name: result.accuracy["value"] for name, result in results.items()}
    assert robust["square"] < robust["noise"] - 0.1
    # ART pays three queries per step, so at the same budget it can only be behind.
    assert robust["square"] <= robust["art-square"] < robust["noise"]
    assert results["square"].num_queries < results["art-square"].num_queries


@pytest.mark.slow
async def test_square_agrees_with_art_when_both_take_as_many_steps(digits: Digits) -> None:
    ours = await run(digits, digits.endpoint(), config("square", epsilon=24, max_queries=200))
    # 3 queries at the start and 3 per iteration: 199 iterations after the stripes, like ours.
    theirs = await run(digits, digits.endpoint(), config("art-square", epsilon=24, max_queries=3 * 200))
    assert abs(ours.accuracy["value"] - theirs.accuracy["value"]) < 0.08
    assert ours.num_queries < 0.5 * theirs.num_queries


async def test_requests_are_full_while_images_wait_and_stay_in_flight(digits: Digits) -> None:
    endpoint = digits.endpoint(jitter=0)
    result = await run(digits, endpoint, config("square", batch_size=8, concurrency=3))
    attack = endpoint.batch_sizes[160 // 8 :]
    assert endpoint.most_in_flight == 3
    # 32 slots: until the last images are taken up, every request carries 8.
    last_start = int(np.searchsorted(np.cumsum(attack), result.num_queries - 32 * 60))
    assert last_start > 10 and set(attack[:last_start]) == {8}
    assert collections.Counter(attack).most_common(1)[0][0] == 8


async def test_curve_falls_from_clean_to_robust_accuracy(digits: Digits) -> None:
    result = await run(digits, digits.endpoint(), config("square"))
    values = [point["accuracy"] for point in result.curve]
    assert result.curve[0] == {"num_queries": 0, "accuracy": result.clean_accuracy["value"]}
    assert result.curve[-1] == {"num_queries": 60, "accuracy": result.accuracy["value"]}
    assert values == sorted(values, reverse=True) and len(set(values)) > 5
    fooled = result.queries[result.correct & ~result.survived]
    assert result.queries_to_success == {"median": np.median(fooled), "mean": pytest.approx(fooled.mean())}


def test_what_was_noted_of_an_image_that_was_wrong_before_does_not_count() -> None:
    vectors: dict[str, list[Any]] = {
        "lost_at": [2, 3, 4, 0],
        "broken": ["", "", "nonfinite_output", ""],
        "queries": [2, 3, 4, 60],
        "stuck": [1, 0, 0, 0],
        "taken_for": [5, 6, -1, -1],
        "reference_queries": [1, 3, 0, 0],
        "distances": [7.0, 2.0, np.inf, np.inf],
    }
    result = build_result(
        config("noise"),
        indices=np.arange(4),
        labels=np.zeros(4, np.int64),
        correct=np.array([True, False, False, False]),
        errors={},
        white_box=False,
        draws=False,
        gallery=[],
        num_queries_now=69,
        duration_s=1.0,
        **{name: np.array(values) for name, values in vectors.items()},
    )
    assert [result.curve[0]["accuracy"], result.curve[-1]["accuracy"]] == [0.25, 0.0]
    assert (result.num_queries, result.errors, result.queries_to_success) == (2, {}, {"median": 2, "mean": 2})
    assert result.pairs == [{"label": 0, "answer": 5, "num_images": 1}] and result.reference_queries == 1
    assert result.taken_for.tolist() == [5, -1, -1, -1] and result.success is not None
    assert (result.success["value"], result.success["num_images"]) == (1.0, 1)
    assert result.distance == {"median": 7, "mean": 7, "num_images": 1} == result.to_json()["distance"]


async def test_progress_ends_at_the_whole_budget_and_never_goes_back(digits: Digits) -> None:
    for name in FAMILIES:
        seen: list[tuple[int, int]] = []
        result = await run(digits, digits.endpoint(), config(name), progress=lambda *at, to=seen: to.append(at))
        total = int(result.correct.sum()) * 60
        assert {of for _, of in seen} == {total}
        assert seen[-1] == (total, total)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


async def test_idle_requests_wait_instead_of_spinning(digits: Digits) -> None:
    endpoint = digits.endpoint(jitter=0)
    seen: list[int] = []
    await attack_endpoint(
        endpoint.infer,
        digits.images[:3],
        digits.labels[:3],
        config("square", concurrency=8),
        progress=lambda done, _: seen.append(done),
    )
    assert len(seen) <= 2 * len(endpoint.batch_sizes)


async def test_nothing_to_attack_is_a_result_and_not_an_error(digits: Digits) -> None:
    wrong = (digits.labels + 1) % 10
    right = digits.endpoint().scores(digits.images).argmax(axis=1) == wrong
    for name in FAMILIES:
        result = await attack_endpoint(digits.endpoint().infer, digits.images[~right], wrong[~right], config(name))
        assert result.accuracy["value"] == result.clean_accuracy["value"] == 0.0
        assert result.num_queries == 0 and result.queries_to_success is None and result.gallery == []


@pytest.mark.parametrize("name", FAMILIES)
async def test_lost_server_is_reported_with_what_was_finished(digits: Digits, name: str) -> None:
    endpoint = digits.endpoint(fail_after=300)
    message = f"the connection broke .attack {name}: [1-9][0-9]* of 160 images were finished"
    settings = config(name, batch_size=8, concurrency=2)
    if name == "art-square":  # its blocks finish as a whole: let the first one do so
        endpoint.fail_after = 160 // 8 + 1 + 128 // 8 * 60 + 10
    with pytest.raises(ServerUnavailable, match=message) as caught:
        await run(digits, endpoint, settings)
    assert caught.value.code == "UNAVAILABLE"
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"hop-skip-jump"}))
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
async def test_answer_that_is_no_number_is_neither_robust_nor_fooled(
    digits: Digits, name: str, value: float
) -> None:
    """Without the rule, an infinite score of the true class makes its image unbeatable."""
    clean = set(map(bytes, digits.images))
    broken = set(np.flatnonzero(digits.correct)[::3].tolist())
    endpoint = digits.endpoint()

    async def infer(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = await endpoint.infer(images)
        for row, image in enumerate(images):
            if bytes(image) not in clean:  # under attack: the original is the nearest image
                index = int(np.abs(digits.images.astype(int) - image).reshape(160, -1).sum(axis=1).argmin())
                if index in broken:
                    scores[row, digits.labels[index]] = value
        return scores

    settings = config(name, epsilon=8, max_queries=12)
    plain = await run(digits, digits.endpoint(), settings)
    result = await attack_endpoint(infer, digits.images, digits.labels, settings, gallery=1000)
    assert result.errors == {"nonfinite_output": len(broken)} == result.to_json()["errors"]
    assert not result.survived[list(broken)].any()
    others = np.setdiff1d(np.arange(160), list(broken))
    assert np.array_equal(result.survived[others], plain.survived[others]) or name == "art-square"
    assert result.accuracy["value"] <= plain.accuracy["value"]
    assert not broken & {example.index for example in result.gallery}
    assert result.curve[-1]["accuracy"] == result.accuracy["value"]
    fooled = int((result.correct & ~result.survived).sum()) - len(broken)
    assert (result.queries_to_success is None) == (fooled == 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l0"}, 'norm: got "l0", expected one of "linf", "l2"'),
        ({"name": "art-square", "norm": "l2"}, 'norm: got "l2", expected one of "linf"'),
        ({"name": "noise", "norm": "l1"}, 'norm: got "l1", expected one of "linf", "l2"'),
        ({"name": "noise", "norm": "l2", "epsilon": 0.5}, "epsilon: got 0.5, expected at least 1, and finite"),
        ({"name": "noise", "norm": "l2", "epsilon": math.inf}, "epsilon: got inf, expected at least 1, and fin"),
        ({"name": "noise", "norm": "l2", "epsilon": math.nan}, "epsilon: got nan, expected at least 1, and fin"),
        ({"epsilon": 0}, r"epsilon: got 0, expected 1 to 255 \(units of 1/255 on the uint8 image"),
        ({"norm": "l2", "epsilon": 0}, "epsilon: got 0, expected at least 1, and finite"),
        ({"epsilon": 0.03}, r"epsilon: got 0.03, expected 1 to 255 \(units of 1/255 on the uint8 image"),
        ({"epsilon": 256}, "epsilon: got 256, expected 1 to 255"),
        ({"epsilon": float("nan")}, "epsilon: got nan, expected 1 to 255"),
        ({"max_queries": 0}, "max_queries: got 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size: got 0, expected at least 1"),
        ({"concurrency": -1}, "concurrency: got -1, expected at least 1"),
        ({"num_images": 0}, "num_images: got 0, expected at least 1"),
        ({"seed": -1}, "seed: got -1, expected at least 0"),
        ({"p_init": 1.0}, "p_init: got 1, expected a share between 0 and 1"),
        ({"name": "simba", "step": 0.5}, "step: got 0.5, expected at least 1, and finite"),
        ({"name": "hop-skip-jump", "init_tries": 0}, "init_tries: got 0, expected at least 1"),
        ({"name": "art-square", "p_init": 0.0}, "p_init: got 0, expected a share between 0 and 1"),
        (
            {"name": "art-square", "max_queries": 5},
            "max_queries: got 5, expected at least 6: art-square spends 3 queries per image and iteration",
        ),
    ],
)
def test_config_refuses_what_no_attack_can_run_with(changes: dict[str, Any], message: str) -> None:
    kind = ATTACKS.get(changes.get("name", "square"))
    with pytest.raises(ValueError, match=message):
        kind.config(**changes)


def test_what_is_no_attack_is_refused() -> None:
    with pytest.raises(
        PluginError, match="temper.attacks: got 'laser', expected one of square, simba, hop-skip-jump, n"
    ):
        ATTACKS.get("laser")
    with pytest.raises(TypeError, match="AttackConfig is the base of all, expected one attack's own, such as Squ"):
        AttackConfig(name="square")


async def test_more_images_than_there_are_is_refused(digits: Digits) -> None:
    with pytest.raises(ValueError, match="num_images: got 161, expected at most 160, all there are"):
        await run(digits, digits.endpoint(), config("square", num_images=161))


async def test_saved_gallery_holds_the_exact_images(digits: Digits, tmp_path: Any) -> None:
    from PIL import Image

    result = await run(digits, digits.endpoint(), config("square"), gallery=3)
    assert len(result.gallery) == 3
    result.save(tmp_path / "attack")
    for example in result.gallery:
        path = tmp_path / "attack" / f"{example.index:06d}_adversarial_{example.served_label}.png"
        assert np.array_equal(np.asarray(Image.open(path)), example.adversarial)
    assert np.array_equal(np.load(tmp_path / "attack" / "survived.npy"), result.survived)
    assert np.array_equal(np.load(tmp_path / "attack" / "distances.npy"), result.distances)
    assert len(list((tmp_path / "attack").iterdir())) == 3 * 2 + 4


async def test_json_is_plain_and_carries_what_the_report_needs(digits: Digits) -> None:
    import json

    document = json.loads(json.dumps((await run(digits, digits.endpoint(), config("noise"))).to_json()))
    assert (document["attack"], document["norm"], document["epsilon"]) == ("noise", "linf", 40)
    assert set(document["accuracy"]) == {"value", "low", "high", "num_images"}
    assert set(document["per_class"]) == {str(digit) for digit in range(10)}
    assert document["num_queries"] > 0 and document["queries_per_s"] > 0
