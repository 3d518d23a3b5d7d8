"""What an attack declares is what the harness goes by; and one of another package is as good as ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.errors import ClientError
from temper.client.robustness import attack_endpoint
from temper.client.robustness.attacks.noise import NOISE, Noise, NoiseConfig
from temper.client.robustness.attacks.square import SQUARE
from temper.client.robustness.base import ATTACKS, Attack, AttackConfig, AttackKind, Harness, Slots
from temper.plugins import PluginError

Digits = Any  # the fixture's class in conftest.py
Install = Callable[..., Path]
STRIPES = (Path(__file__).parents[2] / "docs" / "examples" / "attack" / "temper_example_attack.py").read_text()


@pytest.mark.parametrize(
    ("name", "norms", "sees"),
    [
        ("square", {"linf", "l2"}, "scores"),
        ("simba", {"linf", "l2"}, "scores"),
        ("hop-skip-jump", {"linf", "l2"}, "labels"),
        ("noise", {"linf", "l2"}, "nothing"),
        *(
            (name, {"linf", "l2"}, "surrogate")
            for name in ("fgsm", "pgd", "mi-fgsm", "apgd-ce", "apgd-dlr", "apgd-t")
        ),
        ("differential", {"linf", "l2"}, "surrogate"),
        ("art-square", {"linf"}, "scores"),
    ],
)
def test_ours_say_what_they_are(name: str, norms: set[str], sees: str) -> None:
    kind = ATTACKS.get(name)
    assert (kind.name, set(kind.norms), kind.sees) == (name, norms, sees)
    assert kind.about and "\n" not in kind.about
    assert AttackConfig.kinds()[name] is kind.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": AttackConfig}, "config: got AttackConfig without a name, expected it as the field's default"),
        ({"sees": "all"}, 'sees: got "all", expected one of scores, labels, surrogate, nothing'),
        ({"attack": None}, 'attack: got neither, expected it or "run"'),
        ({"run": print}, 'attack: got both, expected it or "run"'),
        ({"compares": True}, "config: got SquareConfig without reference, expected it as compares is set"),
    ],
)
def test_kind_that_cannot_be_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SQUARE, **changes)


async def test_labels_only_attack_of_another_package_is_shown_classes(digits: Digits, install: Install) -> None:
    install(ATTACKS, "stripes", STRIPES, {"stripes": "STRIPES"})
    assert ATTACKS.names()[-2:] == ["art-square", "stripes"]
    kind = ATTACKS.get("stripes")
    build, parts = kind.attack, list[Any]()

    def make(slots: Slots) -> Attack:
        assert build
        attack: Any = build(slots)
        observe = attack.observe

        def look(slots: Any, labels: Any, /) -> None:
            parts.append(labels.copy())
            observe(slots, labels)
            assert np.array_equal(attack.answered[slots], labels)

        attack.observe = look
        return cast(Attack, attack)

    config = kind.config(epsilon=40, max_queries=10)
    settings = (digits.images, digits.labels, config)
    result = await attack_endpoint(digits.endpoint().infer, *settings)
    assert 0 < result.accuracy["value"] < result.clean_accuracy["value"]
    object.__setattr__(kind, "attack", make)  # to look at what it was shown
    again = await attack_endpoint(digits.endpoint(jitter=1).infer, *settings)
    assert np.array_equal(again.queries, result.queries) and again.attack == "stripes"
    shown = np.concatenate(parts)
    assert shown.dtype == np.int64 and shown.ndim == 1
    # An image goes on while its class is right: every query of one that survived but the last, and so on.
    right = result.correct
    expected = np.repeat(digits.labels[right], result.queries[right] - 1)
    assert sorted(shown.tolist()) == sorted(expected.tolist())


async def test_attack_that_sees_no_answers_is_shown_none(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    class Curious(Noise):
        def observe(self, slots: Any, answers: Any, /) -> None:
            raise AssertionError("it was shown an answer")

    serve(monkeypatch, replace(NOISE, attack=Curious))
    config = NoiseConfig(epsilon=8, max_queries=5)
    result = await attack_endpoint(digits.endpoint().infer, digits.images, digits.labels, config)
    assert result.num_queries > 0


def serve(monkeypatch: pytest.MonkeyPatch, kind: AttackKind) -> None:
    """Puts another attack in the place of noise."""
    monkeypatch.setattr("temper.client.robustness.attacks.noise.NOISE", kind)


@pytest.mark.parametrize("sees", ["scores", "labels", "surrogate", "nothing"])
async def test_loop_of_its_own_sees_what_it_declared(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, sees: Any
) -> None:
    endpoint, seen = digits.endpoint(), list[Any]()
    broken = int(np.flatnonzero(digits.correct)[2])

    async def infer(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = await endpoint.infer(images)
        for row, image in enumerate(images):
            if np.array_equal(image, np.minimum(digits.images[broken], 254) + 1):
                scores[row] = np.inf
        return scores

    async def run(harness: Harness, todo: npt.NDArray[Any]) -> None:
        assert await harness.count_classes() == 10
        seen.append(await harness.ask(todo, harness.images[todo].astype(np.float32) + 0.6))
        harness.finish(todo)

    serve(monkeypatch, AttackKind(about="once", config=NoiseConfig, sees=sees, run=run))
    config = NoiseConfig(epsilon=1, max_queries=5, batch_size=7)
    result = await attack_endpoint(infer, digits.images, digits.labels, config)
    assert result.num_queries == result.correct.sum() and result.errors == {"nonfinite_output": 1}
    assert max(endpoint.batch_sizes) == 7 and endpoint.most_in_flight <= config.concurrency
    if sees == "nothing":
        assert seen == [None]
        return
    scores = endpoint.scores(np.minimum(digits.images[result.correct], 254) + 1)
    expected = scores if sees == "scores" else scores.argmax(axis=1)
    expected[2] = np.nan if sees == "scores" else -1
    assert seen[0].dtype == expected.dtype and np.array_equal(seen[0], expected, equal_nan=sees == "scores")


async def test_loop_that_asks_too_often_is_stopped(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(harness: Harness, todo: npt.NDArray[Any]) -> None:
        while True:
            await harness.ask(todo, harness.images[todo])

    serve(monkeypatch, replace(NOISE, attack=None, run=run))
    message = (
        r"noise asked for an image more than max_queries \(5\) times; mend the attack \(attack noise: 0 of 160"
    )
    with pytest.raises(ClientError, match=message):
        await attack_endpoint(digits.endpoint().infer, digits.images, digits.labels, NoiseConfig(max_queries=5))


async def test_proposal_that_is_no_number_ends_the_attack_in_one_line(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wild(Noise):
        def propose(self, slots: Any) -> Any:
            return super().propose(slots) / np.float32(0)

    serve(monkeypatch, replace(NOISE, attack=Wild))
    message = "proposals: got NaN or an infinity, expected finite numbers; mend the attack .attack noise: 0 of 160"
    with np.errstate(all="ignore"), pytest.raises(ClientError, match=message):
        await attack_endpoint(digits.endpoint().infer, digits.images, digits.labels, NoiseConfig())


@pytest.mark.parametrize(
    ("name", "epsilon"),
    [
        ("noise", 1.5),
        *((name, e) for name in ("noise", "stripes", "square") for e in (30, 700, 1e9)),
        ("simba", 30),
    ],
)
async def test_l2_budget_is_kept_and_used_on_what_the_endpoint_receives(
    digits: Digits, install: Install, name: str, epsilon: float
) -> None:
    install(ATTACKS, "stripes", STRIPES, {"stripes": "STRIPES"})
    endpoint = digits.endpoint()
    config = ATTACKS.get(name).config(norm="l2", epsilon=epsilon, max_queries=10)
    result = await attack_endpoint(endpoint.infer, digits.images[:1], digits.labels[:1], config)
    assert (result.norm, result.to_json()["norm"]) == ("l2", "l2") and result.num_queries > 0
    change = np.concatenate(endpoint.requests).astype(int) - digits.images[0].astype(int)
    squares = (change**2).sum(axis=(1, 2, 3))
    assert squares.max() <= epsilon**2
    # Some of what noise asks for is beyond black and white.
    assert squares.max() > min(0.4 * epsilon**2, 500_000)


async def test_noise_fools_more_in_a_larger_l2_ball(digits: Digits) -> None:
    found = [
        await attack_endpoint(
            digits.endpoint().infer,
            digits.images,
            digits.labels,
            NoiseConfig(norm="l2", epsilon=epsilon, max_queries=20),
        )
        for epsilon in (30, 1000, 3000)
    ]
    shares = [result.accuracy["value"] for result in found]
    assert shares[0] > shares[1] > shares[2]


BROKEN = {
    "does not load": (
        [("broken", "import no_such_module\n", {"mine": "MINE"})],
        "temper.attacks 'mine' of broken (broken:MINE) does not load: ModuleNotFoundError: No module named "
        "'no_such_module'; mend or uninstall it",
    ),
    "is something else": (
        [("other", "MINE = 3\n", {"mine": "MINE"})],
        "temper.attacks 'mine' of other (other:MINE) is int, expected AttackKind; see docs/extend.md",
    ),
    "calls itself otherwise": (
        [("stripes", STRIPES, {"mine": "STRIPES"})],
        "temper.attacks 'mine' of stripes (stripes:STRIPES) calls itself otherwise, expected one name for both",
    ),
    "has the name of ours": (
        [("greedy", "", {"square": "MINE"})],
        "temper.attacks 'square' of greedy (greedy:MINE) has the name of one of Temper's own; rename it",
    ),
    "cannot be run": (
        [("idle", STRIPES.replace(", attack=Stripes", ""), {"stripes": "STRIPES"})],
        "temper.attacks 'stripes' of idle (idle:STRIPES) does not load: ValueError: attack: got neither, "
        'expected it or "run"; mend or uninstall it',
    ),
    "has a norm that there is not": (
        [("odd", STRIPES.replace('"l2"]', '"l3"]'), {"stripes": "STRIPES"})],
        "temper.attacks 'stripes' of odd (odd:STRIPES) does not load: ValueError: config: got the norms linf, l3, "
        "expected some of linf, l2; mend or uninstall it",
    ),
}


@pytest.mark.parametrize(("packages", "line"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_package_is_named_in_one_line(install: Install, packages: Any, line: str) -> None:
    for package in packages:
        install(ATTACKS, *package)
    with pytest.raises(PluginError) as caught:
        ATTACKS.all()
    assert str(caught.value) == line
