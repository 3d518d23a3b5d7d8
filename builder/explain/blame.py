"""Which layers of a quantised graph its loss comes from, as its engine runs it.

Three looks, each on real images, and on training images, as layers are chosen by them:

- the noise that reaches every layer's output: signal to quantisation noise and cosine against the float32 graph;
- what one layer costs: the share of the loss that goes when it alone reads float inputs and weights again. All
  layers are tried on some of the images, the worst of them on all;
- what its scale does to its input: values that are clipped, a range that is hardly used, one channel that all
  others share a scale with; channels that are always zero, weights that are not those of the float32 graph.

The loss is that of `loss.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.compress.sensitivity import with_float
from temper.builder.contract import OUTPUT_NAME, TEST_IMAGES_FILE
from temper.builder.errors import ExplainError
from temper.builder.explain.activations import EXACT, RunsIn
from temper.builder.explain.images import TRAIN_IMAGES_FILE, TRAIN_LABELS_FILE
from temper.builder.explain.layers import Layer, read_layers
from temper.builder.explain.loss import LogitLoss, share_gone

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]
ANSWERS_FILE = "answers.npz"
_BATCH = 16
_MAX_VALUES = 1 << 31
"""Activations that are read in all, and at once a hundredth of it: what bounds the time and the memory."""
_FEW = 8
"""Every layer is tried on this part of the images, and as many of the worst layers on all of them."""
_MIN_IMAGES = 64
MAX_TAP_CHANGE = 0.05
"""What reading inner tensors may change in the logits, as a share of their spread."""
_SMALL = 0.01
"""A loss below it is not worth a search, as long as no answer changes."""
_ENOUGH, _NEARLY = 0.9, 0.95
"""A suggestion recovers the first share of the loss, or the second of what a quarter of the layers recovers."""


@dataclass(frozen=True)
class Found:
    """What `Blame.find` found."""

    layers: list[Layer]
    """In the graph's order."""
    num_activations: int
    """Images whose inner tensors were read."""
    tap_change: float
    """Root mean square of what reading them changed in the logits, over their standard deviation."""
    read_note: str
    """Why the engine did not give them, where it did not; else empty."""
    kept: list[str]
    """The layers that the suggestion puts back; none where there is no suggestion."""
    note: str
    """Why there is no suggestion, or what to know of it."""


class Blame:
    """A float32 graph and its quantised copy, with the images that its layers are judged on.

    A suggestion is chosen by these images, so what it gives has to be measured on others.
    """

    def __init__(
        self,
        float_graph: Path,
        graph: Path,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        runs_in: RunsIn,
        *,
        seed: int = 0,
    ) -> None:
        """Reads the graphs.

        Args:
            float_graph: The graph before the quantisation.
            graph: The same after it, with Q/DQ pairs.
            images: uint8 [N, S, S, 3], at least one; they may be mapped from a file.
            labels: int64 [N].
            runs_in: What runs the two.
            seed: Decides the resamples.

        Raises:
            ExplainError: The two are not of one network, or there are no images.
        """
        if len(images) == 0:
            raise ExplainError("explain: got no images, expected at least one")
        self.float_model, self.model = onnx.load(float_graph), onnx.load(graph)
        self.images, self.labels, self.runs_in, self.seed = images, np.asarray(labels), runs_in, seed
        self._name = graph.name
        self.layers = read_layers(self.float_model, self.model, graph.name)
        self._expected = self._logits(self.float_model)
        self._loss = LogitLoss(self._expected)

    def find(self, progress: Progress) -> Found:
        """Measures all there is; see the module.

        Args:
            progress: Called with (runs of a graph done, runs in all).
        """
        rows = np.arange(len(self.images))
        few = _spread(len(rows), max(_MIN_IMAGES, len(rows) // _FEW))
        total, done = len(self.layers) + _FEW + 8, iter(range(1, 1 << 30))

        def step() -> None:
            progress(min(next(done), total), total)

        progress(0, total)
        logits = self._logits(self.model)
        errors = self._loss(logits)
        step()
        read = self._read_activations(logits)
        tried = [layer for layer in self.layers if layer.quantized]
        step()
        for layer in tried:
            self._measure(layer, few, errors)
            step()
        if len(few) < len(rows):
            for layer in sorted(tried, key=_worst_first)[:_FEW]:
                self._measure(layer, rows, errors)
                step()
        kept, note = self._suggest(sorted(tried, key=_worst_first), logits, errors, step)
        progress(total, total)
        return Found(self.layers, *read, kept, note)

    def put_back(self, names: Sequence[str]) -> onnx.ModelProto:
        """Returns the quantised graph with some layers in float."""
        return with_float(self.model, self.float_model, names)

    def _logits(self, model: onnx.ModelProto, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        return run_logits(self.runs_in, model, self.images if rows is None else self.images[rows])

    def _measure(self, layer: Layer, rows: NDArray[np.int64], errors: NDArray[np.float64]) -> None:
        """Puts one layer back, on the images of some rows."""
        left = self._loss(self._logits(self.put_back([layer.name]), rows), rows)
        layer.share, layer.num_images = share_gone(left, errors[rows], self.seed), len(rows)

    def _suggest(
        self,
        worst: list[Layer],
        logits: NDArray[np.float32],
        errors: NDArray[np.float64],
        step: Callable[[], None],
    ) -> tuple[list[str], str]:
        """Finds the fewest of the worst layers that recover enough: of all, or of what a quarter of them does."""
        names = [layer.name for layer in worst]
        changed = bool((self._expected.argmax(1) != logits.argmax(1)).any())
        if not changed and errors.mean() < _SMALL:
            return [], f"None of {len(logits):,} training images gets another answer: nothing to choose layers by"

        def recover(count: int) -> float:
            left = self._loss(self._logits(self.put_back(names[:count])))
            step()
            return float(1 - left.sum() / errors.sum())

        most = max(1, len(names) // 4)
        best = recover(most)
        if not best > 0:
            return (
                [],
                f"Putting the worst {most} layers back recovers nothing: the loss is spread over all of them",
            )
        wanted, low, high = min(_ENOUGH, _NEARLY * best), 0, 1  # `low` layers are too few
        while high < most and recover(high) < wanted:
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if recover(middle) >= wanted else (middle, high)
        spread = (
            f"The loss is spread: even the worst {most} layers together recover {100 * best:.0f} % of it; "
            "training in int8 (qat) is for that"
        )
        return names[:high], spread if best < _ENOUGH else ""

    def _read_activations(self, logits: NDArray[np.float32]) -> tuple[int, float, str]:
        """Reads inner tensors of both graphs: of how many images, what that changed, and what to know of it."""
        num_images, change = self._read_in(self.runs_in, logits)
        if change <= MAX_TAP_CHANGE or self.runs_in.engine is None:
            return num_images, change, ""
        # OpenVINO 2026.4 computes another network when some outputs of int8 convolutions are given out.
        self.layers = read_layers(self.float_model, self.model, self._name)
        exact = RunsIn(EXACT, None, "")
        note = (
            f"Giving out its inner tensors changes what {self.runs_in.title} computes (the logits by "
            f"{100 * change:.0f} % of their spread), so the noise is that of {EXACT}"
        )
        return *self._read_in(exact, logits), note

    def _read_in(self, runs_in: RunsIn, logits: NDArray[np.float32]) -> tuple[int, float]:
        names = list(dict.fromkeys(name for layer in self.layers for name in (layer.source, layer.output)))
        runs = [runs_in.open(model, names) for model in (self.float_model, self.model)]
        per_image = sum(value.size for value in runs[0](self.images[:1]).values())
        rows = _spread(len(self.images), max(1, _MAX_VALUES // per_image))
        at_once = max(1, min(_BATCH, _MAX_VALUES // 100 // per_image))
        differences = []
        for start in range(0, len(rows), at_once):
            batch = rows[start : start + at_once]
            expected, found = (run(self.images[batch]) for run in runs)
            for layer in self.layers:
                layer.read_input(expected[layer.source])
                layer.read_output(expected[layer.output], found[layer.output])
            differences.append(found[OUTPUT_NAME] - logits[batch])
        return len(rows), spread_change(np.concatenate(differences), logits)


def spread_change(differences: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    """Returns the root mean square of differences over the standard deviation of the values."""
    return float(np.sqrt((differences**2).mean())) / (float(values.std()) or 1.0)


def run_blame(
    graphs: tuple[Path, Path],
    images: Path,
    runs_in: RunsIn,
    folder: Path,
    progress: Progress,
    *,
    most: int,
    seed: int,
) -> dict[str, Any]:
    """The stage: finds the layers by training images, and measures what they cost, and gain, on test images.

    Args:
        graphs: The float32 graph and the quantised one.
        images: The folder of `images.write_images`.
        runs_in: What runs the two.
        folder: Receives answers.npz: `float32`, `quantized` and `kept` (with the suggested layers in float), int64
            [test images].
        progress: Called with (runs of a graph done, runs in all).
        most: Training images, at most.
        seed: Decides the resamples.

    Returns:
        runs_in, in_engine, note, num_images (test images), num_search (training images), num_activations,
        tap_change, loss (on the test images), layers (each as `Layer.figures`), kept, recovered, kept_note.
    """
    train = np.load(images / TRAIN_IMAGES_FILE, mmap_mode="r")[:most]
    blame = Blame(*graphs, train, np.load(images / TRAIN_LABELS_FILE)[:most], runs_in, seed=seed)
    found = blame.find(progress)
    test = np.load(images / TEST_IMAGES_FILE, mmap_mode="r")
    models = {"float32": blame.float_model, "quantized": blame.model, "kept": blame.put_back(found.kept)}
    logits = {name: run_logits(runs_in, model, test) for name, model in models.items()}
    np.savez(folder / ANSWERS_FILE, **{name: each.argmax(1) for name, each in logits.items()})
    loss = LogitLoss(logits["float32"])
    before = loss(logits["quantized"])
    return {
        "runs_in": runs_in.title,
        "in_engine": runs_in.engine is not None,
        "note": "; ".join(note for note in (runs_in.note, found.read_note) if note),
        "num_images": len(test),
        "num_search": len(train),
        "num_activations": found.num_activations,
        "tap_change": found.tap_change,
        "loss": float(before.mean()),
        "layers": [layer.figures() for layer in found.layers],
        "kept": found.kept,
        "recovered": share_gone(loss(logits["kept"]), before, seed),
        "kept_note": found.note,
    }


def run_logits(runs_in: RunsIn, model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the logits [N, classes] of uint8 images [N, S, S, 3], which may be mapped from a file."""
    run = runs_in.open(model)
    parts = [run(images[start : start + _BATCH])[OUTPUT_NAME] for start in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


def _worst_first(layer: Layer) -> float:
    assert layer.share is not None, "only layers that were put back are ranked"
    return -layer.share.value


def _spread(total: int, wanted: int) -> NDArray[np.int64]:
    """Rows spread evenly over all: the images may be sorted by class."""
    wanted = min(total, wanted)
    return np.arange(wanted) * total // wanted
