"""Differential attack: an image that the attacked model misjudges and a reference model still gets right.

It hunts for what compression changed, and says nothing of robustness: most of what fools the one fools the other.

Related: Xie et al., "DiffChaser: detecting disagreements for deep neural networks", IJCAI 2019, which searches
without gradients and without a budget; DIVA, see `ascent.climb_between`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from temper.client.robustness.attacks.transfer import Made, load_surrogates, send_turns
from temper.client.robustness.base import OWN, REFERENCE, AttackConfig, AttackKind, Harness
from temper.client.scores import Int64Array, UInt8Array


@dataclass(frozen=True, kw_only=True)
class DifferentialConfig(AttackConfig):
    """Search for images that a variant misjudges and a reference does not."""

    name: Literal["differential"] = "differential"
    norm: Literal["linf", "l2"] = "linf"
    reference: str = ""
    """In a recipe, the variant that shall still be right; the first one when not given. It is not attacked itself.
    Elsewhere, a second model of the same server."""
    surrogates: tuple[str, ...] = (OWN, REFERENCE)
    """The two networks whose gradients are followed: that of the attacked model and that of the reference. In a
    recipe: "own", the graph that the attacked variant's engine was made from; "reference", the reference's; a
    variant's name, its graph; "a+b", the mean of their logits. Elsewhere: an ONNX file."""
    max_queries: int = 4
    """Images sent per image at most, each from another random start."""
    steps: int = 40
    """Steps along the gradient for each of them."""

    def __post_init__(self) -> None:
        """Check the surrogates and the steps as well.

        Raises:
            ValueError: a field is out of its range.
        """
        super().__post_init__()
        if len(self.surrogates) != 2 or not all(self.surrogates):
            raise ValueError(
                f"surrogates: got {len(self.surrogates)}, expected two: the attacked model's and the reference's"
            )
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")


async def search(harness: Harness, todo: Int64Array) -> None:
    """Make images between the two networks and send them.

    Raises:
        ClientError: PyTorch or onnx is missing, or a surrogate does not fit.
    """
    config = harness.config
    assert isinstance(config, DifferentialConfig)
    own, reference = await load_surrogates(harness, todo, [harness.surrogates[name] for name in config.surrogates])

    def make(images: UInt8Array, labels: Int64Array, indices: Int64Array, turn: int) -> Made:
        from temper.client.robustness.ascent import climb_between

        return climb_between(own, reference, images, labels, indices, turn, config=config, steps=config.steps)

    await send_turns(harness, todo, make)


DIFFERENTIAL = AttackKind(
    about="Differential: right for a reference model, wrong for this one, between the gradients of both",
    config=DifferentialConfig,
    sees="surrogate",
    compares=True,
    run=search,
    libraries=("kornia", "torch"),
)
