"""What config.pbtxt says, read back as Triton reads it; and what a server without the backend says of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships none

from temper.builder.errors import PublishError
from temper.builder.publish.entry import publish
from temper.builder.publish.plans import Binding
from temper.builder.publish.serving import ServingConfig
from temper.builder.publish.triton_config import NativeBackend, PluginBackend, TritonConfig, render_config
from temper.client import Client
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

ROOT = Path(__file__).parents[3]
NATIVE = TritonConfig(
    name="m",
    image_size=64,
    num_classes=10,
    max_batch=32,
    backend=NativeBackend(opt_batch=8),
    parameters={"file": "model.plan"},
    num_instances=3,
)
PLUGIN = replace(NATIVE, backend=PluginBackend(engine="tensorrt", opt_batch=8))


def read(config: TritonConfig) -> Any:
    text = render_config(config, version=4, label_filename="labels.txt")
    return text_format.Parse(text.decode(), pb.ModelConfig())


def parameters(message: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in message.parameters.items()}


def test_readme_names_every_parameter_that_is_written_or_read() -> None:
    sources = [*(ROOT / "builder").rglob("*.py"), *(ROOT / "backends" / "temper").rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    known = set(re.findall(r'\bparameters(?:\[|\.get\()"(\w+)"', text))
    known |= set(re.findall(r'"(\w+)": ', " ".join(re.findall(r"\bparameters\s*=\s*(\{.*?\})", text))))
    assert known >= {"engine", "file", "max_batch", "int8_weight_bits", "threads"}
    readme = (ROOT / "model_repository" / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)) == known


def test_native_entry_is_for_tritons_own_backend() -> None:
    message = read(NATIVE)
    assert (message.backend, message.platform) == ("tensorrt", "tensorrt_plan")
    assert message.default_model_filename == "model.plan"
    assert (message.max_batch_size, list(message.version_policy.specific.versions)) == (32, [4])
    assert message.HasField("dynamic_batching")
    (group,) = message.instance_group
    assert (group.count, group.kind, list(group.profile)) == (3, pb.ModelInstanceGroup.KIND_GPU, [])
    assert message.output[0].label_filename == "labels.txt"
    assert parameters(message) == {"engine": "tensorrt", "file": "model.plan"}


@pytest.mark.parametrize(
    ("changes", "size", "timeout_us"),
    [
        ({"num_instances": 2}, 128, 30_000_000),
        ({"max_batch": 1, "num_instances": 1}, 64, 30_000_000),
        ({"serving": ServingConfig(max_queue=5, queue_timeout_ms=500)}, 5, 500_000),
        ({"backend": PLUGIN.backend, "num_instances": 4}, 256, 30_000_000),
        ({"backend": PLUGIN.backend, "in_ensemble": True}, 0, 30_000_000),
    ],
    ids=str,
)
def test_queue_is_bounded(changes: dict[str, Any], size: int, timeout_us: int) -> None:
    policy = read(replace(NATIVE, **changes)).dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (size, timeout_us)
    assert (policy.timeout_action, policy.allow_timeout_override) == (pb.ModelQueuePolicy.REJECT, False)


@pytest.mark.parametrize(
    ("serving", "option", "written"),
    [
        (ServingConfig(watch_queries=25), "watch_queries", "25"),
        (ServingConfig(require_verdict=True), "require_verdict", "true"),
    ],
)
def test_only_the_plugin_is_told_what_it_alone_does(serving: ServingConfig, option: str, written: str) -> None:
    assert option not in parameters(read(PLUGIN))
    assert parameters(read(replace(PLUGIN, serving=serving)))[option] == written
    refused = (
        f"serving.{option}: got {written} with Triton's own backend 'tensorrt', expected Temper's plugin, which "
        "alone does that; set engine.server_backend = 'temper', or leave it out"
    )
    with pytest.raises(PublishError, match=f"^{re.escape(refused)}$"):
        read(replace(NATIVE, serving=serving))


def test_native_entry_lists_every_graph() -> None:
    cuda = read(NATIVE).optimization.cuda
    assert (cuda.graphs, cuda.output_copy_stream) == (True, True)
    specs = [(spec.graph_lower_bound.batch_size, spec.batch_size) for spec in cuda.graph_spec]
    assert specs == [(1, 1), (2, 2), (3, 3), (4, 5), (6, 8), (9, 12), (13, 17), (18, 23), (24, 32)]
    for spec in cuda.graph_spec:
        for given in (spec, spec.graph_lower_bound):
            assert {name: list(shape.dim) for name, shape in given.input.items()} == {"image": [64, 64, 3]}


@pytest.mark.parametrize("max_batch", [1, 7, 32, 128, 256])
@pytest.mark.parametrize("opt_batch", [1, 8, 100])
def test_every_batch_runs_in_a_graph_with_little_padding(max_batch: int, opt_batch: int) -> None:
    """Natively by the lower bounds, and in the plugin by the same rule."""
    config = replace(NATIVE, max_batch=max_batch, backend=NativeBackend(opt_batch=opt_batch))
    specs = read(config).optimization.cuda.graph_spec
    ranges = [(spec.graph_lower_bound.batch_size, spec.batch_size) for spec in specs]
    batches = [batch for low, high in ranges for batch in range(low, high + 1)]
    assert batches == list(range(1, max_batch + 1)), "each in one range"
    assert all(4 * low >= 3 * high for low, high in ranges)
    assert len(ranges) <= 20


def test_few_graphs_that_are_asked_for_pad_no_more() -> None:
    specs = read(replace(NATIVE, backend=NativeBackend(graph_batches=(8, 32)))).optimization.cuda.graph_spec
    assert [(spec.graph_lower_bound.batch_size, spec.batch_size) for spec in specs] == [(6, 8), (24, 32)]


def test_native_entry_copies_through_pinned_memory_and_warms_up() -> None:
    message = read(NATIVE)
    assert message.optimization.input_pinned_memory.enable
    assert message.optimization.output_pinned_memory.enable
    for sample, batch in zip(message.model_warmup, (1, 32), strict=True):
        image = sample.inputs["image"]
        assert (sample.batch_size, image.data_type, list(image.dims)) == (batch, pb.TYPE_UINT8, [64, 64, 3])
        assert image.zero_data


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"opt_batch": 8}, (1, 2, 3, 5, 8, 12, 17, 23, 32)),
        ({"opt_batch": None}, (1, 2, 3, 5, 8, 12, 17, 23, 32)),
        ({"opt_batch": 20}, (1, 2, 3, 5, 8, 12, 17, 20, 23, 32)),
        ({"graph_batches": (16, 4, 4)}, (4, 16)),
        ({"graph_batches": (1, 64)}, (1,)),
        ({"graph_batches": ()}, ()),
    ],
    ids=str,
)
def test_graph_sizes_are_the_same_in_both_backends(changes: dict[str, Any], expected: tuple[int, ...]) -> None:
    native = read(replace(NATIVE, backend=NativeBackend(**changes)))
    plugin = read(replace(PLUGIN, backend=PluginBackend(engine="tensorrt", **changes)))
    assert tuple(spec.batch_size for spec in native.optimization.cuda.graph_spec) == expected
    assert native.optimization.cuda.graphs == bool(expected)
    assert parameters(plugin)["graph_batches"] == ",".join(map(str, expected))


@pytest.mark.parametrize("config", [NATIVE, PLUGIN], ids=["native", "plugin"])
def test_plan_is_chosen_by_compute_capability(config: TritonConfig) -> None:
    files = {"8.9": "model_sm89.plan", "9.0": "model_sm90.plan"}
    message = read(replace(config, cc_model_filenames=files))
    assert dict(message.cc_model_filenames) == files
    assert not message.default_model_filename, "a GPU of another kind must be refused, not given one of these"


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_gpu_engine_of_the_plugin(engine: str) -> None:
    backend = PluginBackend(engine=engine, opt_batch=8, graph_batches=(1, 8, 32))
    message = read(replace(PLUGIN, backend=backend, parameters={"file": "model.bin"}))
    assert (message.backend, message.platform) == ("temper", "")
    (group,) = message.instance_group
    assert (group.count, group.kind) == (3, pb.ModelInstanceGroup.KIND_AUTO)
    assert parameters(message) == {
        "engine": engine,
        "file": "model.bin",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "graph_batches": "1,8,32",
    }
    assert not message.HasField("optimization")


def test_version_compatible_plan_says_so_to_the_plugin() -> None:
    backend = PluginBackend(engine="tensorrt", version_compatible=True)
    assert parameters(read(replace(PLUGIN, backend=backend)))["version_compatible"] == "true"


def test_parameter_that_is_given_wins() -> None:
    given = {**PLUGIN.parameters, "graph_batches": "4"}
    assert parameters(read(replace(PLUGIN, parameters=given)))["graph_batches"] == "4"


@pytest.mark.server
def test_server_without_the_backend_names_the_model_and_serves_its_neighbour(
    sample: Sample, toy_repository: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"a plan")
    publish(
        toy_repository,
        TritonConfig(name="toy_native", image_size=32, num_classes=10, max_batch=32, backend=NATIVE.backend),
        engine_file=plan,
        labels=sample.class_names,
        card={},
        binding=Binding(compute_capability="9.0"),
    )
    with (
        TritonServer(toy_repository, log_file=tmp_path / "tritonserver.log", strict=False) as server,
        Client(server.grpc_url) as client,
    ):
        assert list(server.failed) == ["toy_native"]
        (line,) = server.failed["toy_native"].strip().splitlines()
        assert "unable to find backend library for backend 'tensorrt'" in line
        assert line.endswith("or build it with engine.server_backend = 'temper'")
        assert client.infer("toy_fp32", sample.images[:2]).shape == (2, 10)
