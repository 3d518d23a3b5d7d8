"""What is looked into, and on how many images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

Part = Literal["blame", "representation", "features", "attributions"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """A look into the network and what compression did to it, on a page of its own; a sweep takes none."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    parts: tuple[Part, ...] = PARTS
    """`blame`: which layers a quantised variant's loss comes from. `representation`: what every block of
    every variant knows, and how alike they are. `features`: which of the last features matter. `attributions`:
    where two variants look that answer differently. The default asks an ONNX file for no `features`, which need
    the head in PyTorch."""
    num_images: int = 512
    """Test images, at most, spread evenly over all; and training images that layers are ranked on, at most,
    of the `num_train`."""
    num_train: int = 1000
    """Training images, at most: linear probes and the heads of selected features learn from them."""
    num_attributions: int = 6
    """Images of each variant, at most, whose attributions are drawn: it answers them otherwise than its
    baseline."""
    seed: int = 0
    """Decides whatever is drawn."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if not self.parts or set(self.parts) - set(PARTS) or len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts: got {list(self.parts)}, expected some of {', '.join(PARTS)}, each once")
        for name, low in (("num_images", 4), ("num_train", 4), ("num_attributions", 0), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected {low} or more")
