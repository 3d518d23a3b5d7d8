"""What may stand before a model in an ensemble: the recipe's `defend`, which backends/temper_defence reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class JpegConfig:
    """JPEG compression, and back."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    quality: int = 75
    """Of the JPEG, 1 to 95; the less, the more is lost."""

    def __post_init__(self) -> None:
        """Checks the quality.

        Raises:
            ValueError: It is out of its range.
        """
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality: got {self.quality}, expected 1 to 95")


@dataclass(frozen=True, kw_only=True)
class BitDepthConfig:
    """Fewer levels of every colour."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    bits: int = 4
    """Bits that are left of every value, 1 to 7."""

    def __post_init__(self) -> None:
        """Checks the bits.

        Raises:
            ValueError: They are out of their range.
        """
        if not 1 <= self.bits <= 7:
            raise ValueError(f"bits: got {self.bits}, expected 1 to 7, as images have 8")


@dataclass(frozen=True, kw_only=True)
class RandomResizeConfig:
    """The image made smaller at random, at a random place on black: new draws for every image of every request."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    smallest: float = 0.8
    """The smallest size, as a share of the image's; all sizes between are as likely."""

    def __post_init__(self) -> None:
        """Checks the share.

        Raises:
            ValueError: It is out of its range.
        """
        if not 0 < self.smallest < 1:
            raise ValueError(f"smallest: got {self.smallest:g}, expected a share between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Defence:
    """One defence before the members of an ensemble; a table with exactly one key, for example `jpeg`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    jpeg: JpegConfig | None = None
    """JPEG compression, and back."""
    bit_depth: BitDepthConfig | None = None
    """Fewer levels of every colour."""
    random_resize: RandomResizeConfig | None = None
    """The image made smaller at random, at a random place on black: new draws for every image of every request.
    Attack it with `expectation`."""

    def __post_init__(self) -> None:
        """Checks that it is one defence.

        Raises:
            ValueError: It is none, or several.
        """
        if len(given := self.to_json()) != 1:
            found = " and ".join(given) or "nothing"
            raise ValueError(
                f"{next(iter(given), 'jpeg')}: got {found} in one defence, expected exactly one of "
                f"{', '.join(field.name for field in fields(self))}, as in {{ jpeg = {{ quality = 75 }} }}"
            )

    @property
    def is_random(self) -> bool:
        """Whether it answers one image differently each time."""
        return self.random_resize is not None

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON: its settings under its name."""
        return {name: settings for name, settings in asdict(self).items() if settings is not None}


def render_defences(defences: Sequence[Defence]) -> str:
    """Returns what config.pbtxt's parameter `defend` says; empty for none."""
    return json.dumps([one.to_json() for one in defences]) if defences else ""


def describe_defences(defences: Sequence[Defence]) -> str:
    """Returns them in words, in order: `jpeg (quality 75), bit_depth (bits 4)`."""
    return ", ".join(
        f"{name} ({', '.join(f'{key} {value:g}' for key, value in settings.items())})"
        for one in defences
        for name, settings in one.to_json().items()
    )
