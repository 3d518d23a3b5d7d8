"""What a file is that is not what its name says, from its first bytes."""

from __future__ import annotations

_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself, which `git lfs pull` fetches"),
    (b"/annex/objects/", "a git-annex pointer and not the file itself, which `git annex get` fetches"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop document"),
)
_BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image", b"heic": "a HEIC image", b"mif1": "a HEIC image"}
_TAR_MAGIC = slice(257, 262)


def name_content(head: bytes) -> str | None:
    """Returns what a file most likely is, to follow "is"; None when its first bytes do not say.

    Args:
        head: The first bytes, 512 or more where there are so many.
    """
    if not head:
        return "empty"
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[_TAR_MAGIC] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video")
    if is_safetensors(head):
        return "a safetensors file"
    if is_onnx(head):
        return "an ONNX model"
    return _name_text(head)


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors do: the header's length in 8 bytes, then JSON."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 40


def is_onnx(head: bytes) -> bool:
    """Whether a file begins as ONNX models do: protobuf's ir_version, then the producer, graph or opset."""
    return len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 64 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)


def _name_text(head: bytes) -> str | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return "a web page, perhaps what a download got in place of the file"
    if start.startswith(b"<svg") or b"<svg" in start and start.startswith(b"<?xml"):
        return "an SVG drawing"
    if start.startswith(b"<?xml"):
        return "an XML document, perhaps what a download got in place of the file"
    if start.startswith((b"{", b"[")):
        return "JSON text, perhaps what a download got in place of the file"
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\n\r\f\b\x1b" for byte in head):
        try:
            head.decode()
        except UnicodeDecodeError as error:
            return "text" if error.start > len(head) - 4 else None
        return "text"
    return None
