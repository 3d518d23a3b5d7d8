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
from temper.builder.contract import TEST_IMAGES_FILE
from temper.builder.data.spread import spread
from temper.builder.errors import ExplainError
from temper.builder.explain.activations import RunsIn, run_logits, try_reading
from temper.builder.explain.images import TRAIN_IMAGES_FILE
from temper.builder.explain.layers import Layer, read_layers
from temper.builder.explain.loss import LogitLoss, share_gone

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]
ANSWERS_FILE = "answers.npz"
_MAX_VALUES = 1 << 31
"""Activations that are read in all: what bounds the time."""
_FEW = 8
"""Every layer is tried on this part of the images, and as many of the worst layers on all of them."""
_MIN_IMAGES = 64
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
        runs_in: RunsIn,
        *,
        seed: int = 0,
    ) -> None:
        """Reads the graphs.

        Args:
            float_graph: The graph before the quantisation.
            graph: The same after it, with Q/DQ pairs.
            images: uint8 [N, H, W, 3], at least one; they may be mapped from a file.
            runs_in: What runs the two.
            seed: Decides the resamples.

        Raises:
            ExplainError: The two are not of one network, or there are no images.
        """
        if len(images) == 0:
            raise ExplainError(
                "explain: got no training images, expected at least one; give the training split some"
            )
        self.float_model, self.model = onnx.load(float_graph), onnx.load(graph)
        self.images, self.runs_in, self.seed = images, runs_in, seed
        self.layers = read_layers(self.float_model, self.model, graph.name)
        self._expected = self._logits(self.float_model)
        self._loss = LogitLoss(self._expected)

    def find(self, progress: Progress) -> Found:
        """Measures all there is; see the module.

        Args:
            progress: Called with (runs of a graph done, runs in all).
        """
        num_images = len(self.images)
        few = spread(num_images, max(_MIN_IMAGES, num_images // _FEW))
        total, done = len(self.layers) + _FEW + 8, iter(range(1, 1 << 30))

        def step() -> None:
            progress(min(next(done), total), total)

        progress(0, total)
        logits = self._logits(self.model)
        errors = self._loss(logits)
        step()
        read = self._read_activations()
        tried = [layer for layer in self.layers if layer.quantized]
        step()
        for layer in tried:
            self._measure(layer, few, errors)
            step()
        if len(few) < num_images:
            for layer in sorted(tried, key=_worst_first)[:_FEW]:
                self._measure(layer, None, errors)
                step()
        kept, note = self._suggest(sorted(tried, key=_worst_first), logits, errors, step)
        progress(total, total)
        return Found(self.layers, *read, kept, note)

    def put_back(self, names: Sequence[str]) -> onnx.ModelProto:
        """Returns the quantised graph with some layers in float."""
        return with_float(self.model, self.float_model, names)

    def _logits(self, model: onnx.ModelProto, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        return run_logits(self.runs_in, model, self.images, rows)

    def _measure(self, layer: Layer, rows: NDArray[np.int64] | None, errors: NDArray[np.float64]) -> None:
        """Puts one layer back, on the images of some rows, or on all."""
        left = self._loss(self._logits(self.put_back([layer.name]), rows), rows)
        before = errors if rows is None else errors[rows]
        layer.share, layer.num_images = share_gone(left, before, self.seed), len(before)

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
            return [], (
                f"None of {len(logits):,} training images gets another answer and the loss is small: no layer is "
                "worth leaving unquantised"
            )

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
            f"The loss is spread: even the worst {most} layers together recover {100 * best:.0f} % of it on the "
            "training images; where accuracy is lost, training in int8 (qat) is for that"
        )
        return names[:high], spread if best < _ENOUGH else ""

    def _read_activations(self) -> tuple[int, float, str]:
        """Reads inner tensors of both graphs: of how many images, what that changes, and what to know of it."""
        names = list(dict.fromkeys(name for layer in self.layers for name in (layer.source, layer.output)))
        reading = try_reading(self.runs_in, self.model, names, self.images)
        runs = [reading.runs_in.open(model, names) for model in (self.float_model, self.model)]
        rows = spread(len(self.images), max(1, _MAX_VALUES // reading.num_values))
        for start in range(0, len(rows), reading.at_once):
            expected, found = (run(self.images[rows[start : start + reading.at_once]]) for run in runs)
            for layer in self.layers:
                layer.read_input(expected[layer.source])
                layer.read_output(expected[layer.output], found[layer.output])
        note = f"{reading.note}, so the noise is that of {reading.runs_in.title}" if reading.note else ""
        return len(rows), reading.change, note


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
    blame = Blame(*graphs, train, runs_in, seed=seed)
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


def _worst_first(layer: Layer) -> float:
    assert layer.share is not None, "only layers that were put back are ranked"
    return -layer.share.value
