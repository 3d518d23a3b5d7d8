"""Transfer attacks: their steps as kept implementations take them, and what the endpoint makes of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted  # type: ignore[import-untyped]

from temper.client.errors import ClientError
from temper.client.robustness import AttackResult, ascent, attack_endpoint
from temper.client.robustness.attacks.transfer import (
    ApgdCeConfig,
    ApgdDlrConfig,
    ApgdTConfig,
    FgsmConfig,
    MiFgsmConfig,
    PgdConfig,
    TransferConfig,
)
from temper.client.robustness.base import ATTACKS, AttackConfig
from temper.client.robustness.surrogate import Surrogate

Digits = Any  # the fixture's class in conftest.py
Write = Callable[..., Path]
SIZE, CLASSES = 8, 6
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory, write_graph: Write) -> Surrogate:
    """A network without a kink, in float64: in float32 a gradient near 0 has another sign on another CPU."""
    path = tmp_path_factory.mktemp("transfer") / "net.onnx"
    hidden = RNG.normal(size=(SIZE * SIZE * 3, 12)) / 255
    return Surrogate([write_graph(path, RNG.normal(size=(12, CLASSES)), hidden)], torch.float64)


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def labels(smooth: Surrogate, images: Any) -> Any:
    """What the network says."""
    found: Any = smooth.logits(torch.from_numpy(images).to(smooth.device, smooth.dtype)).argmax(1).cpu().numpy()
    return found


class OnUnit(torch.nn.Module):
    """The network on a scale of 0 to 1, as the libraries want it."""

    def __init__(self, surrogate: Surrogate) -> None:
        """Takes the network."""
        super().__init__()
        self.surrogate = surrogate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.surrogate.logits(255 * x.to(self.surrogate.dtype))


STEPS = {
    "FastGradientMethod": (FgsmConfig(epsilon=8), {"eps": 8 / 255}),
    "BasicIterativeMethod": (
        FgsmConfig(epsilon=8, steps=10, step_share=0.25),
        {"eps": 8 / 255, "eps_step": 2 / 255, "max_iter": 10, "verbose": False},
    ),
    "MomentumIterativeMethod": (
        MiFgsmConfig(epsilon=8, steps=10, diversity=0.0),
        {"eps": 8 / 255, "eps_step": 0.8 / 255, "max_iter": 10, "decay": 1.0, "verbose": False},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_those_of_the_toolbox(name: str, smooth: Surrogate, images: Any, labels: Any) -> None:
    """To 1e-6 on a scale of 0 to 1, before rounding."""
    from art.attacks import evasion  # type: ignore[import-untyped]
    from art.estimators.classification import PyTorchClassifier  # type: ignore[import-untyped]

    config, settings = STEPS[name]
    classifier = PyTorchClassifier(
        OnUnit(smooth), torch.nn.CrossEntropyLoss(), (SIZE, SIZE, 3), CLASSES, clip_values=(0, 1)
    )
    expected = getattr(evasion, name)(classifier, **settings).generate(images.astype(np.float32) / 255, labels)
    found, stuck = config.make(smooth, images, labels, np.arange(len(images)), 0)
    np.testing.assert_allclose(found / 255, expected, atol=1e-6)
    assert not stuck.any()


@pytest.fixture
def double() -> Iterator[None]:
    """Lets the authors' code count in float64 too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_apgd_is_that_of_its_authors(
    norm: Literal["linf", "l2"], loss: str, smooth: Surrogate, images: Any, labels: Any
) -> None:
    """From the same start, to 1e-6 on a scale of 0 to 1.

    The budget is small: where the true class comes third, DLR is constant, and its gradient rounding alone.
    """
    epsilon = {"linf": 1.0, "l2": 3.0}[norm]
    config = ApgdCeConfig(epsilon=epsilon, norm=norm)
    ball = ascent._Ball(norm, epsilon, images, smooth)
    start = ball.random_point(ascent._Draws(0, np.arange(len(images)), 0), inside=False)
    truth, x = torch.from_numpy(labels), torch.from_numpy(images).double() / 255
    kind, given = (APGDAttack_targeted, {}) if loss == "targeted" else (APGDAttack, {"loss": loss})
    theirs = kind(
        OnUnit(smooth),
        n_iter=40,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        eps=epsilon / 255,
        device="cpu",
        **given,
    )
    theirs.init_hyperparam(x)
    if loss == "targeted":
        order = OnUnit(smooth)(x).sort(1)[1]
        theirs.y_target = order[:, -2].where(order[:, -2] != truth, order[:, -1])
    _, still_right, _, fooled = theirs.attack_single_run(x, truth, start.cpu())
    best = theirs.attack_single_run(x, truth, start.cpu())[0]
    expected = best.where(still_right[:, None, None, None].bool(), fooled).detach().numpy()
    found, _ = ascent.climb_auto(
        smooth, images, labels, np.arange(len(images)), 0, config=config, steps=40, loss=loss
    )
    np.testing.assert_allclose(found / 255, expected, atol=1e-6)
    assert not np.allclose(found, 255 * start.cpu().numpy())


async def attack(
    digits: Digits, config: AttackConfig, surrogates: dict[str, list[Path]], **given: Any
) -> AttackResult:
    return await attack_endpoint(
        digits.endpoint().infer, digits.images, digits.labels, config, surrogates=surrogates, **given
    )


async def test_gradients_leave_less_than_noise_and_the_more_the_budget_the_less(digits: Digits) -> None:
    left = [
        (await attack(digits, PgdConfig(epsilon=epsilon, steps=5, step_share=0.5), digits.surrogates)).accuracy[
            "value"
        ]
        for epsilon in (8, 16, 32)
    ]
    noise = (await attack(digits, ATTACKS.get("noise").config(epsilon=32, max_queries=5), {})).accuracy["value"]
    assert noise > left[0] > left[1] > left[2]


@pytest.mark.parametrize(
    "name", [name for name, kind in ATTACKS.all().items() if issubclass(kind.config, TransferConfig)]
)
async def test_a_turn_costs_one_query_until_the_image_is_fooled(
    digits: Digits, write_graph: Write, name: str, tmp_path: Path
) -> None:
    weak = {"weak": [write_graph(tmp_path / "weak.onnx", RNG.normal(size=digits.weights.shape) / 1e3)]}
    config = ATTACKS.get(name).config(
        epsilon=32, num_images=60, surrogates=("weak", "own"), max_queries=3, steps=12
    )
    result = await attack(digits, config, digits.surrogates | weak)
    fooled = result.correct & ~result.survived
    assert (result.queries[result.survived] == 3).all() and (result.queries[fooled] <= 3).all()
    for example in result.gallery:
        assert np.abs(example.adversarial.astype(int) - example.original).max() <= 32
        assert (
            digits.endpoint().scores(example.adversarial[None]).argmax() == example.served_label != example.label
        )
    # Its own graph comes second.
    assert np.count_nonzero(result.queries[fooled] == 2) > np.count_nonzero(result.queries[fooled] == 1)
    assert result.stuck == 0


async def test_where_there_is_no_gradient_it_is_said(digits: Digits, write_graph: Write, tmp_path: Path) -> None:
    """A softmax that is certain has none: these scores are so large that no other class has a share of it."""
    certain = {"own": [write_graph(tmp_path / "certain.onnx", digits.weights)]}
    result = await attack(digits, PgdConfig(epsilon=4, steps=2, num_images=20, max_queries=1), certain)
    assert result.stuck > 0.9


async def test_rounded_scores_hide_from_a_search_and_not_from_gradients(digits: Digits) -> None:
    """The trap: an endpoint whose scores have one decimal is no more robust than with all of them."""

    async def rounded(images: Any) -> Any:
        return (digits.endpoint().scores(images) / 1e5).round(1)

    async def against(infer: Any, config: AttackConfig) -> AttackResult:
        return await attack_endpoint(infer, digits.images, digits.labels, config, surrogates=digits.surrogates)

    square = ATTACKS.get("square").config(epsilon=16, max_queries=60)
    clear, hidden = await against(digits.endpoint().infer, square), await against(rounded, square)
    # This classifier has pixels without weight, so a few squares change no score at all.
    assert hidden.stuck > 2 * clear.stuck > 0
    pgd = PgdConfig(epsilon=16, steps=12)
    clear, hidden = await against(digits.endpoint().infer, pgd), await against(rounded, pgd)
    assert hidden.accuracy["value"] == pytest.approx(clear.accuracy["value"], abs=0.05)


async def test_attack_goes_on_where_it_was(digits: Digits, write_graph: Write, tmp_path: Path) -> None:
    config = PgdConfig(epsilon=16, steps=3)
    whole = await attack(digits, config, digits.surrogates)
    with pytest.raises(ClientError, match="run it again to go on"):
        await attack_endpoint(
            digits.endpoint(fail_after=8).infer,
            digits.images,
            digits.labels,
            config,
            surrogates=digits.surrogates,
            checkpoint=tmp_path / "finished.jsonl",
        )
    resumed = await attack(digits, config, digits.surrogates, checkpoint=tmp_path / "finished.jsonl")
    assert np.array_equal(resumed.survived, whole.survived) and np.array_equal(resumed.queries, whole.queries)
    other = {"own": [write_graph(tmp_path / "other.onnx", digits.weights + 1)]}
    with pytest.raises(ValueError, match="belongs to another attack .differs in surrogates."):
        await attack(digits, config, other, checkpoint=tmp_path / "finished.jsonl")


async def test_surrogate_that_is_not_there_or_does_not_fit(
    digits: Digits, write_graph: Write, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match="surrogates: own: no such file, .* nothing here knows the model's own graph"
    ):
        await attack(digits, PgdConfig(), {})
    small = write_graph(tmp_path / "small.onnx", np.zeros((8 * 8 * 3, 10)))
    with pytest.raises(ClientError, match=r"small.onnx: takes images \[8, 8, 3\], expected \[16, 16, 3\]"):
        await attack(digits, PgdConfig(surrogates=(str(small),)), {})
    few = write_graph(tmp_path / "few.onnx", np.zeros((16 * 16 * 3, 9)))
    with pytest.raises(ClientError, match="few.onnx: knows 9 classes, expected the endpoint's 10"):
        await attack(digits, PgdConfig(surrogates=(str(few),)), {})


@pytest.mark.parametrize(("kind", "least"), [(ApgdCeConfig, 2), (ApgdDlrConfig, 3), (ApgdTConfig, 4)])
async def test_ratio_of_logits_wants_classes_enough(
    kind: Any, least: int, digits: Digits, write_graph: Write, tmp_path: Path
) -> None:
    few, rows = max(least - 1, 2), digits.labels < 2
    weights = digits.weights[:, :few]
    graph = {"own": [write_graph(tmp_path / "few.onnx", weights / 1e5)]}

    async def infer(images: Any) -> Any:
        return (images.reshape(len(images), -1).astype(np.int64) @ weights).astype(np.float32)

    async def go() -> AttackResult:
        settings = kind(epsilon=8, steps=2, num_images=10)
        return await attack_endpoint(infer, digits.images[rows], digits.labels[rows], settings, surrogates=graph)

    if few == least:
        assert (await go()).num_queries > 0
        return
    said = f"attack {kind().name}: got a model of {few} classes, expected at least {least}"
    with pytest.raises(ClientError, match=said):
        await go()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no surrogate": ({"surrogates": ()}, "surrogates: got none"),
    "more surrogates than turns": (
        {"surrogates": ("a", "b"), "max_queries": 1},
        "max_queries: got 1, expected at",
    ),
    "no steps": ({"steps": 0}, "steps: got 0, expected at least 1"),
    "standing still": ({"step_share": 0.0}, "step_share: got 0, expected more than 0"),
    "momentum": ({"momentum": 2.0}, "momentum: got 2, expected 0 to 1"),
    "nothing": ({"epsilon": 0.0}, "epsilon: got 0, expected 1 to 255"),
    "everything": ({"epsilon": 256.0}, "epsilon: got 256, expected 1 to 255"),
    "a curve of nothing": ({"curve": (0.5,)}, "curve: got 0.5, expected 1 to 255"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str) -> None:
    given, text = MISTAKES[name]
    with pytest.raises(ValueError, match=text):
        PgdConfig(**given)


def test_every_budget_of_a_curve_is_an_attack_of_its_own() -> None:
    config = PgdConfig(epsilon=8, curve=(16.0, 2.0, 8.0))
    assert [one.epsilon for one in config.each_budget()] == [2, 8, 16]
    assert all(one.curve == () for one in config.each_budget())
