"""ModelOpt's post-training quantisation of an ONNX graph; `qat.py` is the way with training."""

from __future__ import annotations

import difflib
import fnmatch
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from temper.builder.compress.qdq import products, residual_adds, weighted_nodes
from temper.builder.compress.saturation import reduce_weights
from temper.builder.compress.step import GraphContext, GraphStep, Need
from temper.builder.errors import QuantizeError
from temper.builder.names import short_names
from temper.builder.network.adversarial import AdversarialConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from temper.builder.engines.kind import EngineKind

_CALIBRATION_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How a network is quantised."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    precision: Literal["int8", "fp8"] = "int8"
    """The type of weights and activations; fp8 is E4M3, for GPUs of compute capability 8.9 and later."""
    method: Literal["entropy", "max", "qat"] = "entropy"
    """How an activation's range is chosen: least loss of information, or the largest value seen. `qat` takes the
    largest value and then trains the network with its quantisers, int8 only."""
    epochs: int = 1
    """Epochs that `qat` trains for."""
    learning_rate: float = 1e-4
    """The largest learning rate of `qat`; small, as the network is nearly right."""
    adversarial: AdversarialConfig | None = None
    """`qat` learns on perturbed images what the teacher answers to the unperturbed ones."""
    keep_high: tuple[str, ...] = ()
    """Layers and residual additions to leave unquantised: `layer1.0.conv1`, `layer1.0.add`, the names of the ONNX
    graph's nodes, or patterns of those such as `*/layer1.0/*`."""
    max_loss: float | None = None
    """Leave the most sensitive layers unquantised until the loss of agreement with float32 is at most this, in
    percentage points on the calibration images."""
    reduce_range: Literal["auto", True, False] = "auto"
    """Whether int8 weights use 7 bits, which cannot saturate on CPUs without VNNI or AMX. `auto` measures, for an
    engine that runs on CPUs, whether 8 bits do."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is not one of its choices, or does not go with another.
        """
        if self.precision not in ("int8", "fp8"):
            raise ValueError(f"precision: got {self.precision!r}, expected 'int8' or 'fp8'")
        if self.method not in ("entropy", "max", "qat"):
            raise ValueError(f"method: got {self.method!r}, expected 'entropy', 'max' or 'qat'")
        if self.max_loss is not None and not 0 <= self.max_loss <= 100:
            raise ValueError(f"max_loss: got {self.max_loss}, expected 0 to 100 percentage points")
        if self.epochs < 1:
            raise ValueError(f"epochs: got {self.epochs}, expected at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: got {self.learning_rate}, expected a positive number")
        if self.reduce_range not in ("auto", True, False):
            raise ValueError(f"reduce_range: got {self.reduce_range!r}, expected 'auto', true or false")
        if self.reduce_range is True and self.precision != "int8":
            raise ValueError(f"reduce_range: got true with precision {self.precision!r}, expected 'int8'")
        if self.method == "qat":
            self._check_qat()
        else:
            self._check_untrained()

    def _check_untrained(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("epochs", "learning_rate", "adversarial") and value != field.default:
                found = "it" if field.name == "adversarial" else value
                raise ValueError(
                    f"{field.name}: got {found} with method {self.method!r}, which does not train; expected it "
                    "with method 'qat' only"
                )

    def _check_qat(self) -> None:
        if self.precision != "int8":
            raise ValueError(f"precision: got {self.precision} with method 'qat', expected int8")
        for name in ("keep_high", "max_loss"):
            if getattr(self, name) not in ((), None):
                raise ValueError(
                    f"{name}: got it with method 'qat', which trains every layer; leave one of them out"
                )


class Quantize(GraphStep[QuantizeConfig]):
    """Quantises weights and activations, after training or by training on."""

    name = "quantize"
    about = "Quantise weights and activations."
    config = QuantizeConfig
    place = 50

    def needs(self, config: QuantizeConfig) -> frozenset[Need]:
        """`qat` trains."""
        return frozenset({"training"}) if config.method == "qat" else frozenset()

    def libraries(self, config: QuantizeConfig) -> tuple[str, ...]:
        """OpenVINO's answers decide on the range, when it is asked."""
        found = ("torch",) if config.method == "qat" else ()
        asked = ("openvino",) if config.reduce_range == "auto" else ()
        return ("nvidia-modelopt", "onnx", "onnxruntime-gpu", *found, *asked)

    def settle(self, config: QuantizeConfig, engine: EngineKind[Any]) -> QuantizeConfig:
        """Only int8 saturates, and only on CPUs."""
        if config.reduce_range == "auto" and (not engine.saturates_int8 or config.precision != "int8"):
            return replace(config, reduce_range=False)
        return config

    def precision(self, config: QuantizeConfig) -> str:
        """The type of weights and activations."""
        return config.precision

    def leaves_float(self, config: QuantizeConfig) -> bool:
        """What lies between the quantised layers is float32."""
        return True

    def label(self, config: QuantizeConfig) -> str:
        """Says whether it trains."""
        return f"{'train in' if config.method == 'qat' else 'quantise to'} {config.precision}"

    def note(self, info: dict[str, Any]) -> str:
        """How near the graph is to float32."""
        return f"agrees with float32 on {100 * info['against_float32']['agreement']:.1f} %"

    def run(self, source: Path, target: Path, config: QuantizeConfig, context: GraphContext) -> dict[str, Any]:
        """Quantises, checks where the Q/DQ pairs are, and compares with float32.

        Returns:
            As `quantize_onnx`, `quantize_within` or `run_qat`, and audit (see `audit_qdq`), against_float32 (see
            `compare_logits`), weight_bits.
        """
        from temper.builder.compress.qdq import audit_qdq
        from temper.builder.compress.saturation import weight_bits
        from temper.builder.network.export import compare_logits, run_onnx

        if config.method == "qat":
            info = _train(config, target, context)
        else:
            info = _quantize_graph(config, source, target, context)
        audit = audit_qdq(target, config.precision, kept_high=info.get("kept_high", ())).to_json()
        against = compare_logits(run_onnx(source, context.images), run_onnx(target, context.images))
        return {**info, "against_float32": against, "audit": audit, "weight_bits": weight_bits(target)}


STEP = Quantize()


def _train(config: QuantizeConfig, target: Path, context: GraphContext) -> dict[str, Any]:
    from temper.builder.compress.qat import QatConfig, run_qat

    training = context.open_training()
    names = ("epochs", "learning_rate", "reduce_range", "adversarial")
    schedule = QatConfig(**{name: getattr(config, name) for name in names})
    return run_qat(training.network, schedule, training.context, target)


def _quantize_graph(config: QuantizeConfig, source: Path, target: Path, context: GraphContext) -> dict[str, Any]:
    """Quantises after training, with 7-bit weights where a measurement asks for them."""
    from temper.builder.compress.saturation import settle_range

    def quantize(config: QuantizeConfig) -> dict[str, Any]:
        if config.max_loss is None:
            return quantize_onnx(source, target, context.calibration, config, context.progress)
        return _quantize_within(config, source, target, context)

    info = quantize(config)
    if config.precision == "int8":
        reduce, range_info = settle_range(
            config.reduce_range, target, context.calibration, source, context.progress
        )
        if reduce and config.reduce_range == "auto":
            if config.max_loss is None:
                reduce_weights(target, source)
            else:  # other weights lose something else
                info = quantize(replace(config, reduce_range=True))
        info |= {"reduce_range": range_info}
    return info


def _quantize_within(config: QuantizeConfig, source: Path, target: Path, context: GraphContext) -> dict[str, Any]:
    from temper.builder.compress.sensitivity import quantize_within

    assert config.max_loss is not None, "without a budget there is nothing to search"

    def quantize(kept: Sequence[str]) -> dict[str, Any]:
        return quantize_onnx(source, target, context.calibration, replace(config, keep_high=tuple(kept)))

    return quantize_within(
        source,
        target,
        context.calibration,
        quantize,
        max_loss=config.max_loss,
        keep_high=config.keep_high,
        progress=context.progress,
    )


def quantize_onnx(
    src: Path,
    dst: Path,
    calibration: NDArray[np.uint8],
    config: QuantizeConfig,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes a quantised copy of a graph: weights with a scale per output channel, activations per tensor.

    Args:
        src: The float32 graph, from `export_onnx`.
        dst: The file to write.
        calibration: Real images, uint8 [M, H, W, 3]; they are read in batches and may be memory-mapped.
        config: Precision and calibration method. `reduce_range` reduces when it is True; "auto" is for
            `temper.builder.compress.saturation` to settle, and leaves 8 bits here.
        progress: Called with (calibration images done, images in all).

    Returns:
        precision, method, num_calibration, size_bytes, kept_high (names of nodes left out on request).

    Raises:
        QuantizeError: There are no calibration images, they do not fit the graph, `keep_high` names no node, or
            ModelOpt fails.
    """
    assert config.method != "qat", "that starts from the PyTorch network: qat.py"
    _check_calibration(src, calibration)
    kept_high = find_nodes(src, config.keep_high)
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quantize-", dir=dst.parent) as folder:
        work = Path(folder)
        # ModelOpt writes intermediate files beside its source.
        shutil.copyfile(src, work / "source.onnx")
        _run_modelopt(work / "source.onnx", work / "quantized.onnx", calibration, config, kept_high, progress)
        if config.reduce_range is True:
            reduce_weights(work / "quantized.onnx", src)
        os.replace(work / "quantized.onnx", dst)
    return {
        "precision": config.precision,
        "method": config.method,
        "num_calibration": len(calibration),
        "size_bytes": dst.stat().st_size,
        "kept_high": kept_high,
    }


def find_nodes(src: Path, patterns: Sequence[str]) -> list[str]:
    """Returns the weighted nodes and residual additions of a graph that patterns name, in the graph's order.

    Raises:
        QuantizeError: A pattern names none; lists those with the nearest names.
    """
    import onnx

    graph = onnx.load(src, load_external_data=False).graph
    wanted = {node.name for node in (*weighted_nodes(graph), *residual_adds(graph))}
    short = short_names([node.name for node in graph.node if node.name in wanted])
    found = set[str]()
    for pattern in patterns:
        matching = {name for name in short if pattern == short[name] or fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            near = difflib.get_close_matches(pattern, short if "/" in pattern else short.values(), n=3, cutoff=0.0)
            raise QuantizeError(
                f"keep_high: no layer is called {pattern!r}; the nearest are {', '.join(near)}; "
                "a pattern matches the node's whole name, as `*/layer1.0/*` does"
            )
        found |= matching
    return [name for name in short if name in found]


def _check_calibration(src: Path, images: NDArray[np.uint8]) -> None:
    import onnx

    if len(images) == 0:
        raise QuantizeError(
            f"{src}: got no calibration images, expected real ones; int8 scales are never made up, so give the "
            "training split at least one image"
        )
    (graph_input,) = onnx.load(src, load_external_data=False).graph.input
    expected = [dim.dim_value for dim in graph_input.type.tensor_type.shape.dim][1:]
    if str(images.dtype) != "uint8" or list(images.shape[1:]) != expected:
        raise QuantizeError(
            f"{src}: got calibration images {images.dtype} {list(images.shape)}, expected uint8 "
            f"{['N', *expected]}; prepare the data with the model's image size"
        )


def _run_modelopt(
    src: Path,
    dst: Path,
    calibration: NDArray[np.uint8],
    config: QuantizeConfig,
    kept_high: list[str],
    progress: Callable[[int, int], None] | None,
) -> None:
    import onnx

    from temper.builder.quiet import quiet_modelopt

    # Their range is learnt from few images, and a softmax's falls apart in int8.
    excluded = [*kept_high, *(node.name for node in products(onnx.load(src).graph))]
    try:
        with quiet_modelopt():
            from modelopt.onnx.quantization import quantize  # type: ignore[import-untyped]  # ships none

            quantize(
                str(src),
                quantize_mode=config.precision,
                calibration_method=config.method,
                calibration_data_reader=_reader(calibration, progress),
                calibration_eps=["cpu"],
                output_path=str(dst),
                nodes_to_exclude=[f"{re.escape(name)}$" for name in excluded],
                high_precision_dtype="fp32",
                dq_only=True,
                log_level="WARNING",
                # A rule for TensorRT: it would leave a head of fewer than 16 classes in float.
                enable_gemv_detection_for_trt=False,
            )
        onnx.checker.check_model(str(dst), full_check=True)  # ModelOpt only warns
    except OSError:
        raise  # the disk, not the model: the store says what to do
    except Exception as error:  # whatever ModelOpt, ONNX Runtime or a graph library throws
        reason = (str(error).splitlines() or [""])[0]
        raise QuantizeError(f"{src.name}: ModelOpt failed: {type(error).__name__}: {reason}") from error


def _reader(images: NDArray[np.uint8], progress: Callable[[int, int], None] | None) -> Any:
    """Returns what ONNX Runtime's calibrator reads batches from."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader  # type: ignore[import-untyped]  # ships none

    from temper.builder.contract import INPUT_NAME

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self.position = 0

        def get_first(self) -> dict[str, NDArray[np.uint8]]:
            return {INPUT_NAME: np.ascontiguousarray(images[:_CALIBRATION_BATCH])}

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = images[self.position : self.position + _CALIBRATION_BATCH]
            if progress is not None:
                progress(self.position, len(images))
            self.position += len(batch)
            return {INPUT_NAME: np.ascontiguousarray(batch)} if len(batch) else None

        def rewind(self) -> None:
            self.position = 0

    return Reader()
