"""Reading the weights of a checkpoint: no code that the file may carry is run, and what it is instead is said."""

from __future__ import annotations

import os
import pickle
import reprlib
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.errors import ModelError
from temper.imaging.content import is_safetensors, name_content
from temper.imaging.errors import show

if TYPE_CHECKING:
    import torch

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")

# Where a training loop usually puts the weights inside its checkpoint.
_NESTED_KEYS = ("state_dict", "model_state_dict", "model")
# How torch.save began its files before it wrote zip archives: a number as pickle's second protocol writes it.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_HEAD_BYTES = 1024
# torch.save packs nothing; a file that unpacks to far more than it is would fill the memory.
_MAX_UNPACKED = 4
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Reads the weights of a checkpoint; never runs code that the file may carry.

    Args:
        path: A `.safetensors` file, or a `.pt`/`.pth` file with a state dict, alone or under `state_dict`,
            `model_state_dict` or `model`. A `module.` before every name (DistributedDataParallel) is dropped.

    Returns:
        The tensors by name, on the CPU: plain, finite, of floating-point or integer types.

    Raises:
        ModelError: The file is missing, is no such file, or holds anything but such tensors.
    """
    check_weights_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _state_dict(path, content)


def check_weights_file(path: Path) -> None:
    """Checks by its first bytes that a file is what its name says, without loading it.

    Raises:
        ModelError: It is missing or something else; the message says what.
    """
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
        raise _wrong(path, "is a TorchScript program; save the state_dict() of the model that it was made from")
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
        raise _wrong(path, f"is not a whole safetensors file ({_reason(error)})") from error


def _read_torch(path: Path) -> object:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _wrong(
            path,
            "holds more than weights and was not opened, since that could run any code; "
            "save model.state_dict() alone, best as .safetensors",
        ) from error
    # Of a damaged or hostile pickle nearly anything: RuntimeError, KeyError, TypeError, RecursionError.
    except Exception as error:
        raise _wrong(path, f"is not a file that torch.save wrote ({_reason(error)})") from error


def _state_dict(path: Path, content: Any) -> dict[str, torch.Tensor]:
    for key in _NESTED_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise _wrong(path, f"got {type(content).__name__}, expected a state dict of tensors")
    for name, value in content.items():
        if not isinstance(name, str):
            raise _wrong(path, f"got a key that is {type(name).__name__}, expected the names of tensors")
        fault = _fault(value)
        if fault is not None:
            raise _wrong(path, f"{reprlib.repr(name)} {fault}")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def _fault(value: object) -> str | None:
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


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0][:200]
    return "".join(char if char.isprintable() else "?" for char in text) or type(error).__name__


def _wrong(path: Path, what: str) -> ModelError:
    return ModelError(f"checkpoint {show(path)}: {what}")
