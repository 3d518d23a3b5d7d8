"""The stages of a network that came as an ONNX file: it takes the place of the weights, and of the export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.contract import GRAPH_FILE, REFERENCE_FILE, TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.network.export import run_graph
from temper.builder.network.hub import class_names_beside
from temper.builder.network.onnx_import import Pixels, check_size, count_graph, import_onnx
from temper.builder.network.onnx_original import Original
from temper.builder.network.onnx_read import read_classifier, wrong
from temper.builder.network.stage import NUM_VERIFY, Progress, Setting, images_of, labels_of
from temper.builder.network.stated import check_order, warn_of_pixels
from temper.imaging.preprocess import sides

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.store.artifacts import Artifact

_AT_ONCE = 128
_IS_PROBABILITY = 1e-3


def check_graph(setting: Setting, *, quantizes: bool) -> None:
    """Refuses an ONNX file that no build could take, before the minutes that the images may take.

    Args:
        setting: Its model is an ONNX file.
        quantizes: Whether a variant quantises it.

    Raises:
        ModelError: One line that says what is wrong with it.
    """
    found = read_classifier(_path(setting))
    check_size(found, pixels_of(setting).size)
    if found.is_quantized and quantizes:
        raise wrong(
            found.path,
            "is quantised already, expected a float graph for the step quantize; leave that step out, or give the "
            "file that it was made from",
        )


def pixels_of(setting: Setting) -> Pixels:
    """Returns what the recipe says becomes of an image before the network sees it."""
    mean, std = setting.data.normalization
    return Pixels(size=sides(setting.data.image_size), mean=mean, std=std, bgr=setting.data.colour == "bgr")


def open_original(setting: Setting) -> Original:
    """Opens the user's file as it is, behind the preprocessing that the recipe says."""
    pixels = pixels_of(setting)
    return Original(read_classifier(_path(setting)), pixels.size, mean=pixels.mean, std=pixels.std, bgr=pixels.bgr)


def operators_of(setting: Setting) -> set[str]:
    """Returns the operators of the imported graph.

    Raises:
        ModelError: It cannot be imported.
    """
    return {node.op_type for node in import_onnx(_path(setting), pixels_of(setting)).model.graph.node}


def import_weights(setting: Setting, data: Artifact, folder: Path, progress: Progress) -> dict[str, Any]:
    """Imports the ONNX file, compares it with itself as its owner runs it, and measures it.

    Args:
        setting: Its model is an ONNX file.
        data: The images and the class names.
        folder: Receives model.onnx, and the logits that the file itself gave for the first test images.
        progress: Called with (images done, images in all).

    Returns:
        accuracy, num_images, imported (what was done, in one line), against_original (see `compare_logits`), and
        what a training would have left: epochs, head_epochs, snapshots.

    Raises:
        ModelError: It cannot be imported, or knows other classes than the data, or in another order.
        DataError: `data.labels` has its classes in another order.
    """
    path, classes = _path(setting), labels_of(data)
    imported = import_onnx(path, pixels_of(setting))
    if imported.original.num_classes != len(classes):
        raise wrong(
            path,
            f"its head has {imported.original.num_classes} classes, the data has {len(classes)}; use the classes "
            "that it was trained on, as an ONNX file's head cannot be replaced",
        )
    check_order(setting, classes, class_names_beside(path, len(classes)))
    images, labels = images_of(data, TEST_IMAGES_FILE), images_of(data, TEST_LABELS_FILE)
    reference, figures = imported.compare(images[:NUM_VERIFY])
    content = imported.model.SerializeToString()
    (folder / GRAPH_FILE).write_bytes(content)
    np.save(folder / REFERENCE_FILE, reference)
    answers = []
    for start in range(0, len(images), _AT_ONCE):
        progress(start, len(images))
        answers.append(run_graph(content, images[start : start + _AT_ONCE]).argmax(1))
    return {
        "accuracy": float((np.concatenate(answers) == labels).mean()),
        "num_images": len(labels),
        "imported": imported.note + (", answers probabilities" if _are_probabilities(reference) else ""),
        "against_original": figures,
        "epochs": 0,
        "head_epochs": 0,
        "snapshots": [],
        **warn_of_pixels(setting, path),
    }


def export_imported(weights: Artifact, folder: Path) -> dict[str, Any]:
    """Hands on the imported graph as what an export leaves, with its size."""
    for name in (GRAPH_FILE, REFERENCE_FILE):
        shutil.copyfile(weights.path / name, folder / name)
    return {**weights.info["against_original"], **count_graph(onnx.load(folder / GRAPH_FILE))}


def _path(setting: Setting) -> Path:
    assert setting.model.graph is not None, "the caller looks at what the weights are"
    return setting.model.graph


def _are_probabilities(logits: NDArray[np.float32]) -> bool:
    """Whether a softmax is inside that was not found."""
    off = float(np.abs(logits.sum(1) - 1).max(initial=0.0))
    return bool((logits >= 0).all()) and off < _IS_PROBABILITY
