"""OpenVINO reads the Q/DQ ONNX as it is: nothing is compiled ahead of time, but the graph is loaded once."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from temper.builder.contract import INPUT_NAME, OUTPUT_NAME
from temper.builder.engines.isa import instruction_set
from temper.builder.engines.kind import BuildJob, EngineConfig, EngineKind, Run, RunOutputs, check_hint
from temper.builder.errors import EngineError
from temper.builder.publish.triton_config import Backend, PluginBackend

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class OpenVinoConfig(EngineConfig):
    """OpenVINO on the CPU."""

    not_built_from: ClassVar[tuple[str, ...]] = ("num_instances", "opt_batch")

    kind: Literal["openvino"] = "openvino"
    precision_hint: Literal["f32", "bf16"] = "f32"
    """The type of what is not quantised. Left to itself OpenVINO takes bf16 where the CPU has it."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        super().__post_init__()
        check_hint(self.precision_hint)


class OpenVino(EngineKind[OpenVinoConfig]):
    """Runs the ONNX file itself, on any CPU."""

    name = "openvino"
    title = "OpenVINO"
    package = "openvino"
    symbol = "Core"
    project = "openvino"
    extra = "embedded"
    file = "model.onnx"
    device = "cpu"
    rank = 100
    saturates_int8 = True
    runs_in_process = True
    config = OpenVinoConfig

    def why_not_run(self) -> str | None:
        """Loads it: it runs wherever it loads."""
        if not self.is_installed:
            return self.why_not_build()
        try:
            open_core()
        except EngineError as error:
            return str(error)
        return None

    def machine_key(self) -> str | None:
        """The instruction set that it is verified on."""
        return instruction_set()

    def build(self, job: BuildJob[OpenVinoConfig]) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """Copies the graph, compiles it, and compares it with exact arithmetic when there are images.

        Returns:
            precision_hint, runtime, device, isa (the instruction set that it was verified on, None when it is not
            x86-64), and with images the agreement with the exact arithmetic; and the logits, float32
            [N, classes], or None without images.

        Raises:
            EngineError: OpenVINO refuses the graph or gives logits that are not finite.
        """
        from temper.builder.network.export import compare_logits, run_onnx

        shutil.copyfile(job.onnx_path, job.folder / self.file)
        core = open_core()
        try:
            compiled = core.compile_model(
                core.read_model(job.folder / self.file),
                "CPU",
                {"INFERENCE_PRECISION_HINT": job.config.precision_hint},
            )
            info: dict[str, Any] = {
                "precision_hint": job.config.precision_hint,
                "runtime": f"OpenVINO {_version()}",
                "isa": instruction_set(),
                "device": str(core.get_property("CPU", "FULL_DEVICE_NAME")),
            }
            logits = None
            if job.images is not None and len(job.images) > 0:
                logits = _infer(compiled, job)
                info["against_exact"] = compare_logits(run_onnx(job.onnx_path, job.images), logits)
        except RuntimeError as error:
            reason = _last_line(str(error))
            raise EngineError(f"engine openvino: cannot compile {job.onnx_path.name}: {reason}") from error
        return info, logits

    def backend(self, config: OpenVinoConfig, weight_bits: int | None) -> Backend:
        """The plugin, on the CPU."""
        parameters: dict[str, str] = {"precision_hint": config.precision_hint}
        if weight_bits is not None:
            parameters["int8_weight_bits"] = str(weight_bits)
        return PluginBackend(engine=self.name, on_cpu=True, parameters=parameters)

    def open_graph(self, path: Path, config: OpenVinoConfig) -> Run:
        """Compiles a graph with the settings of the plugin."""
        run = self.open_outputs(path, config)
        return lambda batch: run(batch)[OUTPUT_NAME]

    def open_outputs(self, path: Path, config: OpenVinoConfig) -> RunOutputs:
        """Compiles a graph with the settings of the plugin; outputs are not fused with what follows them."""
        import numpy as np

        # As backends/temper/runners/openvino_runner.py, which imports nothing of ours.
        settings = {
            "INFERENCE_PRECISION_HINT": config.precision_hint,
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "ENABLE_CPU_PINNING": "YES" if config.num_instances == 1 else "NO",
        }
        try:
            compiled = open_core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            reason = _last_line(str(error))
            raise EngineError(f"engine openvino: cannot compile {path.name}: {reason}") from error
        request = compiled.create_infer_request()
        names = {name: index for index, each in enumerate(compiled.outputs) for name in each.names}

        def run(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            found = request.infer({INPUT_NAME: np.ascontiguousarray(batch)})
            # Copies: the next call writes into the same memory.
            return {name: np.array(found[index], np.float32) for name, index in names.items()}

        return run


OPENVINO = OpenVino()


@functools.cache
def open_core() -> Any:
    """Returns the one `openvino.Core` of this process.

    A second one is dangerous: the CPU plugin of each gives the thread its own stack for signal handlers and, when
    it goes, brings back the one it had found. Unless the last to come goes first, that one is unmapped by then,
    and the next signal kills the process without a word (OpenVINO 2026.4; torch's data loader handles SIGCHLD).

    Raises:
        EngineError: The package does not load.
    """
    try:
        import openvino  # type: ignore[import-untyped]  # ships none

        return openvino.Core()
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EngineError(
            f"engine openvino: the package openvino cannot be used: {reason}; run `{OPENVINO.install}`"
        ) from error


def _version() -> str:
    import openvino

    version: str = openvino.get_version()
    return version.split("-")[0]


def _infer(compiled: Any, job: BuildJob[OpenVinoConfig]) -> NDArray[np.float32]:
    import numpy as np

    assert job.images is not None
    batches = range(0, len(job.images), job.config.max_batch)
    chunks = (np.ascontiguousarray(job.images[start : start + job.config.max_batch]) for start in batches)
    logits: NDArray[np.float32] = np.concatenate([compiled({INPUT_NAME: chunk})[0] for chunk in chunks])
    if not bool(np.isfinite(logits).all()):
        raise EngineError(f"engine openvino: {job.onnx_path.name} gives logits that are not finite")
    return logits


def _last_line(text: str) -> str:
    """OpenVINO's messages begin with its source files; the reason is at the end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
