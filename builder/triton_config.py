"""Triton's config.pbtxt, written from the protobuf message that tritonclient ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The wire, written once (see DESIGN's contract): names that the export, the plugin and every client share.
INPUT_NAME = "image"
OUTPUT_NAME = "logits"
NUM_CHANNELS = 3
BACKEND = "temper"


@dataclass(frozen=True, kw_only=True)
class TritonConfig:
    """What config.pbtxt says about a model, but for the version that it serves."""

    name: str
    """The model's name."""
    image_size: int
    """Height and width of the input, in pixels."""
    num_classes: int
    """Length of the output."""
    max_batch: int
    """The largest batch that Triton puts together."""
    parameters: Mapping[str, str]
    """String parameters for the plugin; `engine` decides between CPU and GPU instances."""
    num_instances: int = 1
    """Model instances."""


def render_config(config: TritonConfig, *, version: int, label_filename: str) -> bytes:
    """Returns config.pbtxt for one version of a model.

    Args:
        config: The model.
        version: The only version that Triton shall load.
        label_filename: The file of class names, relative to the model's folder.

    Returns:
        The text form of `inference.ModelConfig`, UTF-8.
    """
    # Here, not at the top: tritonclient.grpc costs 0.3 s, and every command imports this package's configs.
    from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
    from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships none

    message = pb.ModelConfig(name=config.name, backend=BACKEND, max_batch_size=config.max_batch)
    message.version_policy.specific.versions.append(version)
    message.input.add(
        name=INPUT_NAME,
        data_type=pb.TYPE_UINT8,
        dims=[config.image_size, config.image_size, NUM_CHANNELS],
    )
    message.output.add(
        name=OUTPUT_NAME,
        data_type=pb.TYPE_FP32,
        dims=[config.num_classes],
        label_filename=label_filename,
    )
    group = pb.ModelInstanceGroup
    on_cpu = config.parameters.get("engine") == "openvino"
    message.instance_group.add(count=config.num_instances, kind=group.KIND_CPU if on_cpu else group.KIND_GPU)
    message.dynamic_batching.SetInParent()
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    text: str = text_format.MessageToString(message)
    return text.encode()
