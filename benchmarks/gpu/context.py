"""What every part of the GPU benchmark is given: its settings, the time that is left, and its results' file.

Only the standard library is used, so that the parts which need nothing else run on any Python.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("install", "probe", "tests", "served", "engines", "training", "gradients", "sanitizer", "table")
"""In the order in which they run: each needs those before it, or says which."""

ARCHS = ("resnet50", "resnet18", "resnet101")
"""The networks, in the order of their importance."""
PRECISIONS = ("int8", "fp8", "fp16", "fp32")
"""Of the engines; fp32 may compute in TensorFloat-32, the rest of int8 and fp8 is fp16."""
IMAGE_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class Context:
    """Settings of one run of the benchmark, the same in every process of it."""

    out: Path
    """Receives the results."""
    work: Path
    """Kept between runs on one machine: what was installed, engines, and the results so far."""
    carried: Path
    """Where the parts of `make gpu-pack` are."""
    deadline: float
    """`time.monotonic` at which the run shall have ended."""
    kind: str = "auto"
    """The engine kind; `auto` takes the first that runs, TensorRT before TensorRT-RTX."""
    archs: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    rounds: int = 3
    """Each contender is measured so many times, in turn with the others."""
    seconds: float = 0.3
    """Length of one measurement."""
    compiled: bool = True
    """Measure torch.compile too; a minute or more per network and batch."""
    device: str = "cuda"
    """PyTorch's device; the tests take the CPU."""
    image_size: int = IMAGE_SIZE

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def to_json(self) -> str:
        """The settings as a child process takes them."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Context:
        """The settings that a parent process gave."""
        given = json.loads(text)
        for name in ("out", "work", "carried"):
            given[name] = Path(given[name])
        for name in ("archs", "batches", "precisions"):
            given[name] = tuple(given[name])
        return cls(**given)


class Results:
    """One part's file: rows by key, written after each of them, so that nothing measured is lost.

    It lies in the work folder, from which the next run on this machine goes on, and a copy in the output folder.
    """

    def __init__(self, context: Context, part: str) -> None:
        """Open the file of a part, as far as an earlier run on this machine came."""
        self.name = f"{part}.json"
        self._context = context
        self.content: dict[str, Any] = read(context, part) or {"part": part, "rows": {}}

    def begin(self, **about: Any) -> None:
        """Write down when and by what settings the part runs now."""
        attempt = self.content.pop("attempt", None)
        if attempt is not None and self.content.get("state") in ("failed", "running"):
            # Tried again it would end the same way, and no later row would ever be measured.
            ended = f"the process ended in this row: {self.content.get('reason') or 'no reason given'}"
            self.content["rows"][attempt] = {"error": ended, "crashed": True}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.content |= {"state": "running", "reason": None, "date": now, **about}
        self.write()

    def attempt(self, key: str) -> None:
        """Say which row is measured next: if the process ends in it, the next one leaves it out."""
        self.content["attempt"] = key
        self.write()

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a row and write the file."""
        self.content["rows"][key] = dict(row)
        self.content.pop("attempt", None)
        self.write()

    def has(self, key: str) -> bool:
        """Tell whether a row needs no measuring: it was, without an error, or it ended the process."""
        row = self.content["rows"].get(key)
        return row is not None and (row.get("error") is None or bool(row.get("crashed")))

    def end(self, state: str, reason: str | None = None) -> None:
        """Write down how the part ended: complete, stopped, skipped, incomplete or failed, and why."""
        self.content |= {"state": state, "reason": reason}
        self.write()

    def write(self) -> None:
        """Replace the file, here and in the output folder.

        Raises:
            ValueError: A figure is not finite; the file stays as it was.
        """
        text = json.dumps(self.content, indent=1, default=str, allow_nan=False) + "\n"
        kept = self._context.work / "results" / self.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        self._context.out.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(".writing")
        beside.write_text(text)
        os.replace(beside, kept)
        shutil.copyfile(kept, self._context.out / self.name)


def read(context: Context, part: str) -> dict[str, Any] | None:
    """A part's results on this machine, whenever it ran; None when it did not."""
    return read_file(context.work / "results" / f"{part}.json")


def read_file(path: Path) -> dict[str, Any] | None:
    """A results file, None without a whole one."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content
