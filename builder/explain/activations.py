"""Inner tensors of a graph as its engine computes them: which there are, and a run that gives them out.

What an engine does not give out, or computes otherwise when it does, the graph's exact arithmetic gives, and
whoever asked is told.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from temper.builder.compress.qdq import residual_adds, weighted_nodes
from temper.builder.contract import INPUT_NAME, OUTPUT_NAME
from temper.builder.data.spread import spread
from temper.builder.engines.kind import ENGINES, EngineConfig, RunOutputs
from temper.builder.errors import EngineError
from temper.builder.network.export import open_session, relative_rms

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 16
"""Images that are run at once, at most."""
_MAX_AT_ONCE = 1 << 24
"""Values that are given out at once: what bounds the memory."""
_MAX_CHANGE = 0.05
_MAX_RATIO = 3.0
"""What reading inner tensors may change: a share of the spread of the logits, and the same of a tensor, or so many
times what the logits are off the exact arithmetic anyway, as on a CPU on which int8 saturates."""
_BLOCK = re.compile(r"layer\d+\.\d+")
_STEM = "stem"
_GIVEN = "/given"


@dataclass(frozen=True)
class RunsIn:
    """What runs a graph so that its inner tensors can be read."""

    title: str
    """In words."""
    engine: EngineConfig | None
    """The engine's settings; None for the graph's exact arithmetic."""
    note: str
    """Why it is not the engine that serves; empty when it is."""

    def open(self, model: onnx.ModelProto, outputs: Sequence[str] = ()) -> RunOutputs:
        """Opens a graph that gives out further tensors.

        Args:
            model: The graph; it stays as it is.
            outputs: Names of its tensors, beside its own outputs.

        Raises:
            EngineError: The engine refuses the graph.
        """
        graph = with_outputs(model, outputs).SerializeToString()
        if self.engine is None:
            run = _open_exact(graph)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                path.write_bytes(graph)
                run = ENGINES.get(self.engine.kind).open_outputs(path, self.engine)
        own = [each.name for each in model.graph.output]

        def named(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            found = run(batch)
            return {name: found[name] if name in own else found[f"{name}{_GIVEN}"] for name in (*own, *outputs)}

        return named


EXACTLY = RunsIn("ONNX Runtime, the graph's exact arithmetic", None, "")
"""The graph's exact arithmetic, whatever the engine."""


def pick_runs_in(engine: EngineConfig, model: onnx.ModelProto) -> RunsIn:
    """Returns what inner tensors are read in: the engine that serves, where it gives them out.

    Args:
        engine: Of the kind that serves, from `pick_engine`.
        model: A graph to try it with.
    """
    kind = ENGINES.get(engine.kind)
    found = RunsIn(kind.title, engine, "")
    try:
        found.open(model, [node.output[0] for node in weighted_nodes(model.graph)[:1]])
    except EngineError as error:
        note = f"{error}; the graph was run in {EXACTLY.title}, which may differ from what is served"
        return RunsIn(EXACTLY.title, None, note)
    return found


@dataclass(frozen=True)
class Reading:
    """How inner tensors of a graph are read."""

    runs_in: RunsIn
    """What gives them out: the engine, where that does not change what it computes; else the exact arithmetic."""
    change: float
    """What giving them out changed in the logits of what was tried, as a share of their spread."""
    note: str
    """Why the engine does not give them out, in a clause; empty when it does."""
    num_values: int
    """How many values one image gives."""

    @property
    def at_once(self) -> int:
        """Images that may be run at once."""
        return max(1, min(BATCH, _MAX_AT_ONCE // self.num_values))


def try_reading(
    runs_in: RunsIn, model: onnx.ModelProto, outputs: Sequence[str], images: NDArray[np.uint8]
) -> Reading:
    """Tries on a batch of images whether a graph computes the same when it gives out inner tensors.

    OpenVINO 2026.4 does not, for some int8 networks when they give out what convolutions give: the logits change,
    and some of the tensors. So both are looked at: the logits against those that the engine gives when it is asked
    for nothing else, the tensors against the exact arithmetic's, from which they may be as far away as the logits
    are anyway, and some more.

    Args:
        runs_in: What runs it.
        model: The graph.
        outputs: Names of its tensors, beside its own outputs.
        images: uint8 [N, H, W, 3], at least one; of more than a batch some are taken, evenly spread.

    Raises:
        EngineError: The graph is refused.
    """
    run = runs_in.open(model, outputs)
    num_values = sum(value.size for value in run(images[:1]).values())
    found = Reading(runs_in, 0.0, "", num_values)
    rows = spread(len(images), BATCH)
    plain, exactly = runs_in.open(model), EXACTLY.open(model, outputs)
    logits, off = [], list[float]()
    for start in range(0, len(rows), found.at_once):
        batch = images[rows[start : start + found.at_once]]
        own, given, exact = plain(batch), run(batch), exactly(batch)
        logits.append([each[OUTPUT_NAME] for each in (own, given, exact)])
        off += [relative_rms(exact[name], given[name]) for name in outputs]
    own_logits, given_logits, exact_logits = (np.concatenate(parts) for parts in zip(*logits, strict=True))
    change = relative_rms(own_logits, given_logits)
    usual, worst = relative_rms(exact_logits, own_logits), float(np.max(off))  # NaN, where there is one
    if not change <= _MAX_CHANGE:
        what = f"the logits by {100 * change:.0f} % of their spread"
    elif not worst <= max(_MAX_CHANGE, _MAX_RATIO * usual):
        what = f"a tensor by {100 * worst:.0f} % of its spread"
    else:
        return replace(found, change=change)
    note = f"giving out inner tensors changes what {runs_in.title} computes ({what})"
    return Reading(EXACTLY, change, note, num_values)


def run_logits(
    runs_in: RunsIn,
    model: onnx.ModelProto,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float32]:
    """Returns the logits of a graph, which gives out nothing else.

    Args:
        runs_in: What runs it.
        model: The graph.
        images: uint8 [N, H, W, 3], at least one; they may be mapped from a file.
        rows: Which of them, [n]; all when not given.
        progress: Called with the number of images done.

    Returns:
        [n, classes].

    Raises:
        EngineError: The graph is refused.
    """
    run, parts = runs_in.open(model), []
    total = len(images) if rows is None else len(rows)
    for start in range(0, total, BATCH):
        part = slice(start, start + BATCH)
        parts.append(run(images[part if rows is None else rows[part]])[OUTPUT_NAME])
        progress(min(start + BATCH, total))
    return np.concatenate(parts)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Returns a copy of a graph that also gives some of its tensors, in float32, as their names and `_GIVEN`."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    own = {each.name for each in changed.graph.output}
    for name in dict.fromkeys(names):
        if name in own:
            continue
        given = f"{name}{_GIVEN}"
        # An engine hands bfloat16 over as bits that nothing here reads.
        changed.graph.node.append(helper.make_node("Cast", [name], [given], given, to=TensorProto.FLOAT))
        changed.graph.output.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, None))
    return changed


def activated(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """Returns the tensor that a node gives to the others: after the ReLU where nothing else reads it before."""
    readers = [each for each in graph.node if node.output[0] in each.input]
    alone = len(readers) == 1 and readers[0].op_type == "Relu"
    output: str = readers[0].output[0] if alone else node.output[0]
    return output


def block_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Returns the tensor [N, C, H, W] that every block of a ResNet gives, by its name: `stem`, `layer1.0`, ...

    Args:
        model: The graph, float or quantised, of any widths.
    """
    graph = model.graph
    adds = residual_adds(graph)
    pools = [node for node in graph.node if node.op_type == "MaxPool"]
    found = {_STEM: pools[0].output[0]} if pools else {}
    for number, node in enumerate(adds):
        match = _BLOCK.search(node.name)
        found[match.group() if match else f"block {number + 1}"] = activated(graph, node)
    return found


def with_pooled(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Returns a copy of a graph that also averages tensors over the image, and the averages' names by tensor."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    pooled = {}
    for tensor in tensors:
        pooled[tensor] = f"{tensor}/pooled"
        wide, average = f"{tensor}/wide", f"{tensor}/average"
        # In float32: half precision would round the averages once more.
        changed.graph.node.extend(
            [
                helper.make_node("Cast", [tensor], [wide], wide, to=TensorProto.FLOAT),
                helper.make_node("GlobalAveragePool", [wide], [average], average),
                helper.make_node("Flatten", [average], [pooled[tensor]], pooled[tensor], axis=1),
            ]
        )
    return changed, pooled


def _open_exact(graph: bytes) -> RunOutputs:
    try:
        session = open_session(graph)
    except Exception as error:  # ONNX Runtime's own, without a common base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(f"ONNX Runtime cannot run the graph: {reason}") from error
    names = [each.name for each in session.get_outputs()]

    def run(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        found = session.run(names, {INPUT_NAME: np.ascontiguousarray(batch)})
        return {name: np.asarray(value, np.float32) for name, value in zip(names, found, strict=True)}

    return run
