"""Triton's config.pbtxt, written from the protobuf message that tritonclient ships.

`TritonConfig` is what every model says; a `Backend` adds what it alone reads: the plugin, Triton's own TensorRT
backend, an ensemble, or what stands at an ensemble's ends: a decoder, a defence, the mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

from temper.builder.contract import ENCODED_NAME, INPUT_NAME, NUM_CHANNELS, OUTPUT_NAME
from temper.builder.errors import PublishError
from temper.builder.publish.defence import Defence, render_defences
from temper.builder.publish.serving import ServingConfig
from temper.imaging.preprocess import PREPROCESSING, Preprocessing, Size, sides

# The largest share of a graph's batch that is padding: padded images cost GPU time like any other. A choice, not a
# measurement, and the plugin's as well (backends/temper/runners/tensorrt_runner.py).
_MAX_PADDING = 0.25
# The tensor between a defence and the members.
_DEFENDED = "defended"


@dataclass(frozen=True, kw_only=True)
class TritonConfig:
    """What config.pbtxt says about a model, but for the version that it serves."""

    name: str
    """The model's name."""
    image_size: Size
    """Height and width of the input in pixels, or one number for both."""
    num_classes: int
    """Length of the output."""
    max_batch: int
    """The largest batch that Triton puts together."""
    backend: Backend
    """What runs it."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Further string parameters; they win over the backend's own."""
    preprocessing: Preprocessing | None = None
    """How an image is made into the input; clients read it from here."""
    num_instances: int = 1
    """Model instances."""
    serving: ServingConfig = field(default_factory=ServingConfig)
    """What bounds its queue; an ensemble has none of its own, its members' bound it."""
    in_ensemble: bool = False
    """A step of an ensemble, whose queue is bounded by time alone."""
    cc_model_filenames: Mapping[str, str] = field(default_factory=dict)
    """Compute capability, as "9.0", to the file built for it; a GPU that is not named takes `file`."""

    @property
    def image_dims(self) -> list[int]:
        """The input's shape without the batch."""
        return [*sides(self.image_size), NUM_CHANNELS]


class Backend(ABC):
    """A backend of Triton, and what it alone is told."""

    name: ClassVar[str]
    """As config.pbtxt names it."""
    watches_queries: ClassVar[bool] = True
    """Whether `serving.watch_queries` has an effect, for itself or the members of an ensemble."""
    checks_verdicts: ClassVar[bool] = True
    """Whether `serving.require_verdict` has, likewise."""

    @abstractmethod
    def fill(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds to the message what this backend reads.

        Args:
            message: An `inference.ModelConfig` with the name, the version, the output and the input.
            config: The model.
            pb: tritonclient's module of messages.
        """

    def add_inputs(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the inputs: the image."""
        message.input.add(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=config.image_dims)

    def add_outputs(self, message: Any, config: TritonConfig, pb: Any, label_filename: str) -> None:
        """Adds the outputs: the logits."""
        message.output.add(
            name=OUTPUT_NAME,
            data_type=pb.TYPE_FP32,
            dims=[config.num_classes],
            label_filename=label_filename,
        )


@dataclass(frozen=True, kw_only=True)
class PluginBackend(Backend):
    """Temper's plugin (backends/temper), which runs every kind of engine that has a runner."""

    name = "temper"

    engine: str
    """The engine kind, which decides on the runner."""
    on_cpu: bool = False
    """The engine reads host memory and runs on the CPU."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What the runner reads."""
    opt_batch: int | None = None
    """The batch that the engine was tuned for."""
    graph_batches: tuple[int, ...] | None = None
    """Batch sizes that get a CUDA graph on a GPU; None as in `graph_sizes`, empty is none."""
    version_compatible: bool = False
    """The plan carries the host code that lets it run on later versions of TensorRT."""

    def fill(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the queue, the instances and the parameters."""
        parameters = {"engine": self.engine}
        kind = pb.ModelInstanceGroup.KIND_CPU
        if not self.on_cpu:
            # KIND_GPU would make Triton itself refuse a machine without a GPU, in a line that helps nobody; so the
            # plugin is asked, which says why. With a GPU the two are the same.
            kind = pb.ModelInstanceGroup.KIND_AUTO
            parameters["FORCE_CPU_ONLY_INPUT_TENSORS"] = "no"
            sizes = graph_sizes(self.graph_batches, self.opt_batch, config.max_batch)
            parameters["graph_batches"] = ",".join(map(str, sizes))
        if self.version_compatible:
            parameters["version_compatible"] = "true"
        if config.serving.watch_queries is not None:
            parameters["watch_queries"] = str(config.serving.watch_queries)
        if config.serving.require_verdict:
            parameters["require_verdict"] = "true"
        _add_parameters(message, {**parameters, **self.parameters})
        _add_scheduler(message, config, kind)


@dataclass(frozen=True, kw_only=True)
class NativeBackend(Backend):
    """Triton's own TensorRT backend (tensorrt_backend, src/instance_state.cc and tensorrt_model.cc).

    Two options stay off: `eager_batching` prepares the next batch while one runs, at the price of smaller batches;
    `gather_kernel_buffer_threshold` swaps many small copies for a kernel on the GPU that is busy. Either may pay,
    which is for a measurement on the user's load to say.
    """

    name = "tensorrt"
    watches_queries = checks_verdicts = False

    opt_batch: int | None = None
    """The batch that the plan was tuned for."""
    graph_batches: tuple[int, ...] | None = None
    """Batch sizes that get a CUDA graph; None as in `graph_sizes`, empty is none."""

    def fill(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the queue, the instances, the graphs and the samples to warm up with."""
        message.platform = "tensorrt_plan"
        _add_parameters(message, {"engine": "tensorrt"})
        _add_scheduler(message, config, pb.ModelInstanceGroup.KIND_GPU)
        # With files per compute capability there is no default: a plan for another GPU must not be tried.
        if not config.cc_model_filenames:
            message.default_model_filename = config.parameters.get("file", "model.plan")
        self._add_optimization(message.optimization, config)
        for batch in sorted({1, config.max_batch}):
            sample = message.model_warmup.add(name=f"batch of {batch}", batch_size=batch)
            image = sample.inputs[INPUT_NAME]
            image.data_type = pb.TYPE_UINT8
            image.dims.extend(config.image_dims)
            image.zero_data = True

    def _add_optimization(self, optimization: Any, config: TritonConfig) -> None:
        sizes = graph_sizes(self.graph_batches, self.opt_batch, config.max_batch)
        optimization.input_pinned_memory.enable = True
        optimization.output_pinned_memory.enable = True
        cuda = optimization.cuda
        # Answers travel while the next batch runs; costs a second set of tensors on the GPU.
        cuda.output_copy_stream = True
        cuda.graphs = bool(sizes)
        for smaller, size in pairwise((0, *sizes)):
            # Listed one by one: left to itself the backend captures 1 and the largest only, as this model has
            # `dynamic_batching` (InitializeGraphSpecs). Without a lower bound only a batch of this very size would
            # take the graph. What the rows behind a smaller batch hold changes none of its own.
            spec = cuda.graph_spec.add(batch_size=size)
            spec.graph_lower_bound.batch_size = max(smaller + 1, _smallest_padded(size))
            for shape in (spec.input[INPUT_NAME], spec.graph_lower_bound.input[INPUT_NAME]):
                shape.dim.extend(config.image_dims)


@dataclass(frozen=True, kw_only=True)
class EnsembleBackend(Backend):
    """Triton's ensemble scheduler: a decoder or a defence if wanted, every member, then the mean of several."""

    name = "ensemble"

    members: tuple[str, ...]
    """The models whose logits are averaged; a single one behind a defence or a decoder."""
    defend: tuple[Defence, ...] = ()
    """What the image goes through before any of them, in order."""
    decode: bool = False
    """Whether it takes image files as they are, which are decoded before all else."""

    def add_inputs(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the inputs: the image, or its file."""
        if self.decode:
            _add_encoded(message, pb)
        else:
            super().add_inputs(message, config, pb)

    def fill(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the steps."""
        message.platform = self.name
        steps = message.ensemble_scheduling.step
        image = INPUT_NAME
        if self.decode:
            decode = steps.add(model_name=decode_name(config.name), model_version=-1)
            decode.input_map[ENCODED_NAME] = ENCODED_NAME
            decode.output_map[INPUT_NAME] = INPUT_NAME
        if self.defend:
            defence = steps.add(model_name=defence_name(config.name), model_version=-1)
            defence.input_map[INPUT_NAME] = INPUT_NAME
            defence.output_map[_DEFENDED] = image = _DEFENDED
        for index, member in enumerate(self.members):
            step = steps.add(model_name=member, model_version=-1)
            step.input_map[INPUT_NAME] = image
            step.output_map[OUTPUT_NAME] = _member_logits(index) if len(self.members) > 1 else OUTPUT_NAME
        if len(self.members) == 1:
            return
        mean = steps.add(model_name=mean_name(config.name), model_version=-1)
        for index in range(len(self.members)):
            mean.input_map[_member_logits(index)] = _member_logits(index)
        mean.output_map[OUTPUT_NAME] = OUTPUT_NAME


@dataclass(frozen=True, kw_only=True)
class MeanBackend(Backend):
    """The last step of an ensemble (backends/temper_mean)."""

    name = "temper_mean"

    num_members: int
    """How many models' logits are averaged."""

    def fill(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the queue and the instances."""
        _add_scheduler(message, config, pb.ModelInstanceGroup.KIND_CPU)

    def add_inputs(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the inputs: every member's logits."""
        for index in range(self.num_members):
            message.input.add(name=_member_logits(index), data_type=pb.TYPE_FP32, dims=[config.num_classes])


@dataclass(frozen=True, kw_only=True)
class DefenceBackend(Backend):
    """The first step of a defended ensemble (backends/temper_defence)."""

    name = "temper_defence"

    defend: tuple[Defence, ...]
    """What it does, in order."""

    def fill(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the queue, the instances and the defences."""
        _add_parameters(message, {"defend": render_defences(self.defend)})
        _add_scheduler(message, config, pb.ModelInstanceGroup.KIND_CPU)

    def add_outputs(self, message: Any, config: TritonConfig, pb: Any, label_filename: str) -> None:
        """Adds the outputs: the image behind the defences."""
        message.output.add(name=_DEFENDED, data_type=pb.TYPE_UINT8, dims=config.image_dims)


@dataclass(frozen=True, kw_only=True)
class DecodeBackend(Backend):
    """The first step of an ensemble that takes image files (backends/temper_decode); it reads `preprocessing`."""

    name = "temper_decode"

    def fill(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the queue and the instances: one, whose threads use all cores."""
        _add_scheduler(message, replace(config, num_instances=1), pb.ModelInstanceGroup.KIND_CPU)

    def add_inputs(self, message: Any, config: TritonConfig, pb: Any) -> None:
        """Adds the inputs: the image's file."""
        _add_encoded(message, pb)

    def add_outputs(self, message: Any, config: TritonConfig, pb: Any, label_filename: str) -> None:
        """Adds the outputs: the image."""
        message.output.add(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=config.image_dims)


def check_serving(serving: ServingConfig, backend: Backend) -> None:
    """Refuses to have a backend watch queries, or ask for verdicts, which cannot.

    Raises:
        PublishError: As said.
    """
    for option, value, possible in (
        ("watch_queries", serving.watch_queries, backend.watches_queries),
        ("require_verdict", serving.require_verdict or None, backend.checks_verdicts),
    ):
        if value is not None and not possible:
            shown = "true" if value is True else value
            raise PublishError(
                f"serving.{option}: got {shown} with Triton's own backend {backend.name!r}, expected Temper's "
                "plugin, which alone does that; set engine.server_backend = 'temper', or leave it out"
            )


def mean_name(model: str) -> str:
    """Returns the name of the model that averages an ensemble's logits."""
    return f"{model}_mean"


def defence_name(model: str) -> str:
    """Returns the name of the model that stands before the members of a defended ensemble."""
    return f"{model}_defence"


def jpeg_name(model: str) -> str:
    """Returns the name of the model that takes image files for another one."""
    return f"{model}_jpeg"


def decode_name(model: str) -> str:
    """Returns the name of the model that decodes what an ensemble takes."""
    return f"{model}_decode"


def graph_sizes(graph_batches: tuple[int, ...] | None, opt_batch: int | None, max_batch: int) -> tuple[int, ...]:
    """Returns the batch sizes that get a CUDA graph, ascending.

    Args:
        graph_batches: The wanted ones; None for `opt_batch` and as many as it takes for every batch to run in a
            graph with little padding.
        opt_batch: The batch that the engine was tuned for.
        max_batch: The largest; greater ones are left out.
    """
    if graph_batches is None:
        wanted, size = {opt_batch or 1}, max_batch
        while size > 0:
            wanted.add(size)
            size = _smallest_padded(size) - 1
    else:
        wanted = set(graph_batches)
    return tuple(sorted(batch for batch in wanted if 1 <= batch <= max_batch))


def _smallest_padded(size: int) -> int:
    """Returns the smallest batch that is filled up to a size; the plugin pads as much."""
    return math.ceil((1 - _MAX_PADDING) * size)


def render_config(config: TritonConfig, *, version: int, label_filename: str) -> bytes:
    """Returns config.pbtxt for one version of a model.

    Args:
        config: The model.
        version: The only version that Triton shall load.
        label_filename: The file of class names, relative to the model's folder.

    Returns:
        The text form of `inference.ModelConfig`, UTF-8.

    Raises:
        PublishError: As from `check_serving`.
    """
    check_serving(config.serving, config.backend)
    # Here, not at the top: tritonclient.grpc costs 0.3 s, and every command imports this package's configs.
    from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
    from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships none

    message = pb.ModelConfig(name=config.name, max_batch_size=config.max_batch)
    message.version_policy.specific.versions.append(version)
    config.backend.add_inputs(message, config, pb)
    config.backend.add_outputs(message, config, pb, label_filename)
    for capability, name in config.cc_model_filenames.items():
        message.cc_model_filenames[capability] = name
    config.backend.fill(message, config, pb)
    if config.preprocessing is not None:
        _add_parameters(message, {PREPROCESSING: config.preprocessing.render()})
    _add_parameters(message, config.parameters)
    text: str = text_format.MessageToString(message)
    return text.encode()


def _add_parameters(message: Any, parameters: Mapping[str, str]) -> None:
    for key, value in parameters.items():
        message.parameters[key].string_value = value


def _add_scheduler(message: Any, config: TritonConfig, kind: int) -> None:
    """Adds the backend's name, the instances and the batcher, and bounds what waits for it.

    By default Triton queues without end. `timeout_action` stays at REJECT, its default; DELAY would keep what
    nobody waits for any more.
    """
    message.backend = config.backend.name
    # No `profile`: the engine has one.
    message.instance_group.add(count=config.num_instances, kind=kind)
    queue = message.dynamic_batching.default_queue_policy
    # A step that is refused because its queue is full leaves an ensemble's request unanswered for ever, or takes
    # the server along (2.51; core pull request 466 mends it, February 2026). Refused in time it ends as it should.
    if not config.in_ensemble:
        queue.max_queue_size = config.serving.queue_size(config.max_batch, config.num_instances)
    queue.default_timeout_microseconds = config.serving.queue_timeout_ms * 1000


def _add_encoded(message: Any, pb: Any) -> None:
    message.input.add(name=ENCODED_NAME, data_type=pb.TYPE_STRING, dims=[1])


def _member_logits(index: int) -> str:
    return f"{OUTPUT_NAME}_{index}"
