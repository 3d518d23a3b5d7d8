"""Finished images of an attack as JSON lines, so that an interrupted attack goes on where it was."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from client.robustness.base import AttackConfig
from client.scores import Int64Array, UInt8Array

FORMAT = 2
"""Raised when the lines change, or what they mean."""


class Checkpoint:
    """One file: a header that says which attack it belongs to, then one line per finished image.

    Every line is flushed, so a killed process loses only the images it had not finished; a last line cut short is
    dropped. The images' own random streams make the resumed attack equal to an uninterrupted one.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Open or start the file.

        Raises:
            ValueError: the file belongs to another attack, or is no checkpoint.
        """
        self.path = path
        self.entries: list[dict[str, Any]] = []
        kept = self._read(header)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if kept else "w+b")
        self._file.seek(kept)
        self._file.truncate()
        if not kept:
            self.append(header)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def append(self, entry: dict[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def _read(self, header: dict[str, Any]) -> int:
        """Fill `entries` and return how many bytes of the file are whole lines."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        kept = content.rfind(b"\n") + 1
        if not kept:
            return 0
        try:
            found, *self.entries = (json.loads(line) for line in content[:kept].splitlines())
        except ValueError as error:
            raise ValueError(
                f"{self.path}: not an attack's checkpoint ({error}); delete it to start anew"
            ) from error
        if found != header:
            differing = sorted(
                key for key in header if not isinstance(found, dict) or found.get(key) != header[key]
            )
            raise ValueError(
                f"{self.path}: belongs to another attack (differs in {', '.join(differing)}); "
                "delete it to start anew, or give this attack its own file"
            )
        return kept


def build_header(config: AttackConfig, images: UInt8Array, labels: Int64Array, endpoint: str) -> dict[str, Any]:
    """Return what an attack's outcome depends on; batch size and concurrency are not among it."""
    header = {key: value for key, value in asdict(config).items() if key not in ("batch_size", "concurrency")}
    # The first image stands for all of them: hashing a data set of gigabytes would cost more than it catches.
    digest = hashlib.sha256(labels.tobytes())
    digest.update(np.ascontiguousarray(images[0]).tobytes())
    return {
        "format": FORMAT,
        **header,
        "endpoint": endpoint,
        "images": list(images.shape),
        "digest": digest.hexdigest(),
    }


def pack_image(image: UInt8Array) -> str:
    """Return an image as text for JSON."""
    return base64.b64encode(zlib.compress(image.tobytes(), 1)).decode()


def unpack_image(text: str, shape: tuple[int, ...]) -> UInt8Array:
    """Return the uint8 image of this shape that `pack_image` wrote."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(shape)
