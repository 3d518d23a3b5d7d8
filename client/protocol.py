"""Arrays into KServe v2 messages and back, with no input or output: both clients and the load test use it.

Follows Triton's `grpc_service.proto` and its classification extension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client import wire
from temper.client.errors import (
    ClientError,
    InvalidRequest,
    ModelNotFound,
    NonFiniteOutput,
    ServerError,
    ShortOutput,
    VersionChanged,
)
from temper.client.model import DTYPES, ENCODED, ModelInfo, ServerStatistics
from temper.client.wire import pb
from temper.imaging.preprocess import PREPROCESSING, Preprocessing, read_preprocessing

# Times that a call is made when a promotion makes its answers useless.
MAX_CALLS = 3
# A size the server leaves open (-1) is tried at ImageNet's when the labels are asked for.
_OPEN_SIZE = 224
# Images of one request to a server that takes any number and says nothing of the largest.
_ASSUMED_BATCH = 32
# The typed fields of an answer, for servers that do not send raw bytes.
_CONTENTS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "BOOL": "bool_contents",
}
# An image file of one black pixel, for the same.
_PIXEL = b"P6 1 1 255\n\0\0\0"

Payload = npt.NDArray[Any] | Sequence[bytes]
"""What a model is asked about: images [N, *image_shape], or the files of so many."""


def model_info(name: str, version: str, metadata: Any, config: Any) -> ModelInfo:
    """Make a ModelInfo, without labels, from a ModelMetadataResponse and a ModelConfig.

    Raises:
        InvalidRequest: The model has several inputs, no output, or a type without a fixed size.
    """
    if len(metadata.inputs) != 1 or not metadata.outputs:
        inputs = ", ".join(tensor.name for tensor in metadata.inputs)
        raise InvalidRequest(
            f"model {name}: got {len(metadata.inputs)} inputs ({inputs}) and {len(metadata.outputs)} outputs, "
            "expected one image input and an output"
        )
    source, target = metadata.inputs[0], metadata.outputs[0]
    how = _preprocessing(name, config)
    for tensor in (source, target):
        # Bytes are image files where the server says what it makes of them, and any text elsewhere.
        is_file = tensor is source and tensor.datatype == ENCODED and how is not None
        if tensor.datatype not in DTYPES and not is_file:
            raise InvalidRequest(
                f"model {name}: tensor {tensor.name} is {tensor.datatype}, expected a numeric type"
            )
    batched = 1 if config.max_batch_size > 0 else 0
    output_shape = tuple(int(size) for size in target.shape[batched:])
    return ModelInfo(
        name=name,
        version=version or newest_version(metadata),
        input_name=source.name,
        image_shape=tuple(int(size) for size in source.shape[batched:]),
        output_name=target.name,
        num_classes=output_shape[-1] if output_shape else 1,
        max_batch_size=int(config.max_batch_size),
        input_dtype=source.datatype,
        output_dtype=target.datatype,
        output_shape=output_shape,
        num_outputs=len(metadata.outputs),
        int8_weight_bits=_weight_bits(config),
        preprocessing=how,
        precision_hint=_parameter(config, "precision_hint") or None,
    )


def lacks(error: ClientError) -> bool:
    """Tell whether a server does not know a call at all: KServe v2 has fewer than Triton."""
    return error.code == "UNIMPLEMENTED"


def assumed_config(metadata: Any) -> Any:
    """Make a ModelConfig of a ModelMetadataResponse: tensors whose first size is open take a batch there."""
    shapes = [list(tensor.shape) for tensor in (*metadata.inputs, *metadata.outputs)]
    is_batched = all(len(shape) > 1 and shape[0] == -1 for shape in shapes)
    size = _ASSUMED_BATCH if is_batched else 0
    return pb.ModelConfigResponse(config={"max_batch_size": size}).config


def served_versions(metadata: Any) -> tuple[str, ...]:
    """Return the versions of a ModelMetadataResponse, oldest first."""
    return tuple(sorted(metadata.versions, key=_as_number))


def newest_version(metadata: Any) -> str:
    """Return the version that answers when none is asked for; empty when the server names none."""
    return (served_versions(metadata) or ("",))[-1]


def _weight_bits(config: Any) -> int | None:
    stated = _parameter(config, "int8_weight_bits")
    return int(stated) if stated in ("7", "8") else None


def _preprocessing(name: str, config: Any) -> Preprocessing | None:
    stated = _parameter(config, PREPROCESSING)
    if not stated.lstrip().startswith("{"):  # a model of somebody else may have a parameter of that name
        return None
    try:
        return read_preprocessing(stated)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"model {name}: its config.pbtxt's {error}; publish it again") from error


def _parameter(config: Any, name: str) -> str:
    return str(config.parameters[name].string_value) if name in config.parameters else ""


def check_images(info: ModelInfo, images: npt.NDArray[Any]) -> None:
    """Check images [N, *image_shape] against the model before anything is sent.

    Raises:
        InvalidRequest: The type or the shape does not fit, or there is no image.
    """
    expected = f"{info.input_dtype} [N, {', '.join(str(size) for size in info.image_shape)}]".replace("-1", "any")
    if not isinstance(images, np.ndarray):
        raise InvalidRequest(
            f"images: got {type(images).__name__}, model {info.name} expects a numpy array {expected}"
        )
    if info.takes_encoded:
        raise InvalidRequest(f"images: got pixels, model {info.name} takes image files; use infer_encoded")
    got = f"{_dtype_name(images.dtype)} {list(images.shape)}"
    fits = images.ndim == len(info.image_shape) + 1 and all(
        want in (-1, size) for want, size in zip(info.image_shape, images.shape[1:], strict=True)
    )
    if not fits:
        hint = "; add the batch dimension with images[None]" if images.ndim == len(info.image_shape) else ""
        raise InvalidRequest(f"images: got {got}, model {info.name} expects {expected}{hint}")
    if images.dtype != DTYPES[info.input_dtype]:
        raise InvalidRequest(f"images: got {got}, model {info.name} expects {expected}; convert with .astype")
    if len(images) == 0:
        raise InvalidRequest(f"images: got {got}, model {info.name} expects at least one image")


def check_encoded(info: ModelInfo, files: Sequence[bytes]) -> None:
    """Check image files against the model before anything is sent; what is in them, the server looks at.

    Raises:
        InvalidRequest: The model takes no files, there is none, or one is no bytes.
    """
    if not info.takes_encoded or info.image_shape != (1,):
        shape = [*info.image_shape]
        raise InvalidRequest(
            f"files: model {info.name} takes {info.input_dtype} {shape}, expected one that takes image files, "
            "BYTES [1], as Temper's <model>_jpeg; decode them and use infer"
        )
    if wrong := [type(file).__name__ for file in files if not isinstance(file, bytes)]:
        raise InvalidRequest(f"files: got {wrong[0]}, expected the bytes of an image file each")
    if not files:
        raise InvalidRequest("files: got none, expected at least one")


def split(info: ModelInfo, num_images: int) -> Iterator[slice]:
    """Yield the slices of a batch that fit the model's max_batch_size (single images where it takes no batch)."""
    step = max(1, info.max_batch_size)
    for start in range(0, num_images, step):
        yield slice(start, min(start + step, num_images))


def encode(
    info: ModelInfo, images: Payload, *, version: str = "", request_id: str = "", num_scores: int = 0
) -> bytes:
    """Serialise one ModelInferRequest.

    Args:
        info: The model.
        images: [n, *image_shape], or n files, with n at most max(1, max_batch_size), already checked.
        version: The version that is to answer; empty leaves it to the server.
        request_id: Comes back with the answer.
        num_scores: Ask for the classification extension's top-n strings instead of the tensor.
    """
    request = pb.ModelInferRequest(model_name=info.name, model_version=version, id=request_id)
    shape = (len(images), *(images.shape[1:] if isinstance(images, np.ndarray) else info.image_shape))
    shape = shape if info.max_batch_size > 0 else shape[1:]
    request.inputs.add(name=info.input_name, datatype=info.input_dtype, shape=shape)
    if num_scores or info.num_outputs > 1:
        output = request.outputs.add(name=info.output_name)
        if num_scores:
            output.parameters["classification"].int64_param = num_scores
    request.raw_input_contents.append(_pack(images))
    return bytes(request.SerializeToString())


def _pack(images: Payload) -> bytes:
    """Return the tensor's bytes; of files each with its length before it."""
    if isinstance(images, np.ndarray):
        return np.ascontiguousarray(images).tobytes()
    return b"".join(part for file in images for part in (len(file).to_bytes(4, "little"), file))


def decode(info: ModelInfo, message: bytes | Any, num_images: int) -> npt.NDArray[np.float32]:
    """Return the output [num_images, *output_shape] as float32 of a ModelInferResponse, serialised or parsed.

    Raises:
        ShortOutput: The bytes, or the declared shape, do not amount to the images that were sent.
        VersionChanged: Another version answered than the one that `info` describes.
        ServerError: The output asked for is missing.
    """
    response = wire.parse_response(message) if isinstance(message, bytes) else message
    _check_version(info, response.model_version)
    names = [output.name for output in response.outputs]
    if info.output_name not in names:
        raise ServerError(f"model {info.name}: the answer has no output {info.output_name}")
    index = names.index(info.output_name)
    tensor = response.outputs[index]
    raw = response.raw_output_contents[index] if index < len(response.raw_output_contents) else b""
    shape = tuple(int(size) for size in tensor.shape)
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise ServerError(f"model {info.name}: output {tensor.name} is {tensor.datatype}, expected a numeric type")
    if not response.raw_output_contents and tensor.datatype in _CONTENTS:
        raw = np.array(getattr(tensor.contents, _CONTENTS[tensor.datatype]), dtype).tobytes()
    per_image = shape[1:] if info.max_batch_size > 0 else shape
    rows = shape[0] if info.max_batch_size > 0 and shape else 1
    declared = math.prod(shape) * dtype.itemsize
    fits = all(want in (-1, size) for want, size in zip(info.output_shape, per_image, strict=False))
    fits = fits and len(per_image) == len(info.output_shape) and 0 not in per_image
    if len(raw) != declared or rows != num_images or not fits:
        raise ShortOutput(
            f"model {info.name}: output {tensor.name} holds {len(raw)} bytes and says {list(shape)}, expected "
            f"{declared} bytes and [{num_images}, {', '.join(map(str, info.output_shape))}]; the server's Python "
            "environment may hold a numpy that its stub cannot use"
        )
    return np.frombuffer(raw, dtype).reshape(num_images, *per_image).astype(np.float32, copy=False)


def _check_version(info: ModelInfo, answered: str) -> None:
    if answered and info.version and _as_number(answered) != _as_number(info.version):
        raise VersionChanged(
            f"model {info.name}: version {answered} answered, expected version {info.version}, whose labels and "
            "shapes are known; ask for the model again"
        )


def tells_of_change(error: ClientError, version: str) -> bool:
    """Tell whether a call that failed may be right once the model is learned again: it is another one by now.

    Args:
        error: How it failed.
        version: The version that the caller asked for; an answer of another one is then final.
    """
    if isinstance(error, VersionChanged):
        return not version
    refused = isinstance(error, InvalidRequest) and error.code is not None
    return refused or isinstance(error, ShortOutput)


def version_changed(known: ModelInfo, found: ModelInfo) -> VersionChanged:
    """Return the error of a stream under which the model became another one."""
    return VersionChanged(
        f"model {known.name}: version {known.version} was replaced by {found.version} during the stream; "
        "its labels and shapes may be others: stream again"
    )


def check_finite(info: ModelInfo, output: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the decoded output [N, ...] if all of it are numbers.

    Raises:
        NonFiniteOutput: There is NaN or an infinity among them; the error carries the output.
    """
    if np.isfinite(output).all():
        return output
    broken = np.flatnonzero(~np.isfinite(output).reshape(len(output), -1).all(axis=1))
    raise NonFiniteOutput(
        f"model {info.name} version {info.version}: {info.output_name} holds NaN or an infinity for {len(broken)} "
        f"of {len(output)} images (the first is number {broken[0]}), expected numbers; check the engine",
        scores=output,
    )


def constant_head(info: ModelInfo, message: bytes, num_images: int) -> bytes:
    """Check a serialised answer in full and return what precedes its numbers.

    A later answer of the same length that begins with these bytes differs in its numbers alone.

    Raises:
        ClientError: As `decode` and `check_finite`.
    """
    check_finite(info, decode(info, message, num_images))
    response = wire.parse_response(message)
    raw = response.raw_output_contents[0]
    alone = len(response.raw_output_contents) == 1 and response.outputs[0].datatype == info.output_dtype
    return message[: len(message) - len(raw)] if alone and message.endswith(raw) else message


def label_request(info: ModelInfo, version: str) -> bytes | None:
    """Return a request that makes the server name every class of a zero image; None if it is no classifier."""
    # Triton names no classes of FP16 scores.
    if len(info.output_shape) != 1 or info.num_classes < 1 or info.output_dtype not in ("FP32", "FP64"):
        return None
    if info.takes_encoded:
        return encode(info, [_PIXEL], version=version, num_scores=info.num_classes)
    shape = [_OPEN_SIZE if size == -1 else size for size in info.image_shape]
    zero = np.zeros((1, *shape), DTYPES[info.input_dtype])
    return encode(info, zero, version=version, num_scores=info.num_classes)


def with_labels(info: ModelInfo, message: bytes) -> ModelInfo:
    """Add the class names out of "value:index:label" strings; the model has none where they come without."""
    response = wire.parse_response(message)
    labels = [""] * info.num_classes
    raw = response.raw_output_contents[0] if response.raw_output_contents else b""
    position = 0
    while position + 4 <= len(raw):
        length = int.from_bytes(raw[position : position + 4], "little")
        text = raw[position + 4 : position + 4 + length].decode("utf-8", "replace")
        position += 4 + length
        _, index, name = (text.split(":", 2) + ["", ""])[:3]
        if index.isdecimal() and int(index) < len(labels):
            labels[int(index)] = name
    return replace(info, labels=tuple(labels)) if all(labels) else info


def statistics(response: Any) -> ServerStatistics:
    """Sum a ModelStatisticsResponse over the versions in it."""
    total: dict[str, int] = dict.fromkeys(vars(ServerStatistics()), 0)
    for model in response.model_stats:
        stats = model.inference_stats
        total["num_success"] += stats.success.count
        total["num_fail"] += stats.fail.count
        total["num_inferences"] += model.inference_count
        total["num_executions"] += model.execution_count
        for phase in ("queue", "compute_input", "compute_infer", "compute_output"):
            total[f"{phase}_ns"] += getattr(stats, phase).ns
    return ServerStatistics(**total)


def explain_missing(model: str, index: Any, url: str, code: str | None) -> ModelNotFound:
    """Say why a model is not served, from a RepositoryIndexResponse: what there is instead, or Triton's reason."""
    entries = [entry for entry in index.models if entry.name == model]
    if not entries:
        names = sorted({entry.name for entry in index.models if entry.state == "READY"})
        text = f"model {model!r} is not on {url}; it serves: {', '.join(names) or 'no model'}"
        return ModelNotFound(text, code=code)
    reason = "; ".join(
        f"version {e.version or '?'} is {e.state or 'not loaded'} {e.reason}".strip() for e in entries
    )
    return ModelNotFound(f"model {model!r} on {url} is not ready: {reason}", code=code)


def missing_version(model: str, version: str, served: tuple[str, ...], url: str) -> ModelNotFound:
    """Say that a model is served, but not in the version asked for."""
    text = f"model {model!r} on {url} has no version {version}; it serves: {', '.join(served)}"
    return ModelNotFound(text, code="NOT_FOUND")


def _as_number(version: str) -> int:
    return int(version) if version.isdecimal() else -1


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
