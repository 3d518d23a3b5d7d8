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
