"""After a publisher or a switch was killed, a real tritonserver loads the repository and answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from temper.builder.network.export import run_onnx
from temper.builder.publish.ensemble import publish_jpeg
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.builder.publish.versions import served_version
from temper.client import Client
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

# Publishes another engine under the same name, with other labels, serves it, and dies at the named moment.
KILLED = """
import os, signal, sys
from pathlib import Path
from temper.builder.publish.entry import publish
from temper.builder.publish.switch import switch
from temper.builder.publish.triton_config import PluginBackend, TritonConfig

def hook(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
publish(
    Path(sys.argv[1]),
    TritonConfig(name="toy_fp32", image_size=32, num_classes=10, max_batch=16, backend=backend),
    engine_file=Path(sys.argv[2]),
    labels=[f"class {number}" for number in range(10)],
    card={"recipe": "another"},
)
switch(Path(sys.argv[1]), "toy_fp32", 2, event="promoted")
"""


@pytest.mark.server
@pytest.mark.parametrize("moment", ["toy_fp32/2", "config.pbtxt", "toy_fp32/labels.txt"])
def test_server_loads_what_a_killed_publisher_left(
    sample: Sample, toy_onnx: Path, toy_repository: Path, toy_int8: Path, tmp_path: Path, moment: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(toy_repository), str(toy_int8), moment],
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    assert (toy_repository / "toy_fp32" / "2").exists() == (moment != "toy_fp32/2")
    with (
        TritonServer(toy_repository, log_file=tmp_path / "tritonserver.log") as server,
        Client(server.grpc_url) as client,
    ):
        info = client.model_info("toy_fp32")
        logits = client.infer("toy_fp32", sample.images[:4])
    # config.pbtxt comes first, and decides.
    is_switched = moment == "toy_fp32/labels.txt"
    assert (info.version, info.max_batch_size) == (("2", 16) if is_switched else ("1", 32))
    # The float32 engine of version 1, or the int8 one that was to replace it.
    assert np.allclose(logits, run_onnx(toy_onnx, sample.images[:4]), atol=1e-3) != is_switched


# Serves a version with other batches, with what takes image files for it, and dies when only that is left to do.
HALF = """
import os, signal, sys
from pathlib import Path
from temper.builder.publish.switch import switch

def hook(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("toy_jpeg_decode/config.pbtxt"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
switch(Path(sys.argv[1]), "toy", 2, event="promoted")
"""


@pytest.mark.server
def test_server_ends_a_switch_that_was_killed(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    for max_batch in (8, 4):
        config = TritonConfig(
            name="toy", image_size=32, num_classes=10, max_batch=max_batch, backend=backend, in_ensemble=True
        )
        publish(repository, config, engine_file=toy_onnx, labels=sample.class_names, card={})
        publish_jpeg(repository, config, labels=sample.class_names, card={})
    done = subprocess.run([sys.executable, "-c", HALF, str(repository)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert [served_version(repository / name) for name in ("toy", "toy_jpeg")] == [2, 1]
    with TritonServer(repository, log_file=tmp_path / "log") as server, Client(server.grpc_url) as client:
        assert [client.model_info(name).version for name in ("toy", "toy_jpeg")] == ["2", "2"]
