"""The classes: their names in the order of the outputs, and accuracies where the right ones are known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.client.model import ModelInfo
from temper.client.stats import Estimate, compare_paired, proportion
from temper.imaging.errors import show
from temper.imaging.folder import name_few
from temper.run.diagnose.decide import Cause, Verdict
from temper.run.diagnose.errors import DiagnoseError
from temper.run.diagnose.hypotheses import Hypothesis, Known

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_classes(path: Path, num_classes: int) -> tuple[str, ...]:
    """Reads the names of outputs, from what `labels` of a recipe takes.

    Raises:
        DataError: It cannot be read.
        DiagnoseError: It names another number of outputs.
    """
    from temper.builder.data.labels import read_class_names

    names = read_class_names(path)
    if len(names) != num_classes:
        raise DiagnoseError(
            f"{show(path)}: names {len(names)} classes, expected {num_classes}, one for each output"
        )
    return tuple(names)


def with_names(verdict: Verdict, names: tuple[str, ...], info: ModelInfo | None) -> Verdict:
    """Returns the verdict, and that the server names its outputs otherwise than the network, where it does."""
    if not names or info is None or not info.labels or info.labels == names:
        return verdict
    wrong = [index for index, name in enumerate(names) if info.labels[index] != name]
    first = wrong[0]
    words = (
        f"names of {len(wrong)} outputs that are others than the network's: output {first} is "
        f"{show(info.labels[first])}, and was {show(names[first])}"
    )
    mend = "put the names in the order of the network's outputs: `labels = \"classes.txt\"` in the recipe's [data]"
    hypothesis = Hypothesis(kind="labels", words=words, changes={}, mends={"client": mend, "graph": mend})
    cause = Cause(
        hypothesis=hypothesis,
        share=Estimate(value=0.0, low=0.0, high=0.0),
        note="of the scores it explains nothing",
    )
    return replace(verdict, agrees=False, causes=(*verdict.causes, cause))


def accuracy(
    served: NDArray[np.float32], reference: NDArray[np.float32], right: NDArray[np.int64]
) -> dict[str, Any]:
    """Returns the accuracy of the served scores and of the network's, [N, classes], on the same images.

    Args:
        served: What the server answered.
        reference: What the network answers.
        right: The right classes, [N].
    """
    hits = served.argmax(1) == right, reference.argmax(1) == right
    return {
        "served": dict(proportion(hits[0])),
        "reference": dict(proportion(hits[1])),
        "difference": compare_paired(hits[1], hits[0]).to_json(),
    }


def other_order(answers: NDArray[np.int64], right: NDArray[np.int64], names: Sequence[str]) -> str:
    """Says so when the network's answers are right in another order of the classes, as with a wrong list of them.

    Args:
        answers: The network's, [N].
        right: The right classes, [N].
        names: What the outputs are called; empty where nothing says it.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # ships none

    classes, at = np.unique(np.concatenate([answers, right]), return_inverse=True)  # a few of very many
    given, wanted = np.split(at, 2)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (given, wanted), 1)
    _, meant = linear_sum_assignment(counts, maximize=True)
    # One image alone would fit any order, and one output that takes all images the class that most of them are of.
    ordered = (meant[given] == wanted) & (counts[given, wanted] > 1)
    moved = [one for one in np.unique(given) if meant[one] != one and counts[one, meant[one]] > 1]
    now, then = proportion(given == wanted), proportion(ordered)
    if len(moved) < 2 or then["low"] <= max(0.5, now["high"], np.bincount(wanted).max() / len(wanted)):
        return ""
    pairs = [(classes[one], classes[meant[one]]) for one in moved]
    shown = [f"output {index} is {show(names[right] if names else str(right))}" for index, right in pairs]
    better, worse = (f"{100 * each['value']:.1f} %" for each in (then, now))
    return (
        f"classes: {better} instead of {worse} would be right in another order, in which {name_few(shown)}; put "
        "the names into the order of the network's outputs: `labels` in [data]"
    )


def labels_of_folders(files: Sequence[Path], root: Path, known: Known) -> tuple[NDArray[np.int64] | None, str]:
    """Returns the classes by the names of the images' folders, where these are the model's, and what to say."""
    folders = [path.parent.name if path.parent != root else "" for path in files]
    names = sorted(set(folders))
    if names == [""]:
        return None, ""
    indices, note = {name: index for index, name in enumerate(known.classes)}, ""
    if not set(names) <= indices.keys():
        if len(names) != known.num_classes:
            return None, "no accuracy: the images' folders are not named as the model's classes; give --classes"
        is_numbered = all(re.fullmatch(r"\d+", name) for name in names)
        ordered = sorted(names, key=int) if is_numbered else names
        indices = {name: index for index, name in enumerate(ordered)}
        note = "accuracy: the images' folders are taken for the classes in their order; --classes states it"
    return np.array([indices[name] for name in folders], dtype=np.int64), note
