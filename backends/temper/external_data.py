"""Whether an ONNX file keeps weights in another file, which nobody verified.

Triton's Python has no ONNX, so this walks the protobuf encoding itself: whatever its writer chose (lengths in more
bytes than they need, fields in any order or in parts), a tensor's field is a tensor's field. A message that is no
protobuf is left where it breaks off, as OpenVINO's parser takes none such.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

WEIGHTS_OUTSIDE = "keeps weights in another file, which has no digest; export one file and publish again"

# Where tensors are: the message fields of every message type on the way, by number (onnx.proto).
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
# TensorProto.external_data and .data_location; the latter's 0 is the file itself.
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def keeps_weights_outside(content: bytes) -> bool:
    """Whether a tensor of an ONNX file lies in another file; False also when the content is no ONNX file's."""
    todo = [("model", 0, len(content))]
    while todo:
        kind, begin, end = todo.pop()
        with contextlib.suppress(ValueError, IndexError):
            for number, value, start in _fields(content, begin, end):
                if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
                    return True
                if start is not None and number in _CHILDREN[kind]:
                    todo.append((_CHILDREN[kind][number], start, start + value))
    return False


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yields number, value and None of a message's fields; with bytes, their length and where they begin."""
    while at < end:
        tag, at = _varint(content, at)
        # As C++ reads it, in 32 bits.
        number, wire = (tag & 0xFFFFFFFF) >> 3, tag & 7
        value, start = 0, None
        if wire == 0:
            value, at = _varint(content, at)
        elif wire == 1:
            at += 8
        elif wire == 2:
            value, start = _varint(content, at)
            at = start + value
        elif wire == 5:
            at += 4
        elif wire > 5:
            raise ValueError(wire)
        # A group's fields (3 and 4 are its ends) count as the message's: that refuses too much, never too little.
        if at > end:
            raise ValueError(at)
        yield number, value, start


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(value)
