"""What is finished of an attack, or another measurement, as JSON lines: it goes on where it was interrupted."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from temper.client.errors import ClientError
from temper.client.scores import Int64Array, UInt8Array

if TYPE_CHECKING:
    from temper.client.robustness.base import AttackConfig, Network

Say = Callable[[str], None]
FILE_NAME = "finished.jsonl"
FORMAT = 7
"""Raised when the lines change, or what they mean."""


class Checkpoint:
    """One file: a header that says which measurement it belongs to, then one line per finished part, as an image.

    Every line is flushed, so a killed process loses only what it had not finished; a last line cut short is
    dropped. The images' own random streams make the resumed attack equal to an uninterrupted one. The file is
    locked: two measurements never write the same one.
    """

    def __init__(self, path: Path, header: dict[str, Any], what: str = "attack") -> None:
        """Open or start the file.

        Args:
            path: the file.
            header: what the outcome depends on.
            what: names the measurement in messages.

        Raises:
            ValueError: the file belongs to another one, is being written by one, or is no checkpoint.
            OSError: it cannot be written.
        """
        self.path = path
        self._what = what
        self.entries: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            kept = self._read(header)
            self._file.truncate(kept)
        except BaseException:
            self._file.close()
            raise
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
        """Write one line.

        Raises:
            ClientError: there is no room for it.
        """
        try:
            self._file.write(json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise ClientError(f"{self.path}: cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Delete the file, and its folder when nothing else is in it."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()

    def _read(self, header: dict[str, Any]) -> int:
        """Lock the file, fill `entries` and return how many bytes of it are whole lines."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path}: another {self._what} is writing it; "
                f"wait for that one, or give this {self._what} its own file"
            ) from error
        self._file.seek(0)
        content = self._file.read()
        kept = content.rfind(b"\n") + 1
        if not kept:
            return 0
        try:
            found, *self.entries = (json.loads(line) for line in content[:kept].splitlines())
        except ValueError as error:
            raise ValueError(
                f"{self.path}: not an {self._what}'s checkpoint ({error}); delete it to start anew"
            ) from error
        if found != header:
            differing = sorted(
                key for key in header if not isinstance(found, dict) or found.get(key) != header[key]
            )
            raise ValueError(
                f"{self.path}: belongs to another {self._what} (differs in {', '.join(differing)}); "
                f"delete it to start anew, or give this {self._what} its own file"
            )
        return kept


def open_checkpoint(
    file: Path | None,
    folder: Path | None,
    header: dict[str, Any],
    say: Say | None,
    what: str = "attack",
    parts: str = "images",
) -> Checkpoint | None:
    """Return the checkpoint of a measurement; None where no file can be written in `folder`.

    Args:
        file: the checkpoint.
        folder: of such files, when `file` is not given: the measurement finds its own by its header.
        header: as of `Checkpoint`.
        say: called with one line when something is finished already, or nothing can be kept.
        what: as of `Checkpoint`.
        parts: names what is finished one by one.

    Raises:
        ValueError: as of `Checkpoint`, or `file` cannot be written.
    """
    say = say or _quiet
    assert file or folder
    try:
        log = Checkpoint(file or checkpoint_path(folder or Path(), header), header, what)
    except OSError as error:
        text = f"{file or folder}: cannot be written: {error.strerror}"
        if file:
            raise ValueError(text) from error
        say(f"{text}; an {what} that is interrupted starts anew")
        return None
    if log.entries:
        say(f"going on from {log.path}: {len(log.entries):,} {parts} are finished")
    return log


def _quiet(line: str) -> None:
    """Says nothing."""


def checkpoint_path(folder: Path, header: dict[str, Any]) -> Path:
    """Return the file in `folder` that is this attack's own."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    return folder / digest[:16] / FILE_NAME


def build_header(
    config: AttackConfig,
    images: UInt8Array,
    labels: Int64Array,
    indices: Int64Array,
    answers: Int64Array | None,
    endpoint: str,
    surrogates: Mapping[str, Sequence[Network]],
) -> dict[str, Any]:
    """Return what an attack's outcome depends on; batch size and concurrency are not among it.

    Args:
        config: the attack.
        images: uint8 [N, H, W, 3].
        labels: int64 [N].
        indices: which of them are attacked; these are read whole.
        answers: int64 [n], the endpoint's classes of those before the attack: they tell it from another one that
            was put in its place, under its name; then those of the reference, where there is one. None of one that
            draws them at random.
        endpoint: name of what is attacked.
        surrogates: the networks whose gradients are followed, by name.
    """
    header = {
        key: value for key, value in asdict(config).items() if key not in ("batch_size", "concurrency", "curve")
    }
    files = {
        name: [[hashlib.sha256(one.path.read_bytes()).hexdigest(), one.defend] for one in networks]
        for name, networks in surrogates.items()
    }
    return {
        "format": FORMAT,
        **header,
        "surrogates": files,
        **describe_target(images, labels, indices, answers, endpoint),
    }


def describe_target(
    images: UInt8Array, labels: Int64Array, indices: Int64Array, answers: Int64Array | None, endpoint: str
) -> dict[str, Any]:
    """Return what of a header is of the images and the endpoint; see `build_header`."""
    digest = hashlib.sha256(labels.tobytes())
    for index in indices.tolist():
        digest.update(np.ascontiguousarray(images[index]).tobytes())
    return {
        "endpoint": endpoint,
        "answers": None if answers is None else hashlib.sha256(answers.tobytes()).hexdigest(),
        "images": list(images.shape),
        "digest": digest.hexdigest(),
    }


def pack_image(image: UInt8Array) -> str:
    """Return an image as text for JSON."""
    return base64.b64encode(zlib.compress(image.tobytes(), 1)).decode()


def unpack_image(text: str, shape: tuple[int, ...]) -> UInt8Array:
    """Return the uint8 image of this shape that `pack_image` wrote."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(shape)
