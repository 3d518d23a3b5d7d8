"""The builder's errors.

BuilderError
├── DataError       the images or their folder cannot be used
├── ModelError      the architecture, its weights or a checkpoint cannot be used
├── TrainError      training cannot go on
├── CompressError   a compression step cannot do what it is asked for
├── ExportError     the ONNX export failed or does not agree with PyTorch
├── QuantizeError   ModelOpt could not quantise
├── AuditError      the quantised graph breaks a rule; names the node
├── EngineError     no engine of the wanted kind can be built here
├── ExplainError    a network cannot be looked into as asked
├── StoreError      a stage's result cannot be written or read
└── PublishError    the model repository cannot be written

Every message is one line: what came, what was expected, what to do.
"""

from __future__ import annotations

import re

# How ONNX Runtime begins: its own name and numbers, and what it was at.
_RUNTIME = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : (?:Non-zero status code returned while running (\w+) node. Name:('.*?'))?"
)
_MAX_REASON = 200


def reason_of(error: Exception) -> str:
    """Returns what a library says in one printable line; of ONNX Runtime which operator fails."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    if found := _RUNTIME.match(text):
        text = f"its {found[1]} {found[2]} fails" if found[1] else text[found.end() :]
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_REASON]) or type(error).__name__


class BuilderError(Exception):
    """Base of every error that the builder raises on purpose."""


class DataError(BuilderError):
    """The images, labels or their folder cannot be used."""


class ModelError(BuilderError):
    """The architecture, its weights or a checkpoint cannot be used."""


class TrainError(BuilderError):
    """Training cannot go on."""


class CompressError(BuilderError):
    """A step on the PyTorch network cannot meet its budget, or does not fit the network."""


class ExportError(BuilderError):
    """The ONNX export failed, or its outputs differ from PyTorch's."""


class QuantizeError(BuilderError):
    """The model could not be quantised."""


class AuditError(BuilderError):
    """A quantised graph breaks a placement rule; the message names the node."""


class EngineError(BuilderError):
    """An engine of the wanted kind cannot be built on this machine."""


class ExplainError(BuilderError):
    """A network or a graph cannot be looked into as asked."""


class StoreError(BuilderError):
    """The result of a stage cannot be written or read."""


class PublishError(BuilderError):
    """The model repository cannot be written."""
