"""Shared by all tests: a small real model, a repository that holds it, and a real tritonserver that serves it."""

from __future__ import annotations

import importlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from temper.builder.engines.gpu import read_driver
from temper.builder.engines.kind import ENGINES
from temper.plugins import Registry
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample


# A shell that runs the tests in the background makes them, and every process they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def why_no_gpu() -> str | None:
    """The driver's own reason why this process has no NVIDIA GPU; None when it has one."""
    return read_driver()[1] or None


@cache
def why_no_engine(kinds: tuple[Literal["tensorrt", "tensorrt-rtx"], ...]) -> str | None:
    """Why none of these kinds runs on this GPU; None when one of them does, or none is asked for."""
    reasons = [ENGINES.get(kind).why_not_run() for kind in kinds]
    return "; ".join(filter(None, reasons)) if reasons and all(reasons) else None


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Installs small packages, each a module with entry points, for the length of a test.

    Called with a registry, the package's name, its module's text, and name=object of each entry point; returns the
    folder that a process of its own needs in PYTHONPATH.
    """
    site, touched = tmp_path / "site-packages", list[Registry[object]]()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loaded = set(sys.modules)

    def write(registry: Registry[object], package: str, text: str, points: dict[str, str]) -> Path:
        about = site / f"{package}-1.0.dist-info"
        about.mkdir(parents=True)
        (site / f"{package}.py").write_text(text)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {package}:{value}\n" for name, value in points.items()]
        (about / "entry_points.txt").write_text(f"[{registry.group}]\n{''.join(lines)}")
        touched.append(registry)
        _forget(registry)
        return site

    yield write
    for registry in touched:
        _forget(registry)
    for module in [name for name in sys.modules.keys() - loaded if (site / f"{name}.py").exists()]:
        del sys.modules[module]


def _forget(registry: Registry[object]) -> None:
    """Makes a registry look again for what is installed."""
    vars(registry).pop("_others", None)
    importlib.invalidate_caches()


# Before any fixture: a server for a test that is skipped need not start.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, or where none of the kinds that the mark names runs."""
    marker = item.get_closest_marker("gpu")
    if marker and (reason := why_no_gpu() or why_no_engine(marker.args)):
        pytest.skip(reason)


_MAKES_NETWORKS = ("builder/compress/", "builder/network/", "builder/test_build.py")
"""Where nearly every test builds, trains or quantises one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what makes a network, so that nobody has to think of it: `make test-fast` leaves it out."""
    for item in items:
        if "sample" in getattr(item, "fixturenames", ()) or any(part in item.nodeid for part in _MAKES_NETWORKS):
            item.add_marker(pytest.mark.slow)


Mount = Callable[[Path, str], list[str]]


@pytest.fixture(scope="session")
def mount() -> Mount:
    """Gives what to write before a command so that a folder is a file system of its own there, in memory.

    It needs no root, as it is of the command's own name space, and goes with the command.
    """

    def words(folder: Path, options: str) -> list[str]:
        script = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
        before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder)]
        probe = subprocess.run([*before, "true"], capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            pytest.skip(f"no file system may be mounted here: {probe.stderr.strip()}")
        return before

    return words


Until = Callable[[Callable[[], object]], None]


@pytest.fixture(scope="session")
def until() -> Until:
    """Waits for an event, however busy the machine is: pytest's own limit ends what hangs."""

    def wait(happened: Callable[[], object]) -> None:
        while not happened():
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def ask_http() -> Callable[..., tuple[int, str]]:
    """Sends a request past every proxy; returns its status, 0 when nothing answers, and what came back."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(method: str, url: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
        try:
            with opener.open(
                urllib.request.Request(url, body or None, headers, method=method), timeout=60
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    return ask


@pytest.fixture(scope="session")
def sample() -> Sample:
    """A ResNet-18 that reads digits at 32x32, with test images it was not fitted to."""
    from benchmarks.sample import make_sample

    return make_sample()


@pytest.fixture(scope="session")
def toy_onnx(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model as ONNX: `image` UINT8 [N, 32, 32, 3] to `logits` FP32 [N, 10]."""
    path = tmp_path_factory.mktemp("toy") / "model.onnx"
    sample.export(path)
    return path


@pytest.fixture(scope="session")
def toy_int8(sample: Sample, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model in int8, with entropy calibration on 64 images; its 8-bit weights saturate without VNNI."""
    from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx

    path = tmp_path_factory.mktemp("toy_int8") / "model.onnx"
    quantize_onnx(toy_onnx, path, sample.calibration[:64], QuantizeConfig())
    return path


@pytest.fixture(scope="session")
def toy_reduced(toy_int8: Path, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 7-bit weights: right on every CPU."""
    from temper.builder.compress.saturation import reduce_weights

    path = tmp_path_factory.mktemp("toy_reduced") / "model.onnx"
    shutil.copyfile(toy_int8, path)
    reduce_weights(path, toy_onnx)
    return path


def publish_toy(
    repository: Path,
    sample: Sample,
    onnx: Path,
    model: str = "toy_fp32",
    num_instances: int = 2,
    **serving: Any,
) -> None:
    """Publish the sample model as the builder would."""
    from temper.builder.publish.entry import publish
    from temper.builder.publish.serving import ServingConfig
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig
    from temper.imaging.preprocess import Preprocessing

    config = TritonConfig(
        name=model,
        image_size=32,
        num_classes=10,
        max_batch=32,
        preprocessing=Preprocessing(height=32, width=32),
        backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"}),
        num_instances=num_instances,
        serving=ServingConfig(**serving),
    )
    publish(repository, config, engine_file=onnx, labels=sample.class_names, card={"recipe": "toy"})


@pytest.fixture(scope="session")
def publish_model(sample: Sample, toy_onnx: Path) -> Callable[..., None]:
    """Publishes the sample model into a repository under a name; further arguments are `publish_toy`'s."""
    return lambda repository, model, **more: publish_toy(repository, sample, toy_onnx, model, **more)


@pytest.fixture(scope="session")
def accept_config() -> Callable[[Path], None]:
    """Takes a config.pbtxt that was changed by hand for what was published, as model_repository/README.md says."""
    readme = Path(__file__).parents[1] / "model_repository" / "README.md"
    (command,) = (
        line.strip() for line in readme.read_text().splitlines() if line.startswith("    cp config.pbtxt 1/")
    )

    def accept(model: Path) -> None:
        subprocess.run(["sh", "-c", command], cwd=model, check=True)

    return accept


@pytest.fixture
def toy_repository(sample: Sample, toy_onnx: Path, tmp_path: Path) -> Path:
    """A repository of this test's own with `toy_fp32` in it."""
    repository = tmp_path / "model_repository"
    publish_toy(repository, sample, toy_onnx)
    return repository


ShareServer = Callable[[pytest.FixtureRequest, TritonServer], AbstractContextManager[TritonServer]]

_shared: dict[str, TritonServer] = {}
"""The servers that several tests share, by the names of their fixtures."""


@pytest.fixture(scope="session")
def share_server() -> ShareServer:
    """Runs a server for the tests that use a fixture, and watches it: see `pytest_runtest_call`."""

    @contextmanager
    def share(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[TritonServer]:
        name = str(request.fixturename)
        with server:
            _shared[name] = server
            try:
                yield server
            finally:
                del _shared[name]

    return share


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail the test that finds its shared server dead; the next one has a new server at the same address."""
    try:
        return (yield)
    finally:
        names = _shared.keys() & set(getattr(item, "fixturenames", ()))
        deaths = {name: death for name in sorted(names) if (death := _shared[name].death())}
        for name in deaths:
            _shared[name].restart()
        if deaths:
            lines = (f"the shared {name} died during this test: {death}" for name, death in deaths.items())
            pytest.fail("\n".join(lines))


# After the call too: what fails in a fixture has no call.
pytest_runtest_teardown = pytest_runtest_call


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest,
    share_server: ShareServer,
    sample: Sample,
    toy_onnx: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """A tritonserver with `toy_fp32`, shared by the tests that do it no harm."""
    folder = tmp_path_factory.mktemp("server")
    publish_toy(folder / "model_repository", sample, toy_onnx)
    server = TritonServer(folder / "model_repository", log_file=folder / "tritonserver.log")
    with share_server(request, server) as running:
        yield running
