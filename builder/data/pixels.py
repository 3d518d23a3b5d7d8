"""What an image is made into before the network: the keys of `[data]` that say how it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from temper.imaging.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Colour,
    Interpolation,
    Preprocessing,
    Size,
    Triple,
    sides,
)

# What each library's usual evaluation does to a photo, but for its sizes.
_PRESETS: dict[str, dict[str, Any]] = {
    "torchvision": {"interpolation": "bilinear", "upright": False},
    "timm": {"interpolation": "bicubic", "upright": False},
    "huggingface": {"interpolation": "bicubic", "upright": True, "crop_margin": "floor"},
}
# All three resize the shorter side to 256 for 224 unless a checkpoint's own settings say otherwise.
_CROP_SHARE = 0.875


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """What an image is made into before the network."""

    preset: Literal["torchvision", "timm", "huggingface"] | None = None
    """What the usual evaluation of a library does to a photo: the shorter side is resized to `image_size` / 0.875
    (256 for 224), `bilinear` for torchvision and `bicubic` for timm and Hugging Face's ResNets; the first two do
    not read the EXIF rotation, and the last rounds the margin of the crop down. Keys that are given beside it win.
    An `image_size` that is no square needs `resize` beside it. Without a preset, the image is resized until it
    covers `image_size`."""
    image_size: Size = 224
    """Height and width in pixels, or `[height, width]`: what is cut out of the centre of the resized image."""
    resize: int | tuple[int, int] | Literal["none"] | None = None
    """What an image is resized to before: its shorter side in pixels, `[height, width]` whatever its aspect, or
    `"none"`. As `preset` says when not given."""
    interpolation: Interpolation | None = None
    """The filter that resizes; `bilinear` when neither this nor a preset is given."""
    antialias: bool = True
    """Whether the filter grows as an image is made smaller, as Pillow's does. `false` is what OpenCV does, and
    PyTorch's `interpolate`; their `nearest` takes another pixel than Pillow's, too."""
    upright: bool | None = None
    """Whether the rotation that a camera wrote into the EXIF is applied; `true` when neither this nor a preset is
    given."""
    colour: Colour = "rgb"
    """The order of the channels that the network was trained with; `bgr` of Caffe's and many of OpenCV's users.
    What is sent to the server is RGB in any case."""
    scale: float = 1.0
    """What white is before `mean` and `std`: `1.0`, or `255.0` for a network that was trained on pixels as they
    are."""
    mean: Triple | None = None
    """Mean per channel, in the order of `colour` and on the scale of 0 to `scale`; ImageNet's when not given."""
    std: Triple | None = None
    """Standard deviation per channel, likewise; ImageNet's when not given."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if not all(32 <= side <= 1024 for side in sides(self.image_size)):
            raise ValueError(f"image_size: got {self.image_size}, expected 32 to 1024 pixels")
        height, width = sides(self.image_size)
        if self.preset is not None and self.resize is None and height != width:
            raise ValueError(
                f"preset: got {self.preset} for {height} x {width} pixels, expected a square, as it resizes the "
                "shorter side; give resize beside it, or leave preset out"
            )
        if self.mean is not None and max(self.mean) > self.scale:
            raise ValueError(
                f"mean: got {self.mean} on a scale of 0 to {self.scale:g}, expected at most {self.scale:g}; set "
                "scale = 255.0 where mean and std are of pixels as they are"
            )
        _ = self.preprocessing

    @property
    def preprocessing(self) -> Preprocessing:
        """All of it, the preset's part included."""
        height, width = sides(self.image_size)
        usual = _PRESETS.get(self.preset or "", {})
        resize = int(height / _CROP_SHARE) if usual and self.resize is None else self.resize
        given = {name: getattr(self, name) for name in ("interpolation", "upright", "mean", "std")}
        return Preprocessing(
            height=height,
            width=width,
            resize=resize,
            antialias=self.antialias,
            colour=self.colour,
            scale=self.scale,
            **{
                **usual,
                "mean": self._scaled(IMAGENET_MEAN),
                "std": self._scaled(IMAGENET_STD),
                **{name: value for name, value in given.items() if value is not None},
            },
        )

    def _scaled(self, triple: Triple) -> Triple:
        """A triple in RGB on a scale of 0 to 1, as the network takes it."""
        red, green, blue = (value * self.scale for value in triple)
        return (red, green, blue) if self.colour == "rgb" else (blue, green, red)

    @property
    def normalization(self) -> tuple[Triple, Triple]:
        """Mean and std in RGB for pixels on a scale of 0 to 1."""
        return self.preprocessing.normalization
