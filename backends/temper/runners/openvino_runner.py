"""OpenVINO on CPU: reads the ONNX that ModelOpt wrote, Q/DQ nodes included."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov  # type: ignore[import-untyped]  # ships no types

import runners
from artifact import ArtifactError, Entry
from external_data import WEIGHTS_OUTSIDE, keeps_weights_outside

_TRITON_TYPE = {"u8": "TYPE_UINT8", "f32": "TYPE_FP32"}
_PRECISIONS = ("f32", "bf16", "f16")
# The flags of CPUs whose int8 products are not added with saturation at 16 bits, and the caps of oneDNN that leave
# them in use, or none of them: as in builder/engines/isa.py, which says more.
_AMX = ("AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16", "AVX10_1_512_AMX", "AVX10_1_512_AMX_FP16")
_EXACT = {
    "amx_int8": _AMX,
    "avx512_vnni": ("AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512", *_AMX),
    "avx_vnni": ("AVX2_VNNI", "AVX2_VNNI_2"),
}
_INEXACT_CAPS = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


@functools.cache
def _open_core() -> ov.Core:
    """Return the only core: when one of several goes, signal handlers may be left on an unmapped stack."""
    return ov.Core()


def signature(entry: Entry, config: Mapping[str, Any]) -> runners.Signature:
    """Names, types and shapes as the ONNX has them, whatever config.pbtxt states; Triton compares the two."""
    del config
    model = _read(_open_core(), entry)
    return runners.Signature(input=_describe(model.inputs, "input"), output=_describe(model.outputs, "output"))


class Runner:
    """A compiled model with one infer request; one thread at a time may call it.

    Parameters it reads from config.pbtxt: `precision_hint` (f32, bf16 or f16; f32 by default, because OpenVINO
    would pick bf16 by itself where the CPU has it), `threads` (all cores by default) and `int8_weight_bits` (8 is
    worth a warning on some CPUs).
    """

    accepts_device_tensors = False

    def __init__(self, entry: Entry, instance: runners.Instance) -> None:
        """Compile for latency: all threads work on one batch.

        Raises:
            ArtifactError: The file is no model that OpenVINO can compile, or a parameter is not allowed.
        """
        hint = entry.parameters.get("precision_hint", "f32")
        if hint not in _PRECISIONS:
            raise ArtifactError(f"precision_hint: got {hint!r}, expected one of {', '.join(_PRECISIONS)}")
        threads = entry.parameters.get("threads") or str(len(os.sched_getaffinity(0)))
        core = _open_core()
        model = _read(core, entry)
        try:
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": hint,
                    "NUM_STREAMS": "1",
                    "INFERENCE_NUM_THREADS": threads,
                    # A lone instance answers sooner on pinned threads; several would be pinned to the same cores.
                    "ENABLE_CPU_PINNING": "YES" if instance.num_instances == 1 else "NO",
                },
            )
        except RuntimeError as error:
            raise ArtifactError(f"{entry.file}: OpenVINO cannot compile it: {_last_line(error)}") from error
        self._request = compiled.create_infer_request()
        height, width, channels = _describe(model.inputs, "input").dims
        self._buffer = np.empty((instance.max_batch, height, width, channels), np.uint8)
        ran = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.description = f"OpenVINO {ov.__version__.split('-')[0]}, {ran}, {threads} threads"
        if entry.parameters.get("int8_weight_bits") == "8" and saturates(_read_flags(), os.environ):
            instance.log(
                f"{entry.file}: this CPU has neither VNNI nor AMX, so int8 weights of 8 bits saturate and answers "
                f"may differ from other CPUs' (verified on: {entry.figures.get('isa', 'unknown')}); build it "
                "again with reduce_range = true"
            )

    def infer(self, batches: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float32]]:
        """Run batches of images as one inference.

        Args:
            batches: UINT8 [n_i, H, W, 3] each, together at most `max_batch` images.

        Returns:
            FP32 [n_i, classes] per batch. The arrays view the engine's output, which the next call overwrites.

        Raises:
            RunnerError: The engine failed.
        """
        images = batches[0]
        if len(batches) > 1:
            images = self._buffer[: sum(map(len, batches))]
            np.concatenate(batches, out=images)
        try:
            # Shared: OpenVINO reads the request's own memory, or our buffer, without another copy.
            self._request.infer([ov.Tensor(np.ascontiguousarray(images), shared_memory=True)])
        except RuntimeError as error:
            raise runners.RunnerError(
                f"OpenVINO failed on a batch of {len(images)}: {_last_line(error)}"
            ) from error
        logits = self._request.get_output_tensor().data
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        return list(np.split(logits, ends))

    def close(self) -> None:
        """Nothing to give back: OpenVINO frees its memory with this object."""


def saturates(flags: Collection[str], environment: Mapping[str, str]) -> bool:
    """Whether int8 products are added with saturation: on x86-64 without VNNI or AMX, or where a cap hides them.

    Args:
        flags: The CPU's, as /proc/cpuinfo names them.
        environment: May cap the instruction set.
    """
    if "sse2" not in flags:  # not x86-64
        return False
    cap = (environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or "").upper()
    is_capped = cap in _INEXACT_CAPS or any(cap in caps for caps in _EXACT.values())
    return not any(flag in flags and (not is_capped or cap in caps) for flag, caps in _EXACT.items())


def _read_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _read(core: Any, entry: Entry) -> Any:
    # Not by its path: exactly these bytes were verified.
    content = entry.read()
    if keeps_weights_outside(content):
        raise ArtifactError(f"{entry.file}: {WEIGHTS_OUTSIDE}")
    try:
        return core.read_model(content)
    except RuntimeError as error:
        raise ArtifactError(f"{entry.file}: OpenVINO cannot read it: {_last_line(error)}") from error


def _describe(ports: Sequence[Any], what: str) -> runners.TensorSignature:
    if len(ports) != 1:
        raise ArtifactError(f"got {len(ports)} {what}s, expected one; export the model with `temper build`")
    port = ports[0]
    shape, kind = port.partial_shape, port.element_type.get_type_name()
    if kind not in _TRITON_TYPE or not shape[0].is_dynamic or any(size.is_dynamic for size in list(shape)[1:]):
        raise ArtifactError(
            f"{what} {port.any_name}: got {kind} {shape}, expected a dynamic batch of u8 or f32 with fixed sizes; "
            "export the model with `temper build`"
        )
    dims = [size.get_length() for size in list(shape)[1:]]
    return runners.TensorSignature(name=port.any_name, data_type=_TRITON_TYPE[kind], dims=dims)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
