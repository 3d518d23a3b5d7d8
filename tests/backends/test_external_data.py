"""What counts as weights in another file, however the ONNX file is encoded."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from external_data import keeps_weights_outside

# TensorProto.data_location = EXTERNAL: as any writer has it, and with a tag and a value longer than they need be.
PLAIN = b"\x70\x01"
LONG_TAG = b"\xf0\x80\x80\x80\x00\x01"
LONG_VALUE = b"\x70\x81\x80\x00"
IN_A_GROUP = b"\xa3\x06\xa4\x06" + PLAIN
# TensorProto.external_data with the key "location", whose length takes two bytes.
LOCATION = b"\x6a\x10\x0a\x88\x00location\x12\x03abc"


def field(number: int, content: bytes, long: bool) -> bytes:
    """A field of bytes; a long one has a length in one byte more than it needs."""
    tag = bytes([number << 3 | 2]) if number < 16 else bytes([number << 3 & 0x7F | 0x82, number >> 4])
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return tag + length + (bytes([size | 0x80, 0]) if long else bytes([size])) + content


def model(tensor: bytes, *path: int, long: bool) -> bytes:
    for number in reversed(path):
        tensor = field(number, tensor, long)
    return tensor


@pytest.mark.parametrize("long", [False, True], ids=["plain", "long"])
@pytest.mark.parametrize(
    "path",
    [
        (7, 5),
        (7, 15, 1),
        (7, 15, 2),
        (7, 1, 5, 5),
        (7, 1, 5, 10),
        (7, 1, 5, 6, 5),
        (7, 1, 5, 22, 1),
        (25, 7, 5, 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("ending", [PLAIN, LONG_TAG, LONG_VALUE, IN_A_GROUP, LOCATION])
def test_weights_outside_are_found(path: tuple[int, ...], ending: bytes, long: bool) -> None:
    tensor = TensorProto(dims=[1], data_type=1, name="w", raw_data=bytes(300)).SerializeToString()
    content = model(tensor + ending, *path, long=long)
    parsed = str(ModelProto.FromString(content))
    assert "EXTERNAL" in parsed or "location" in parsed, "onnx reads it otherwise"
    assert keeps_weights_outside(content)
    assert not keeps_weights_outside(model(tensor + b"\x70\x00", *path, long=long))


def test_names_and_constants_are_no_weights_outside() -> None:
    text = "\n\blocation"
    node = helper.make_node("Constant", [], [text], name=text, value=helper.make_tensor("w", 1, [2], [1.0, 2.0]))
    content = helper.make_model(helper.make_graph([node], text, [], [])).SerializeToString()
    assert text.encode() in content
    assert not keeps_weights_outside(content)


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", b"\x3a\xff", b"\xff" * 100, b"<net/>"])
def test_what_is_no_onnx_is_left_to_the_reader(content: bytes) -> None:
    assert not keeps_weights_outside(content)


def test_branch_that_breaks_off_hides_no_other() -> None:
    tensor = helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0]).SerializeToString() + PLAIN
    assert keeps_weights_outside(model(tensor, 7, 5, long=False) + field(25, b"\x0b\xff", False))
