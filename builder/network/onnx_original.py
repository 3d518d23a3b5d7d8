"""An ONNX classifier as its owner runs it: ONNX Runtime on the file, its preprocessing in numpy.

It is what the imported graph is compared with, so it shares nothing with the import but the file that was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.errors import reason_of
from temper.builder.network.export import open_session
from temper.builder.network.onnx_bounds import check_bounds
from temper.builder.network.onnx_read import Classifier, wrong
from temper.builder.quiet import quiet_native

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto

_BATCH = 32
# They change the shape or the type of an answer, and not what it says: what is beside the classes is 1.
_PASSING = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Cast")
_ENDS = {"Softmax": "softmax", "LogSoftmax": "log softmax", "Sigmoid": "sigmoid"}
_ANSWER_TYPES = ("float16", "float32", "float64")


class Original:
    """The file's own answers to images."""

    removed: str | None = None
    """`softmax`, `log softmax` or `sigmoid`: what follows the logits; None when nothing does."""
    logits_name: str
    """The tensor that holds them."""
    logits_rank: int
    """The number of its dimensions, 2 or 4."""
    num_classes: int
    """Their number."""

    def __init__(
        self,
        classifier: Classifier,
        size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        bgr: bool,
    ) -> None:
        """Opens the file and asks it once.

        Args:
            classifier: What was read.
            size: Height and width of the images.
            mean: Mean per channel, RGB, on a scale of 0 to 1; not for a graph of uint8, which has its own.
            std: Standard deviation per channel, likewise.
            bgr: Whether it wants blue first.

        Raises:
            ModelError: It would fill the memory, ONNX Runtime does not run it, or it is no classifier.
        """
        check_bounds(classifier, size)
        self._of, self._bgr = classifier, bgr
        self.path, self.batch = classifier.path, classifier.batch
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        ends = list(_ends(classifier))
        model = onnx.ModelProto()
        model.CopyFrom(classifier.model)
        del model.graph.output[1:]
        model.graph.output.extend(onnx.ValueInfoProto(name=node.input[0]) for node in ends)
        try:
            with quiet_native():
                self._session = open_session(model.SerializeToString())
        except Exception as error:  # ONNX Runtime's own, without a common base
            raise wrong(classifier.path, f"ONNX Runtime does not run it: {reason_of(error)}") from error
        self.logits_name = classifier.output_name
        noise = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
        answer, *before = self._ask(noise, [classifier.output_name, *(node.input[0] for node in ends)])
        logits = answer
        for node, found in zip(ends, before, strict=True):
            if _is_same(_applied(node.op_type, found), answer):
                self.removed, self.logits_name, logits = _ENDS[node.op_type], node.input[0], found
                break
        self._check(answer, logits)
        self.logits_rank, self.num_classes = logits.ndim, logits[0].size

    def _check(self, answer: NDArray[Any], logits: NDArray[Any]) -> None:
        path, name = self._of.path, str(answer.dtype)
        if name not in _ANSWER_TYPES:
            raise wrong(path, f"answers {name} {list(answer.shape)}, expected a score for every class, as floats")
        if sum(dim > 1 for dim in logits.shape[1:]) > 1 or logits.ndim not in (2, 4):
            raise wrong(
                path, f"answers {['N', *answer.shape[1:]]}, expected [N, classes]; use the file of a classifier"
            )
        if logits[0].size < 2:
            raise wrong(
                path, "answers one number, expected a score for every class; give it two outputs, [0, x] for x"
            )

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits, float32 [N, classes], of uint8 images [N, H, W, 3]."""
        (found,) = self._ask(images, [self.logits_name])
        return found.reshape(len(found), -1).astype(np.float32)

    def _ask(self, images: NDArray[np.uint8], names: list[str]) -> list[NDArray[Any]]:
        at_once = self._of.batch or _BATCH
        parts = []
        for start in range(0, len(images), at_once):
            batch = images[start : start + at_once]
            missing = (self._of.batch or 0) - len(batch)
            if missing > 0:  # it takes no fewer
                batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            try:
                with quiet_native():
                    found = self._session.run(names, {self._of.input_name: self._prepare(batch)})
            except Exception as error:  # ONNX Runtime's own, without a common base
                raise wrong(self._of.path, f"ONNX Runtime does not run it: {reason_of(error)}") from error
            if any(each.ndim < 2 or len(each) != len(batch) for each in found):
                shape = list(found[0].shape)
                raise wrong(self._of.path, f"answers {shape} to {len(batch)} images, expected [N, classes]")
            parts.append([each[: len(images) - start] for each in found])
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _prepare(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        pixels: NDArray[Any] = images
        if self._of.dtype != "uint8":
            pixels = ((images.astype(np.float32) / 255 - self._mean) / self._std).astype(self._of.dtype)
        if self._bgr:
            pixels = pixels[..., ::-1]
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if self._of.layout == "NCHW" else pixels)


def _ends(classifier: Classifier) -> Iterator[NodeProto]:
    """What may turn logits into probabilities just before the answer."""
    producers = {name: node for node in classifier.model.graph.node for name in node.output}
    node = producers.get(classifier.output_name)
    while node is not None:
        if node.op_type in _ENDS:
            yield node
        if node.op_type not in _PASSING:
            return
        node = producers.get(node.input[0])


def _applied(op: str, logits: NDArray[Any]) -> NDArray[np.float64]:
    """What an operator over all classes makes of logits; its axis is not asked for, as opsets differ in it."""
    values = logits.reshape(len(logits), -1).astype(np.float64)
    if op == "Sigmoid":
        return np.asarray(1 / (1 + np.exp(-values)))
    shifted = values - values.max(1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return np.asarray(log if op == "LogSoftmax" else np.exp(log))


def _is_same(expected: NDArray[np.float64], answer: NDArray[Any]) -> bool:
    found = answer.reshape(len(answer), -1).astype(np.float64)
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=1e-2, atol=1e-3))
