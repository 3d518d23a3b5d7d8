"""Reading what torch.save wrote without running code that it may carry.

torch reads tensors and plain containers by itself. What training scripts like to keep beside them, as their
arguments or a numpy number, is harmless, and a class of ours that does nothing stands in its place: the object
that the file asks for is never made. Everything else is refused by its name, with the line that frees the weights
where the file is trusted.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temper.builder.errors import ModelError, reason_of
from temper.imaging.errors import show

_MAX_NAMED = 3


class Inert:
    """Stands for an object of a file: keeps its attributes, and does nothing."""

    attributes: Mapping[str, Any] = {}

    def __new__(cls, *args: Any, **more: Any) -> Inert:
        """Takes whatever the object was made from."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **more: Any) -> None:
        """Takes whatever the object was made from."""

    def __setstate__(self, state: object) -> None:
        """Takes the object's attributes."""
        self.attributes = state if isinstance(state, dict) else {}


class _InertDict:
    """Stands for a kind of dict, and makes a plain one."""

    def __new__(cls, *args: Any, **more: Any) -> Any:
        return OrderedDict()


_OBJECTS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(
        f"{module}.{name}"
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("scalar", "_reconstruct")
    ),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "float64", "float32", "int64", "bool_")),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "list", "dict", "tuple", "object")),
    *(f"datetime.{name}" for name in ("datetime", "date", "timedelta")),
    "typing.Any",
    "torch.torch_version.TorchVersion",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Integer", "Float", "String", "Boolean", "Path", "Enum")),
)
_DICTS = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
_HARMLESS: list[Any] = [(Inert, name) for name in _OBJECTS] + [(_InertDict, name) for name in _DICTS]
# What may stand in a line for a shell: a name from a file must not become a command there.
_PLAIN = re.compile(r"[\w.=+-]+")
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def read_torch(path: Path) -> Any:
    """Reads a file that torch.save wrote.

    Returns:
        Its content: tensors on the CPU in plain containers; other harmless objects are `Inert`.

    Raises:
        ModelError: It is damaged, or asks for code; the message names the code, and how to do without.
    """
    import torch

    with torch.serialization.safe_globals(_HARMLESS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refused(path, error) from error
        # Of a damaged or hostile pickle nearly anything: RuntimeError, KeyError, TypeError, RecursionError.
        except Exception as error:
            raise ModelError(
                f"checkpoint {show(path)}: is not a file that torch.save wrote ({reason_of(error)})"
            ) from error


def _refused(path: Path, error: Exception) -> ModelError:
    names = _unsafe_names(path, error)
    weights = _weights_in(path, names)
    found = ", ".join(show(name[:60]) for name in names[:_MAX_NAMED]) or "more than weights"
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    is_whole = weights == "c.state_dict()"
    what = f"is a whole model ({found}{more})" if is_whole else f"holds {found}{more} beside tensors"
    return ModelError(
        f"checkpoint {show(path)}: {what} and was not opened, since that could run any code; where you trust it: "
        f'python -c "{freeing_line(path, weights)}"'
    )


def freeing_line(path: Path, weights: str, load: str = "torch.load({}, 'cpu', weights_only=False)") -> str:
    """Returns Python that writes the weights of a file alone.

    Args:
        path: The file, `c` once it is loaded.
        weights: What they are in terms of `c`.
        load: How the file is loaded.
    """
    name = path.name if _PLAIN.fullmatch(path.name) else "FILE"
    return f"import torch; c = {load.format(repr(name))}; torch.save({weights}, 'weights.pt')"


def _unsafe_names(path: Path, error: Exception) -> list[str]:
    """The names of the code that a file asks for, as far as they can be told without it; within `safe_globals`."""
    import torch

    first = _GLOBAL.findall(str(error))
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of before zip archives, or a damaged one
        return first
    return sorted(found, key=lambda name: (name not in first, not name.endswith("ResNet"), name))


def _weights_in(path: Path, names: list[str]) -> str:
    """Where the weights lie in a file that asks for code, found with something inert in the place of all of it."""
    import torch

    with torch.serialization.safe_globals([(Inert, name) for name in names]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            content = None
    if isinstance(content, Inert):
        return "c.state_dict()"
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str) or not _PLAIN.fullmatch(key):
                continue
            if isinstance(value, Inert) and "_modules" in value.attributes:
                return f"c[{key!r}].state_dict()"
            if isinstance(value, dict) and _is_state(value):
                return f"c[{key!r}]"
    return "c['state_dict']"


def _is_state(value: Mapping[Any, Any]) -> bool:
    import torch

    return any(isinstance(each, torch.Tensor) and str(name).endswith(".weight") for name, each in value.items())
