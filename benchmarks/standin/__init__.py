"""The plugin on a GPU without TensorRT: stand-ins for its Python package and TensorRT-RTX's, and engines for them.

`library/tensorrt.py` says what the stand-in does, and what its figures are not. Nothing here is in the wheel.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.serve import runtime

if TYPE_CHECKING:  # who asks for the name alone may have no numpy
    import numpy as np
    import numpy.typing as npt

LIBRARY = Path(__file__).with_name("library")
NAME = "stand-in"
ENGINE_FILE = "model.plan"


def write_engine(
    folder: Path,
    image_shape: Sequence[int],
    num_classes: int,
    *,
    max_batch: int,
    opt_batch: int,
    work_bytes: int = 0,
    fault_batch: int = 0,
) -> dict[str, Any]:
    """Write an engine of the stand-in.

    Args:
        folder: Receives model.plan; made when missing.
        image_shape: [H, W, 3]; an image must have as many bytes as its logits.
        num_classes: Length of the output.
        max_batch: The largest of the profile.
        opt_batch: The batch that the profile calls best.
        work_bytes: Set once and copied once on the GPU for each image.
        fault_batch: A batch of this size, if it is not padded, ends CUDA's context, as a faulty kernel does.

    Returns:
        What a card says of an engine: kind, file, runtime, size_bytes.
    """
    described = {
        "input": {"name": "image", "shape": list(image_shape)},
        "output": {"name": "logits", "shape": [num_classes]},
        "profile": [1, opt_batch, max_batch],
        "work_bytes": work_bytes,
        "fault_batch": fault_batch,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ENGINE_FILE
    path.write_text(json.dumps(described, indent=1) + "\n")
    about = {"kind": NAME, "file": path.name, "runtime": "stand-in 0.0.0", "size_bytes": path.stat().st_size}
    return about | {"opt_batch": opt_batch, "max_batch": max_batch, "work_bytes": work_bytes}


def expected_logits(images: npt.NDArray[np.uint8], num_classes: int) -> npt.NDArray[np.float32]:
    """Returns the stand-in's logits, float32 [N, classes]: each image's first bytes, every fourth replaced."""
    import numpy as np

    rows = np.ascontiguousarray(images).reshape(len(images), -1)[:, : 4 * num_classes].copy()
    rows[:, 3::4] = 0x3F
    return rows.view(np.float32)


@contextlib.contextmanager
def plugin(folder: Path) -> Iterator[Path]:
    """Inside, the embedded server's plugin finds the stand-ins under the libraries' names; no other process does.

    Args:
        folder: Receives a copy of the plugin with the stand-in beside it.

    Yields:
        The copy's folder of Triton backends.
    """
    own = runtime.BACKENDS
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(own, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(LIBRARY, folder / "temper", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    runtime.BACKENDS = folder
    try:
        yield folder
    finally:
        runtime.BACKENDS = own


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Inside, this process imports the stand-ins under the libraries' names, whatever is installed."""
    names = [path.stem for path in LIBRARY.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(LIBRARY))
    try:
        yield
    finally:
        sys.path.remove(str(LIBRARY))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
