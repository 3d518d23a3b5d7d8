"""Files of weights: what they are by their first bytes, and their tensors; no code that they may carry is run."""

from __future__ import annotations

import hashlib
import os
import reprlib
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.errors import ModelError, reason_of
from temper.builder.network.hub import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHT_FILES, hub_folder, read_json_beside
from temper.builder.network.pickled import freeing_line, read_torch
from temper.builder.store.files import sha256_file
from temper.imaging.content import is_safetensors, name_content
from temper.imaging.errors import show

if TYPE_CHECKING:
    import torch

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
"""`.ckpt` is Lightning's, `.bin` Hugging Face's, and `.pth.tar` many a training script's; all are torch.save's."""

# Where a network that this builder keeps has its weights.
_NESTED_KEYS = ("state_dict", "model_state_dict", "model")
# How torch.save began its files before it wrote zip archives: a number as pickle's second protocol writes it.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_HEAD_BYTES = 1024
# torch.save packs nothing; a file that unpacks to far more than it is would fill the memory.
_MAX_UNPACKED = 4
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict as it is, as this builder keeps them; see `imported.py` for what others write.

    Args:
        path: A file, with a state dict alone or under `state_dict`, `model_state_dict` or `model`.

    Returns:
        The tensors by name, on the CPU: plain, finite, of floating-point or integer types.

    Raises:
        ModelError: The file is missing, is no such file, or holds anything but such tensors.
    """
    return state_dict_in(path, read_content(path))


def read_content(path: Path) -> Any:
    """Reads all that a file or a hub's folder of weights holds.

    Returns:
        Of a safetensors file and of a folder a dict of tensors, else whatever was given to torch.save: tensors on
        the CPU, plain containers, and `pickled.Inert` in the place of other objects.

    Raises:
        ModelError: It is missing, is something else, is damaged, or asks for code to be run.
    """
    check_weights_file(path)
    parts = [
        _read_safetensors(each) if each.suffix == ".safetensors" else read_torch(each) for each in _files(path)
    ]
    if len(parts) == 1:
        return parts[0]
    return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}


def sha256_checkpoint(path: Path) -> str:
    """Returns the digest of all that decides which weights are read: of a folder also what lies beside."""
    beside = (CONFIG_FILE, PREPROCESSOR_FILE)
    files = [
        *_files(path),
        *([hub_folder(path) / name for name in beside] if path.is_dir() or path.name in WEIGHT_FILES else []),
    ]
    digests = [sha256_file(file) for file in files if file.exists()]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def check_weights_file(path: Path) -> None:
    """Checks by its first bytes that a file is what its name says, without loading it; of a folder every file.

    Raises:
        ModelError: It is missing or something else; the message says what.
    """
    for file in _files(path):
        _check_file(file)


def _files(path: Path) -> list[Path]:
    """The files that hold the weights: of a folder those that its index lists, if there is one."""
    if not path.is_dir():
        return [path]
    name = next((name for name in WEIGHT_FILES if (path / name).exists()), None)
    if name is None:
        raise _wrong(
            path, f"is a folder without {WEIGHT_FILES[0]} or {WEIGHT_FILES[2]}, expected a file of weights"
        )
    if not name.endswith(".json"):
        return [path / name]
    index = read_json_beside(path, name) or {}
    weight_map = index.get("weight_map")
    shards = sorted({str(shard) for shard in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not shards or any(Path(shard).name != shard for shard in shards):
        raise _wrong(path / name, "lists no files of this folder, expected the hub's index; download it again")
    return [path / shard for shard in shards]


def _check_file(path: Path) -> None:
    try:
        # A pipe must not be waited for; for regular files this changes nothing.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _wrong(path, "is no regular file")
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise _wrong(path, "is a link to nothing" if path.is_symlink() else "no such file") from error
    except IsADirectoryError as error:
        raise _wrong(path, "is a folder, expected a file of weights") from error
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    is_torch = head.startswith((_LEGACY_MAGIC, b"PK\x03\x04"))
    if path.suffix == ".safetensors":
        if not is_safetensors(head):
            what = "what torch.save writes" if is_torch else _name(head)
            hint = f"; name it {show(path.with_suffix('.pt').name)}" if is_torch else ""
            raise _wrong(path, f"is {what}, expected a safetensors file{hint}")
    elif head.startswith(b"PK\x03\x04"):
        _check_archive(path, status.st_size)
    elif not is_torch:
        hint = f"; name it {show(path.with_suffix('.safetensors').name)}" if is_safetensors(head) else ""
        raise _wrong(path, f"is {_name(head)}, expected a file that torch.save wrote{hint}")


def _name(head: bytes) -> str:
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle that torch.save did not write, and was not opened, since that could run any code"
    return name_content(head) or f"no file of weights (it begins with {head[:8].hex(' ')})"


def _check_archive(path: Path, size_bytes: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _wrong(
            path, f"is cut short or damaged at {size_bytes:,} bytes; copy or download it again"
        ) from error
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        line = freeing_line(path, "c.state_dict()", load="torch.jit.load({}, 'cpu')")
        raise _wrong(path, f'is a TorchScript program, and was not run; where you trust it: python -c "{line}"')
    if "data.pkl" not in names:
        inside = next((name for name in names if Path(name).suffix in CHECKPOINT_SUFFIXES), None)
        hint = f"; unpack it, it holds {show(inside)}" if inside else ""
        raise _wrong(path, f"is a zip archive that torch.save did not write{hint}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _MAX_UNPACKED * size_bytes:
        raise _wrong(path, f"unpacks from {size_bytes:,} to {unpacked:,} bytes, which weights do not; not opened")


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    # The library's own error, or KeyError, RuntimeError and others from torch for a type or shape that it lacks.
    except Exception as error:
        raise _wrong(path, f"is not a whole safetensors file ({reason_of(error)})") from error


def state_dict_in(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """Returns the tensors of a state dict, alone or under one of the usual keys.

    Raises:
        ModelError: It holds anything but tensors.
    """
    for key in _NESTED_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise _wrong(path, f"got {type(content).__name__}, expected a state dict of tensors")
    for name, value in content.items():
        if not isinstance(name, str):
            raise _wrong(path, f"got a key that is {type(name).__name__}, expected the names of tensors")
        check_tensor(path, name, value)
    return dict(content)


def check_tensor(path: Path, name: str, value: object) -> None:
    """Refuses what is no weight: no tensor that holds its values, of another type, or not finite.

    Raises:
        ModelError: It is such a thing; names it.
    """
    fault = fault_of(value)
    if fault is not None:
        raise _wrong(path, f"{reprlib.repr(name)} {fault}")


def fault_of(value: object) -> str | None:
    """Returns why a value is no weight; None when it is one."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"is {type(value).__name__}, expected a tensor"
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu" or value.is_nested:
        kind = "quantized" if value.is_quantized else value.device.type
        kind = str(value.layout).removeprefix("torch.") if value.layout != torch.strided else kind
        return f"is a {kind} tensor, expected one that holds its values"
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        return (
            f"holds {dtype} values, expected {', '.join(_DTYPES[:4])} or integers; convert them, with their scales"
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"is spread to {value.numel():,} values from fewer; save what .contiguous() returns"
    if not bool(torch.isfinite(value).all()):
        return "holds NaN or infinity; take an earlier checkpoint"
    return None


def _wrong(path: Path, what: str) -> ModelError:
    return ModelError(f"checkpoint {show(path)}: {what}")
