"""What a model hub's files say beside the weights, timm's and Hugging Face's: architecture, names of the classes.

Weights do not show everything. What a config.json says that torchvision's ResNet does not do is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from temper.builder.class_names import as_class_names
from temper.builder.contract import GRAPH_FILE
from temper.builder.errors import ModelError
from temper.builder.network.design import ARCHITECTURES
from temper.imaging.errors import show
from temper.imaging.folder import name_few

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""A hub's names of the weights, the best first."""
_MAX_BYTES = 16 << 20
# In timm's names the authors of the weights, and the letter of torchvision's design.
_LEGACY = re.compile(r"^(?:tv|gluon|ssl|swsl|ig|tf)_|_v1b?(?=[cds]?(?:$|_))")
# Layers without weights that a name alone betrays.
_HIDDEN = re.compile(r"res(?:net|next)(?:aa|blur)|_gn$|_frn|_evos")
_TIMM_ARGUMENTS: dict[str, tuple[object, ...]] = {
    "act_layer": (None, "relu"),
    "aa_layer": (None, ""),
    "norm_layer": (None, "batchnorm", "batchnorm2d"),
    "output_stride": (None, 32),
    "global_pool": (None, "avg"),
    "block_args": (None, {}),
    "bn_eps": (None, 1e-5),
}
_HUGGINGFACE_KEYS: dict[str, tuple[object, ...]] = {
    "hidden_act": ("relu",),
    "layer_type": ("basic", "bottleneck"),
    "downsample_in_first_stage": (False,),
    "downsample_in_bottleneck": (False,),
}


Library = Literal["timm", "huggingface"]


@dataclass(frozen=True)
class HubConfig:
    """A config.json beside weights."""

    path: Path
    library: Library
    content: dict[str, Any]

    @property
    def class_names(self) -> list[str] | None:
        """The classes' names in the order of the outputs; None where it has none of its own."""
        given = self.content.get("label_names") or self._pretrained.get("label_names")
        names = class_names_in(given if given else self.content.get("id2label"))
        return None if names is None or all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names

    @property
    def _pretrained(self) -> dict[str, Any]:
        found = self.content.get("pretrained_cfg")
        return found if isinstance(found, dict) else {}

    def check(self) -> None:
        """Refuses what it says that is no ResNet of torchvision's.

        Raises:
            ModelError: It says so.
        """
        if self.library == "timm":
            check_name(self.path, self.content.get("architecture"))
            wrong = _first_wrong({**self.content, **_mapping(self.content.get("model_args"))}, _TIMM_ARGUMENTS)
        else:
            wrong = _first_wrong(self.content, _HUGGINGFACE_KEYS)
            if self.content.get("model_type") != "resnet":
                wrong = ("model_type", self.content.get("model_type"), ("resnet",))
        if wrong is not None:
            key, value, allowed = wrong
            raise ModelError(
                f"{show(self.path)}: {key} is {show(json.dumps(value))[:80]}, expected {_plain(allowed)}: "
                "torchvision's ResNet does nothing else; give the model as ONNX"
            )


def check_name(path: Path, name: object) -> None:
    """Refuses an architecture whose weights look like a ResNet's, and which computes something else.

    Raises:
        ModelError: Its name says so.
    """
    if isinstance(name, str) and _HIDDEN.search(name):
        raise ModelError(
            f"{show(path)}: the network is called {show(name[:60])}: its weights are named like a ResNet's, but "
            "it has layers that torchvision's lacks; give the model as ONNX"
        )


def arch_called(name: object) -> str | None:
    """Returns our name of an architecture that timm or a training script calls so; None where there is none."""
    plain = _LEGACY.sub("", name.partition(".")[0]) if isinstance(name, str) else ""
    return plain if plain in ARCHITECTURES else None


def read_hub_config(path: Path) -> HubConfig | None:
    """Reads the config.json of a folder of weights, or of weights that are named as in one, as any ONNX file is.

    Raises:
        ModelError: It is there and cannot be read.
    """
    content = read_json_beside(path, CONFIG_FILE)
    if content is None:
        return None
    file = hub_folder(path) / CONFIG_FILE
    if "architecture" in content:
        return HubConfig(file, "timm", content)
    return HubConfig(file, "huggingface", content) if "model_type" in content else None


def read_json_beside(path: Path, name: str) -> dict[str, Any] | None:
    """Reads a JSON object beside weights; None where there is none, or where they are not named as on a hub.

    An ONNX file may lie anywhere, so what is no such object beside it is somebody else's.

    Raises:
        ModelError: It is there and is none.
    """
    if not path.is_dir() and path.name not in WEIGHT_FILES and path.suffix != ".onnx":
        return None
    try:
        return read_json(hub_folder(path) / name)
    except ModelError:
        if path.suffix == ".onnx":
            return None
        raise


def read_json(file: Path) -> dict[str, Any] | None:
    """Reads a hub's JSON object; None where there is no such file.

    Raises:
        ModelError: It is there and is none.
    """
    try:
        with file.open("rb") as opened:
            content = json.loads(opened.read(_MAX_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{show(file)}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{show(file)}: is no JSON, expected the file that the hub has; download it again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{show(file)}: got {type(content).__name__}, expected an object of JSON")
    return content


def graph_in(folder: Path) -> Path | None:
    """Returns the ONNX file in a folder that holds no other weights, as Optimum writes; None where there is none.

    Raises:
        ModelError: There are several, and none is called as usual.
    """
    graphs = sorted(folder.glob("*.onnx"))
    if not graphs or any((folder / name).exists() for name in WEIGHT_FILES):
        return None
    if len(graphs) > 1 and folder / GRAPH_FILE not in graphs:
        shown = name_few([show(graph.name) for graph in graphs])
        raise ModelError(f"folder {show(folder)}: holds {shown}, expected one; give the file to be served")
    return folder / GRAPH_FILE if len(graphs) > 1 else graphs[0]


def class_names_beside(path: Path, num_classes: int) -> list[str] | None:
    """Returns the names of an ONNX file's outputs, as the config.json beside it has them, if it does."""
    hub = read_hub_config(path)
    names = hub.class_names if hub is not None else None
    return names if names is not None and len(names) == num_classes else None


def hub_folder(path: Path) -> Path:
    """Returns the folder of the files beside weights: of an ONNX file in a hub's `onnx/`, the one above."""
    folder = path if path.is_dir() else path.parent
    is_below = path.suffix == ".onnx" and folder.name == "onnx" and not (folder / CONFIG_FILE).exists()
    return folder.parent if is_below else folder


def class_names_in(value: object) -> list[str] | None:
    """Returns the names that a value lists, in the order of the outputs; None where it lists none."""
    try:
        return as_class_names(value) or None
    except ValueError:
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_wrong(
    content: Mapping[str, Any], allowed: Mapping[str, tuple[object, ...]]
) -> tuple[str, object, tuple[object, ...]] | None:
    for key, values in allowed.items():
        if key in content and content[key] not in values:
            return key, content[key], values
    return None


def _plain(allowed: tuple[object, ...]) -> str:
    return " or ".join(json.dumps(value) for value in allowed if value not in (None, "", {})) or "none"
