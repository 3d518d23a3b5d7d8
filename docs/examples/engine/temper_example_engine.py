"""An engine kind of another package: ONNX Runtime on the CPU. `kind = "ort"` in a recipe takes it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from temper.builder.contract import INPUT_NAME
from temper.builder.engines.kind import BuildJob, EngineConfig, EngineKind, Run
from temper.builder.errors import EngineError
from temper.builder.publish.triton_config import Backend, PluginBackend

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class OrtConfig(EngineConfig):
    """ONNX Runtime on the CPU."""

    kind: Literal["ort"] = "ort"
    optimize: bool = True
    """Let it rewrite the graph."""


class Ort(EngineKind[OrtConfig]):
    """Runs the ONNX file itself, on any CPU."""

    name = "ort"
    title = "ONNX Runtime"
    package = "onnxruntime"
    symbol = "InferenceSession"
    project = "onnxruntime"
    file = "model.onnx"
    device = "cpu"
    runs_in_process = True
    config = OrtConfig

    def why_not_run(self) -> str | None:
        """It runs wherever it is installed."""
        return self.why_not_build()

    def build(self, job: BuildJob[OrtConfig]) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """Copies the graph, and runs it on the images."""
        import onnxruntime

        shutil.copyfile(job.onnx_path, job.folder / self.file)
        run = self.open_graph(job.folder / self.file, job.config)
        logits = run(job.images) if job.images is not None and len(job.images) > 0 else None
        return {"runtime": f"ONNX Runtime {onnxruntime.__version__}"}, logits

    def backend(self, config: OrtConfig, weight_bits: int | None) -> Backend:
        """Temper's plugin, which finds our runner by its entry point of the group `temper.runners`."""
        parameters = {"optimize": "yes" if config.optimize else "no"}
        return PluginBackend(engine=self.name, on_cpu=True, parameters=parameters)

    def open_graph(self, path: Path, config: OrtConfig) -> Run:
        """Loads a graph as the runner does."""
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if not config.optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base
            reason = (str(error).splitlines() or [""])[0]
            raise EngineError(f"engine ort: cannot load {path.name}: {reason}") from error

        def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = session.run(None, {INPUT_NAME: np.ascontiguousarray(batch)})[0]
            return logits

        return run


ORT = Ort()
