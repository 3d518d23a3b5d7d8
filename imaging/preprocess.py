"""From an image of any size to what a network takes: said once, and read by training, client and server alike.

The geometry makes uint8 pixels of a decoded image, before the wire (`fit.py`); scale, mean and std are computed in
the engine.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

Size = int | tuple[int, int]
"""Of an image, in pixels: height and width, or one number for a square."""
Resize = int | tuple[int, int] | Literal["none"] | None
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Colour = Literal["rgb", "bgr"]
CropMargin = Literal["round", "floor"]
Triple = tuple[float, float, float]

INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
PREPROCESSING = "preprocessing"
"""The parameter of config.pbtxt that says it."""
MAX_SIDE = 4096
"""The largest side that an image is resized to, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes what a network takes.

    Attributes:
        height: Height of the pixels that the model takes.
        width: Their width; so much is cut out of the centre of the resized image, black where it is smaller.
        resize: What the image is resized to first: its shorter side as a number, or exactly (height, width), or
            "none"; None is the smallest size of its own aspect that covers height x width.
        interpolation: The filter.
        crop_margin: How half of an odd margin around what is cut out becomes whole: "round", half to even, as
            torchvision does; or "floor", as transformers' processors do.
        antialias: Whether the filter grows as an image is made smaller, as Pillow's always does; false makes
            "nearest" take the pixel at the start of each step, as PyTorch and OpenCV do, and not at its middle.
        upright: Whether the rotation that a camera wrote into the EXIF is applied.
        colour: The order of the channels that the network takes; the wire is RGB in any case.
        scale: What white is before mean and std: 1.0, or 255.0 for pixels as they are.
        mean: Subtracted, per channel in the order of `colour`, on that scale.
        std: Divided by.
    """

    height: int
    width: int
    resize: Resize = None
    crop_margin: CropMargin = "round"
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    upright: bool = True
    colour: Colour = "rgb"
    scale: float = 1.0
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: The text begins with the field.
        """
        if not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in (self.height, self.width)):
            raise ValueError(
                f"height, width: got {self.height!r} x {self.width!r}, expected 1 to {MAX_SIDE} pixels"
            )
        if self.resize not in (None, "none"):
            sides = self.resize if isinstance(self.resize, tuple) else (self.resize,)
            num = 2 if isinstance(self.resize, tuple) else 1
            if len(sides) != num or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides):
                raise ValueError(f'resize: got {self.resize!r}, expected 1 to {MAX_SIDE} pixels or "none"')
        for field, allowed in (("crop_margin", CropMargin), ("interpolation", Interpolation), ("colour", Colour)):
            if (got := getattr(self, field)) not in get_args(allowed):
                raise ValueError(f"{field}: got {got!r}, expected one of {', '.join(get_args(allowed))}")
        if not self.antialias and self.interpolation == "lanczos":
            raise ValueError(
                "antialias: got false with lanczos, expected bilinear or bicubic, as PyTorch has them"
            )
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale: got {self.scale}, expected a positive number: 1.0, or 255.0")
        if len(self.mean) != 3 or not all(math.isfinite(value) for value in self.mean):
            raise ValueError(
                f"mean: got {self.mean}, expected three finite numbers on the scale of 0 to {self.scale:g}"
            )
        if len(self.std) != 3 or not all(0 < value < math.inf for value in self.std):
            raise ValueError(
                f"std: got {self.std}, expected three positive numbers on the scale of 0 to {self.scale:g}"
            )

    @property
    def normalization(self) -> tuple[Triple, Triple]:
        """Mean and std in RGB for pixels on a scale of 0 to 1: `scale` and `colour` are folded into them."""
        mean = tuple(value / self.scale for value in self.mean)
        std = tuple(value / self.scale for value in self.std)
        if self.colour == "bgr":
            mean, std = mean[::-1], std[::-1]
        return cast("Triple", mean), cast("Triple", std)

    def render(self) -> str:
        """Returns it as JSON, as config.pbtxt has it."""
        return json.dumps(dataclasses.asdict(self))


def read_preprocessing(text: str) -> Preprocessing:
    """Reads what `Preprocessing.render` wrote; a key that is not known is passed over, as of a later version.

    Raises:
        ValueError: It is something else.
    """
    try:
        found = json.loads(text)
        known = {field.name for field in dataclasses.fields(Preprocessing)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if key in known
        }
        return Preprocessing(**values)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"preprocessing: got {text[:200]!r}, expected what Temper writes ({error})") from error


def sides(size: Size) -> tuple[int, int]:
    """Returns height and width."""
    return (size, size) if isinstance(size, int) else size


def covering(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """Returns the smallest width and height of the same aspect that cover what the model takes."""
    width, height = size
    if how.height * width >= how.width * height:  # the height is what falls short
        return int(how.height * width / height), how.height
    return how.width, int(how.width * height / width)
