"""What a server answers to the pictures as a client prepares them, whatever the shape of its one image input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.client.client import Client
from temper.client.model import DTYPES, ModelInfo
from temper.imaging.errors import show
from temper.run.diagnose.errors import DiagnoseError
from temper.run.diagnose.pipeline import Picture, Pipeline, fit, normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BATCH = 8
"""The most images that are sent as one request: batch statistics, where there are any, are then of so many."""
_CHANNELS = 3


@dataclass(frozen=True)
class Wire:
    """The image input of a model."""

    height: int | None
    """In pixels; None where the server leaves it open."""
    width: int | None
    """In pixels; None where the server leaves it open."""
    channels_first: bool
    """[3, H, W]; else [H, W, 3]."""
    block: int
    """Images in a request, of a model whose shape has the batch in it; 0 of all others."""
    batch: int
    """Images that are sent as one request."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, where both are fixed."""
        return None if self.height is None or self.width is None else (self.height, self.width)


def read_wire(info: ModelInfo) -> Wire:
    """Reads the input of a model.

    Raises:
        DiagnoseError: It is no image of three channels in UINT8, FP32, FP16 or FP64.
    """
    shape = info.image_shape
    is_whole = len(shape) == 4 and info.max_batch_size == 0
    dims = shape[1:] if is_whole else shape
    places = [place for place in (0, 2) if len(dims) == 3 and dims[place] == _CHANNELS]
    if not places or info.input_dtype not in ("UINT8", "FP32", "FP16", "FP64"):
        raise DiagnoseError(
            f"model {info.name}: takes {info.input_dtype} {list(shape)}, expected UINT8, FP32 or FP16 images "
            "[3, height, width] or [height, width, 3]"
        )
    first = places[0] == 0
    height, width = (size if size > 0 else None for size in (dims[1:] if first else dims[:2]))
    block = (shape[0] if shape[0] > 0 else MAX_BATCH) if is_whole else 0
    return Wire(height, width, first, block, block or max(1, min(MAX_BATCH, info.max_batch_size)))


def ask(
    client: Client,
    info: ModelInfo,
    wire: Wire,
    pictures: Sequence[Picture],
    sent: Pipeline,
    progress: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """Returns the served scores [N, classes], one request at a time, so that each is a batch of its own.

    Raises:
        ClientError: The server does not answer, or otherwise than it says.
        DiagnoseError: The answer is no vector of scores for each image.
    """
    images = encode(info, wire, np.stack([fit(one, sent) for one in pictures]), sent)
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(images), wire.batch):
        batch = images[start : start + wire.batch]
        count = len(batch)
        if wire.block:
            missing = wire.block - count if info.image_shape[0] > 0 else 0
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])[None]
        answer = client.infer(info.name, batch, version=info.version)
        parts.append((answer[0] if wire.block else answer)[:count])
        progress(min(start + wire.batch, len(images)), len(images))
    scores = np.concatenate(parts)
    if scores.ndim != 2 or scores.shape[1] < 2:
        more = f"; of its {info.num_outputs} outputs only the first is asked for" if info.num_outputs > 1 else ""
        raise DiagnoseError(
            f"model {info.name}: {info.output_name} is {info.output_dtype} {list(scores.shape[1:])} an image, "
            f"expected one score per class{more}; or give the scores that your own client gets as --answers"
        )
    return scores


def encode(info: ModelInfo, wire: Wire, images: NDArray[np.uint8], sent: Pipeline) -> NDArray[Any]:
    """Returns fitted images, uint8 [N, H, W, 3], in the type and layout that goes over the wire."""
    if info.input_dtype == "UINT8":
        pixels = images[..., ::-1] if sent.colour == "bgr" else images
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if wire.channels_first else pixels)
    values = normalise(images, sent).astype(DTYPES[info.input_dtype])
    return np.ascontiguousarray(values if wire.channels_first else values.transpose(0, 2, 3, 1))


def read_answers(path: Path, files: Sequence[Path], root: Path) -> NDArray[np.float32]:
    """Reads the scores that a user's own client got, [N, classes], in the order of the files.

    Args:
        path: `.npy`; `.json`: a list of lists, or an object of lists by file name; `.csv`: a row of scores an
            image, with or without a column of file names before them.
        files: The images.
        root: Their folder, to which the names may be relative.

    Raises:
        DiagnoseError: It cannot be read, or does not fit the images.
    """
    try:
        content = _rows(path)
    except FileNotFoundError as error:
        raise DiagnoseError(f"{show(path)}: no such file, expected the scores of the images") from error
    except (OSError, ValueError, UnicodeDecodeError, RecursionError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DiagnoseError(f"{show(path)}: holds no scores that can be read ({reason})") from error
    if isinstance(content, dict):
        content = _by_file(path, content, files, root)
    try:
        scores: NDArray[np.float32] = np.asarray(content, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise DiagnoseError(f"{show(path)}: expected as many numbers for every image") from error
    if scores.ndim != 2 or len(scores) != len(files) or scores.shape[1] < 2:
        raise DiagnoseError(
            f"{show(path)}: holds {list(scores.shape)} scores, expected [{len(files)}, classes]: a row for "
            "each image, in the order of their names"
        )
    if not np.isfinite(scores).all():
        raise DiagnoseError(f"{show(path)}: holds NaN or an infinity, expected numbers")
    return scores


def _rows(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix != ".csv":
        raise ValueError(f"ends in {show(path.suffix)}, expected .npy, .json or .csv")
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not _is_number(rows[0][-1]):
        rows = rows[1:]  # a line of titles
    if rows and not _is_number(rows[0][0]):
        return {row[0]: [float(cell) for cell in row[1:]] for row in rows}
    return [[float(cell) for cell in row] for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_file(path: Path, content: dict[str, Any], files: Sequence[Path], root: Path) -> list[Any]:
    found = []
    for file in files:
        names = (str(file), str(file.relative_to(root)) if file.is_relative_to(root) else file.name, file.name)
        row = next((content[name] for name in names if name in content), None)
        if row is None:
            raise DiagnoseError(f"{show(path)}: has no scores of {show(names[1])}, expected a row for each image")
        found.append(row)
    return found
