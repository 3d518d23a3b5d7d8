"""Triton's config.pbtxt, written from the protobuf message that tritonclient ships.

One description, `TritonConfig`, for whatever serves a model: the plugin, Triton's own TensorRT backend, an
ensemble, or the mean at an ensemble's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from temper.builder.contract import INPUT_NAME, NUM_CHANNELS, OUTPUT_NAME
from temper.builder.publish.serving import ServingConfig

# The wire, written once (see DESIGN's contract): names that the export, the plugin and every client share.
BACKEND = "temper"

ServerBackend = Literal["temper", "tensorrt", "ensemble", "temper_mean"]


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
    parameters: Mapping[str, str] = field(default_factory=dict)
    """String parameters; `engine` is the kind of engine, `file` its name in the version's folder."""
    num_instances: int = 1
    """Model instances."""
    serving: ServingConfig = field(default_factory=ServingConfig)
    """What bounds its queue; an ensemble has none of its own, its members' bound it."""
    in_ensemble: bool = False
    """A step of an ensemble, whose queue is bounded by time alone."""
    server_backend: ServerBackend = "temper"
    """What runs it: the plugin, Triton's own TensorRT backend, Triton's ensemble scheduler, or the mean."""
    opt_batch: int | None = None
    """The batch that the engine was tuned for."""
    graph_batches: tuple[int, ...] | None = None
    """Batch sizes that get a CUDA graph on a GPU; None is 1, `opt_batch` and `max_batch`, empty is none."""
    version_compatible: bool = False
    """The plan carries the host code that lets it run on later versions of TensorRT."""
    cc_model_filenames: Mapping[str, str] = field(default_factory=dict)
    """Compute capability, as "9.0", to the file built for it; a GPU that is not named takes `file`."""
    members: tuple[str, ...] = ()
    """`ensemble`, `temper_mean`: the models whose logits are averaged."""

    @property
    def prepared_batches(self) -> tuple[int, ...]:
        """The batch sizes that get a CUDA graph, ascending."""
        wanted = (1, self.opt_batch or 1, self.max_batch) if self.graph_batches is None else self.graph_batches
        return tuple(sorted({batch for batch in wanted if 1 <= batch <= self.max_batch}))


def mean_name(model: str) -> str:
    """Returns the name of the model that averages an ensemble's logits."""
    return f"{model}_mean"


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

    message = pb.ModelConfig(name=config.name, max_batch_size=config.max_batch)
    message.version_policy.specific.versions.append(version)
    _add_tensors(message, config, label_filename, pb)
    if config.server_backend == "ensemble":
        _add_steps(message, config)
    else:
        message.backend = config.server_backend
        _add_queue(message, config)
        _add_backend(message, config, pb)
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    text: str = text_format.MessageToString(message)
    return text.encode()


def _add_queue(message: Any, config: TritonConfig) -> None:
    """Adds the batcher, and the bound of what waits for it: by default Triton queues without end.

    `timeout_action` stays at REJECT, Triton's default; DELAY would keep what nobody waits for any more.
    """
    queue = message.dynamic_batching.default_queue_policy
    # A step that is refused because its queue is full leaves an ensemble's request unanswered for ever, or takes
    # the server along (2.51; core pull request 466 mends it, February 2026). Refused in time it ends as it should.
    if not config.in_ensemble:
        queue.max_queue_size = config.serving.queue_size(config.max_batch, config.num_instances)
    queue.default_timeout_microseconds = config.serving.queue_timeout_ms * 1000


def _add_tensors(message: Any, config: TritonConfig, label_filename: str, pb: Any) -> None:
    if config.server_backend == "temper_mean":
        for index in range(len(config.members)):
            message.input.add(name=_member_logits(index), data_type=pb.TYPE_FP32, dims=[config.num_classes])
    else:
        message.input.add(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=_image_dims(config))
    message.output.add(
        name=OUTPUT_NAME,
        data_type=pb.TYPE_FP32,
        dims=[config.num_classes],
        label_filename=label_filename,
    )


def _add_backend(message: Any, config: TritonConfig, pb: Any) -> None:
    """Adds the instances, and what only one of the backends reads."""
    group, engine = pb.ModelInstanceGroup, config.parameters.get("engine")
    for capability, name in config.cc_model_filenames.items():
        message.cc_model_filenames[capability] = name
    if config.server_backend == "tensorrt":
        kind = group.KIND_GPU
        _add_native(message, config, pb)
    elif config.server_backend == "temper_mean" or engine == "openvino":
        kind = group.KIND_CPU
    else:
        # KIND_GPU would make Triton itself refuse a machine without a GPU, in a line that helps nobody; so the
        # plugin is asked, which says why. With a GPU the two are the same.
        kind = group.KIND_AUTO
        message.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
        message.parameters["graph_batches"].string_value = ",".join(map(str, config.prepared_batches))
        if config.version_compatible:
            message.parameters["version_compatible"].string_value = "true"
    # No `profile`: the engine has one, and since TensorRT 10 several contexts may share it.
    message.instance_group.add(count=config.num_instances, kind=kind)


def _add_native(message: Any, config: TritonConfig, pb: Any) -> None:
    """Adds what Triton's TensorRT backend reads (tensorrt_backend, src/instance_state.cc and tensorrt_model.cc).

    Two options stay off: `eager_batching` prepares the next batch while one runs, at the price of smaller batches;
    `gather_kernel_buffer_threshold` swaps many small copies for a kernel on the GPU that is busy. Either may pay,
    which is for a measurement on the user's load to say.
    """
    message.platform = "tensorrt_plan"
    # With files per compute capability there is no default: a plan for another GPU must not be tried.
    if not config.cc_model_filenames:
        message.default_model_filename = config.parameters.get("file", "model.plan")
    optimization = message.optimization
    optimization.input_pinned_memory.enable = True
    optimization.output_pinned_memory.enable = True
    cuda = optimization.cuda
    # Answers travel while the next batch runs; costs a second set of tensors on the GPU.
    cuda.output_copy_stream = True
    cuda.graphs = bool(config.prepared_batches)
    for batch in config.prepared_batches:
        # Listed one by one: left to itself the backend captures 1 and the largest only, as this model has
        # `dynamic_batching` (InitializeGraphSpecs). A batch of any other size runs without a graph.
        spec = cuda.graph_spec.add(batch_size=batch)
        spec.input[INPUT_NAME].dim.extend(_image_dims(config))
    for batch in sorted({1, config.max_batch}):
        sample = message.model_warmup.add(name=f"batch of {batch}", batch_size=batch)
        image = sample.inputs[INPUT_NAME]
        image.data_type = pb.TYPE_UINT8
        image.dims.extend(_image_dims(config))
        image.zero_data = True


def _add_steps(message: Any, config: TritonConfig) -> None:
    """Adds an ensemble's steps: every member on the image, then their mean."""
    message.platform = "ensemble"
    steps = message.ensemble_scheduling.step
    for index, member in enumerate(config.members):
        step = steps.add(model_name=member, model_version=-1)
        step.input_map[INPUT_NAME] = INPUT_NAME
        step.output_map[OUTPUT_NAME] = _member_logits(index)
    mean = steps.add(model_name=mean_name(config.name), model_version=-1)
    for index in range(len(config.members)):
        mean.input_map[_member_logits(index)] = _member_logits(index)
    mean.output_map[OUTPUT_NAME] = OUTPUT_NAME


def _image_dims(config: TritonConfig) -> list[int]:
    return [config.image_size, config.image_size, NUM_CHANNELS]


def _member_logits(index: int) -> str:
    return f"{OUTPUT_NAME}_{index}"
