"""Checkpoints: what loads, and the one line for what is something else, damaged, or hostile."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from temper.builder.errors import ModelError
from temper.builder.network.weights import check_weights_file, load_checkpoint

WEIGHTS = {"w": torch.ones(2, 2), "num_batches_tracked": torch.tensor(3)}


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        """Takes the path of the proof."""
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Says what unpickling calls."""
        return (os.mkdir, (str(self.path),))


def save(content: object, **more: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path, **more)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def saved() -> bytes:
    file = io.BytesIO()
    torch.save(WEIGHTS, file)
    return file.getvalue()


def cut(share: float) -> Callable[[Path], object]:
    return raw(saved()[: int(share * len(saved()))])


def header(entries: object, data: bytes = b"") -> Callable[[Path], object]:
    """A safetensors file with this header."""
    packed = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return raw(struct.pack("<Q", len(packed)) + packed + data)


def of_type(dtype: str, num_bytes: int) -> Callable[[Path], object]:
    return header({"w": {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, num_bytes]}}, bytes(num_bytes))


def archive(**files: bytes) -> Callable[[Path], object]:
    """A zip archive as torch.save lays it out, of these files beside its version."""

    def write(path: Path, packing: int = zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile(path, "w", packing) as opened:
            for name, content in {"version": b"3\n", "byteorder": b"little", **files}.items():
                opened.writestr(f"archive/{name.replace('_pkl', '.pkl')}", content)

    return write


def packed(path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved())) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in whole.namelist():
            target.writestr(name, whole.read(name))
        target.writestr("archive/data/9", bytes(1 << 20))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("run/model.pth", saved())


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as target:
        target.addfile(tarfile.TarInfo("model.pth"))


def onnx(path: Path) -> None:
    from onnx import ModelProto

    path.write_bytes(ModelProto(ir_version=8, producer_name="pytorch").SerializeToString())


def itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    return content


def script(path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(layer, torch.ones(1, 2)), path)  # type: ignore[no-untyped-call]


BEYOND = "and was not opened, since that could run any code; where you trust it: python -c .*weights_only=False"
OF_TORCH = "expected a file that torch.save wrote"
OF_SAFETENSORS = "expected a safetensors file"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46830571\n"
OTHER_FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("none.pt", lambda path: None, "none.pt: no such file"),
    ("dangling.pt", lambda path: path.symlink_to("nothing"), "is a link to nothing"),
    ("circle.pt", lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
    (
        "folder.pt",
        lambda path: path.mkdir(),
        "is a folder without model.safetensors or pytorch_model.bin, expected",
    ),
    ("pipe.pt", os.mkfifo, "is no regular file"),
    ("device.pt", lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    ("empty.pt", raw(b""), f"is empty, {OF_TORCH}"),
    ("empty.safetensors", raw(b""), f"is empty, {OF_SAFETENSORS}"),
    ("lfs.pth", text(LFS), "is a Git LFS pointer and not the file itself, which `git lfs pull` fetches"),
    ("lfs.safetensors", text(LFS), "is a Git LFS pointer"),
    ("annex.pt", text("/annex/objects/SHA256E-s1--0.pt\n"), "is a git-annex pointer"),
    ("page.pth", text("\n <!DOCTYPE html><html>"), "is a web page, perhaps what a download got"),
    ("page.safetensors", text("<html lang=en>"), f"is a web page, .*, {OF_SAFETENSORS}"),
    ("denied.pt", text("<?xml version='1.0'?><Error/>"), "is an XML document, perhaps what a download got"),
    ("missing.pt", text('{"error": "not found"}'), "is JSON text, perhaps what a download got"),
    ("text.pt", text("not a checkpoint"), f"is text, {OF_TORCH}"),
    ("noise.pt", raw(b"\xf0\x01\x02\x03noise"), r"is no file of weights \(it begins with f0 01 02 03"),
    ("gzip.pt", raw(b"\x1f\x8b\x08\0"), "is a gzip file"),
    ("tar.pth", tarred, "is a tar archive"),
    ("zip.pt", zipped, "is a zip archive that torch.save did not write; unpack it, it holds model.pth"),
    ("other.pt", lambda path: zipfile.ZipFile(path, "w").close(), "is an empty zip archive"),
    ("onnx.pt", onnx, f"is an ONNX model, {OF_TORCH}"),
    ("onnx.safetensors", onnx, f"is an ONNX model, {OF_SAFETENSORS}"),
    ("hdf5.pt", raw(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file"),
    ("image.pt", raw(b"\x89PNG\r\n\x1a\n"), "is a PNG image"),
    ("script.pt", script, "is a TorchScript program, and was not run; .*torch.jit.load"),
    (
        "safetensors.pth",
        lambda path: save_file(WEIGHTS, path),
        f"is a safetensors file, {OF_TORCH}; name it safete",
    ),
    ("torch.safetensors", save(WEIGHTS), f"is what torch.save writes, {OF_SAFETENSORS}; name it torch.pt"),
    ("cut.pt", cut(0.5), r"is cut short or damaged at [\d,]+ bytes; copy or download it again"),
    ("cut_end.pt", cut(0.99), "is cut short or damaged"),
    ("cut_old.pt", raw(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80"), "is not a file that torch.save wrote"),
    ("packed.pt", packed, "unpacks from [0-9,]+ to [0-9,]+ bytes, which weights do not; not opened"),
    # Hostile and damaged content, in a file that is of its kind.
    ("pickle.pt", raw(pickle.dumps(WEIGHTS)), "is a pickle that torch.save did not write, and was not opened"),
    ("module.pt", save(torch.nn.Linear(2, 2)), rf"is a whole model .*Linear. {BEYOND}"),
    ("list.pt", save([1, 2]), "got list, expected a state dict of tensors"),
    ("nothing.pt", save({}), "got dict, expected a state dict of tensors"),
    ("epoch.pt", save({"epoch": 3}), "'epoch' is int, expected a tensor"),
    ("integer.pt", save({1: torch.ones(1)}), "got a key that is int, expected the names of tensors"),
    ("itself.pt", save(itself()), "'state_dict' is dict, expected a tensor"),
    ("long.pt", save({"x" * 9999: 1}), r"'x{5,}\.\.\.x+' is int, expected a tensor"),
    ("tuples.pt", archive(data_pkl=b"\x80\x02})" + b"\x85" * 99999 + b"K\x01s."), "got a key that is tuple"),
    ("lists.pt", archive(data_pkl=b"\x80\x02" + b"]" * 99999 + b"a" * 99998 + b"."), "got list, expected"),
    (
        "hash.pt",
        archive(data_pkl=b"\x80\x02}q\0h\0\x85h\0s."),
        r"is not a file that torch.save wrote \(unhashable",
    ),
    ("stops.pt", archive(data_pkl=b"\x80\x02}"), "is not a file that torch.save wrote"),
    ("sparse.pt", save({"w": torch.eye(2).to_sparse()}), "'w' is a sparse_coo tensor, expected one that holds"),
    ("meta.pt", save({"w": torch.ones(2, device="meta")}), "'w' is a meta tensor, expected one that holds"),
    ("spread.pt", save({"w": torch.ones(1).expand(10**6, 10**7)}), "'w' is spread to 10,000,000,000,000 values"),
    (
        "f8.pt",
        save({"w": torch.ones(2).to(torch.float8_e4m3fn)}),
        "'w' holds float8_e4m3fn values, expected float32",
    ),
    ("complex.pt", save({"w": torch.ones(2, dtype=torch.complex64)}), "'w' holds complex64 values"),
    ("nan.pt", save({"w": torch.tensor([1.0, float("nan")])}), "'w' holds NaN or infinity; take an earlier"),
    ("inf.safetensors", lambda path: save_file({"w": torch.tensor([float("inf")])}, path), "'w' holds NaN or inf"),
    ("f8_e4m3.safetensors", of_type("F8_E4M3", 4), "'w' holds float8_e4m3fn values, expected float32"),
    ("f8_e5m2.safetensors", of_type("F8_E5M2", 4), "'w' holds float8_e5m2 values, expected float32"),
    ("f8_e8m0.safetensors", of_type("F8_E8M0", 4), "'w' holds float8_e8m0fnu values, expected float32"),
    ("f4.safetensors", of_type("F4", 2), "'w' holds float4_e2m1fn_x2 values, expected float32"),
    ("f6.safetensors", of_type("F6_E2M3", 3), r"is not a whole safetensors file \(|holds float6"),
    ("unknown.safetensors", of_type("F99", 4), r"is not a whole safetensors file \(.*F99"),
    ("short.safetensors", of_type("F32", 4), "is not a whole safetensors file"),
    ("deep.safetensors", header(b'{"a":' + b"[" * 100_000), "is not a whole safetensors file .*recursion"),
    (
        "huge.safetensors",
        raw(struct.pack("<Q", 1 << 39) + b'{"a":'),
        "is not a whole safetensors file .*too large",
    ),
    ("cut.safetensors", raw(struct.pack("<Q", 500) + b'{"a":'), "is not a whole safetensors file"),
    ("a\x1b\udcff.pt", raw(b""), r"a\\x1b\\xff.pt: is empty"),
]


@pytest.mark.parametrize(("name", "make", "message"), OTHER_FILES, ids=[ascii(row[0]) for row in OTHER_FILES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*eprecated:UserWarning")
def test_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(ModelError, match=rf"^checkpoint {tmp_path}/.*{message}") as caught:
        load_checkpoint(tmp_path / name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize("write", [save, lambda content: raw(pickle.dumps(content))], ids=["torch.save", "pickle"])
def test_code_in_a_file_is_never_run(tmp_path: Path, write: Callable[[object], Callable[[Path], object]]) -> None:
    proof = tmp_path / "executed"
    write({"state_dict": Evil(proof)})(tmp_path / "a.pt")
    with pytest.raises(ModelError, match="could run any code"):
        load_checkpoint(tmp_path / "a.pt")
    assert not proof.exists()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_nested_checkpoint_loads(tmp_path: Path, key: str) -> None:
    torch.save({key: WEIGHTS, "epoch": 3}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("new.pth", save(WEIGHTS)),
        ("old.pt", save(WEIGHTS, _use_new_zipfile_serialization=False)),
        ("parameter.pt", save({name: torch.nn.Parameter(w, requires_grad=False) for name, w in WEIGHTS.items()})),
        ("view.pt", save({"w": torch.ones(4, 4)[:2, :2].t(), "num_batches_tracked": torch.tensor(3)})),
        ("half.safetensors", lambda path: save_file({**WEIGHTS, "w": WEIGHTS["w"].bfloat16()}, path)),
    ],
)
def test_weights_load(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    write(tmp_path / name)
    check_weights_file(tmp_path / name)
    found = load_checkpoint(tmp_path / name)
    assert {key: value.tolist() for key, value in found.items()} == {k: v.tolist() for k, v in WEIGHTS.items()}
