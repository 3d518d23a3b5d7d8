"""Keeps what ModelOpt and TensorRT-RTX print away from the terminal; they have no switch of their own for that."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class _LogWriter(io.TextIOBase):
    """Turns what is printed into debug messages."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.debug("%s", text.rstrip())
        return len(text)


@contextlib.contextmanager
def quiet_modelopt() -> Iterator[None]:
    """Sends ModelOpt's output to the debug log while the context is open.

    What is covered: prints, bars and warnings of its PyTorch and ONNX parts, and the log handlers that the latter
    sets up on standard output.
    """
    root, null = logging.getLogger(), logging.NullHandler()
    # Without a handler, its logging.warning() would set up one on stderr for the whole process.
    root.addHandler(null)
    foreign = logging.getLogger("modelopt.onnx")
    try:
        with (
            contextlib.redirect_stdout(_LogWriter()),
            contextlib.redirect_stderr(_LogWriter()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            with _no_calibration_bar():
                yield
    finally:
        foreign.handlers.clear()
        root.removeHandler(null)


@contextlib.contextmanager
def quiet_native() -> Iterator[None]:
    """Sends what a native library writes to standard error to the debug log while the context is open."""
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
                file.seek(0)
                for line in dict.fromkeys(file.read().decode(errors="replace").splitlines()):
                    logger.debug("%s", line)
    finally:
        os.close(kept)


@contextlib.contextmanager
def _no_calibration_bar() -> Iterator[None]:
    try:
        from modelopt.onnx.quantization import ort_patching  # type: ignore[import-untyped]  # ships none
    except ImportError:  # its ONNX part is not installed
        yield
        return
    bar = ort_patching.tqdm
    ort_patching.tqdm = functools.partial(bar, disable=True)  # a bar per batch, without a switch
    try:
        yield
    finally:
        ort_patching.tqdm = bar
