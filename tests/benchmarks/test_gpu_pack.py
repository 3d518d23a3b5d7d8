"""What the GPU benchmark carries to a machine without network, and how it is installed there."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.gpu import carried, install, networks, pack, skeletons
from benchmarks.gpu.context import ROOT, Context, Results
from temper.builder.network.export import run_onnx

if TYPE_CHECKING:
    pass


# What is carried.


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for name, size in (("large.whl", 2500), ("small.whl", 300), ("empty-ish", 1)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(rng.bytes(size))
    return paths


def test_parts_are_within_the_limit_and_join_in_any_order(files: list[Path], tmp_path: Path) -> None:
    manifest = carried.deal_out(files, tmp_path / "parts", part_bytes=1000, piece_bytes=400)
    parts = sorted((tmp_path / "parts").iterdir())
    assert manifest["num_parts"] == len(parts) == 4
    for part in parts:
        assert sum(path.stat().st_size for path in part.iterdir() if path.name != carried.MANIFEST) <= 1000
    store = tmp_path / "store"
    for number, missing in ((3, [1, 2, 4]), (1, [2, 4]), (4, [2]), (2, [])):
        came = tmp_path / f"transfer{number}"
        came.mkdir()
        (tmp_path / "parts" / str(number)).rename(came / str(number))
        found = carried.collect(came, store)
        assert found is not None
        assert found["missing"] == missing
    assert found is not None
    joined = carried.join(found, store, tmp_path / "joined")
    assert [path.read_bytes() for path in joined] == [path.read_bytes() for path in files]


def test_nothing_carried_is_nothing(tmp_path: Path) -> None:
    assert carried.collect(tmp_path / "none", tmp_path / "store") is None


def test_damaged_piece_is_refused_by_its_part(files: list[Path], tmp_path: Path) -> None:
    carried.deal_out(files, tmp_path / "parts", part_bytes=1000, piece_bytes=400)
    (tmp_path / "parts" / "2" / "large.whl.03").write_bytes(b"damaged")
    with pytest.raises(
        carried.CarriedError, match=r"large.whl.03: not the piece that was packed .* carry part 2 again"
    ):
        carried.collect(tmp_path / "parts", tmp_path / "store")


def test_older_pack_ends_in_one_line(files: list[Path], context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(carried, "_FORMAT", 1)
        carried.deal_out(files, context.carried)
    results = Results(context, "install")
    install.run(context, results)
    manifest = context.carried / "1" / carried.MANIFEST
    reason = f"{manifest}: made by an older gpu-pack: pack again"
    assert (results.content["state"], results.content["reason"]) == ("failed", reason)


def test_pack_for_another_python_ends_in_one_line(tmp_path: Path) -> None:
    stubs = tmp_path / "site" / "pytriton" / "tritonserver" / "python_backend_stubs" / "3.9"
    stubs.mkdir(parents=True)
    with tarfile.open(tmp_path / "site.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "site", "site")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    message = (
        rf"the pack is for Python 3.9, this is {here}: start python3.9 -m benchmarks.gpu, or pack with .*{here}'"
    )
    with pytest.raises(carried.CarriedError, match=message):
        install.make_environment(tmp_path / "work", tmp_path / "site.tar.xz", [])


def test_pieces_of_an_earlier_packing_are_dropped(files: list[Path], tmp_path: Path) -> None:
    carried.deal_out(files, tmp_path / "parts", part_bytes=1000, piece_bytes=400)
    carried.collect(tmp_path / "parts", tmp_path / "store")
    files[1].write_bytes(b"a newer wheel")
    carried.deal_out(files, tmp_path / "parts", part_bytes=5000, piece_bytes=5000)
    found = carried.collect(tmp_path / "parts", tmp_path / "store")
    assert found is not None
    assert found["missing"] == []
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {carried.MANIFEST, "large.whl.00", "small.whl.00", "empty-ish.00"}


def test_every_packed_project_is_locked() -> None:
    locked = pack.read_lock(ROOT / "requirements.lock")
    wanted = {*pack._LOCKED, *pack._RTX, *pack._RTX_SOURCES}
    assert wanted <= locked.keys()
    assert locked["numpy"].startswith("1.26.")


def test_every_project_has_one_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_pip", lambda *_: None)
    monkeypatch.setattr(pack, "_LOCKED", ("numpy", "ml-dtypes"))
    locked = pack.read_lock(ROOT / "requirements.lock")
    numpy, ml_dtypes = f"numpy-{locked['numpy']}", f"ml_dtypes-{locked['ml-dtypes']}"
    names = (f"{numpy}-cp312-a.whl", f"{ml_dtypes}-cp312-a.whl", "numpy-0.1-cp312-a.whl")
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in pack.download(tmp_path, "3.12", rtx=False)} == set(names[:2])
    (tmp_path / f"{numpy}-cp312-b.whl").touch()
    with pytest.raises(SystemExit, match=f"got 2 wheels of {numpy}, expected 1; empty the folder and pack again"):
        pack.download(tmp_path, "3.12", rtx=False)
    (tmp_path / names[1]).unlink()
    with pytest.raises(SystemExit, match=f"got 0 wheels of {ml_dtypes}, expected 1"):
        pack.download(tmp_path, "3.12", rtx=False)


def test_archive_of_a_python_without_libpython_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no lib/libpython3.12.so.1.0; give a build .* --enable-shared"):
        pack.archive_python(tmp_path, "3.12", tmp_path / "python.tar.xz")


def test_interpreter_is_found_where_pyenv_and_uv_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    for folder, version in (
        ("pyenv/versions/3.11.10", "3.11"),
        ("pyenv/versions/3.11.7", "3.11"),
        ("pyenv/versions/own", "3.11"),
        ("uv/cpython-3.11-linux-x86_64-gnu", "3.11"),
        ("uv/cpython-3.13", "3.13"),
    ):
        (tmp_path / folder / "lib").mkdir(parents=True)
        (tmp_path / folder / "lib" / f"libpython{version}.so.1.0").touch()
    assert pack.find_interpreter("3.11") == tmp_path / "pyenv/versions/3.11.10"
    assert pack.find_interpreter("3.12") is None
    assert pack.find_interpreter("3.13") == tmp_path / "uv/cpython-3.13"


# Installing.


PYTHON = ".".join(platform.python_version_tuple()[:2])


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/entry_points.txt", f"[console_scripts]\n{name} = {name}:main\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


def test_archive_holds_only_what_this_python_needs(tmp_path: Path) -> None:
    server, libraries = "pytriton/tritonserver", "nvidia_pytriton.libs"
    needed = {f"{server}/bin/tritonserver", f"{server}/python_backend_stubs/{PYTHON}/stub", "tests.py"}
    needed |= {f"{libraries}/libtritonserver.so", "numpy/py.typed"}
    useless = {f"{server}/python_backend_stubs/3.8/stub", f"{libraries}/libpython3-4.13.so.1.0"}
    useless |= {"numpy/core/tests/test_all.py", "numpy/array.pyi"}
    wheel = make_wheel(tmp_path, "pytriton", "1.0", dict.fromkeys(needed | useless, ""))
    pack.archive_site([wheel], PYTHON, tmp_path / carried.SITE_ARCHIVE)
    with tarfile.open(tmp_path / carried.SITE_ARCHIVE) as archive:
        names = {info.name.removeprefix("site/") for info in archive if info.isfile()}
    assert {name for name in names if ".dist-info/" not in name} == needed


def test_environment_prefers_what_was_carried_and_knows_temper(tmp_path: Path) -> None:
    """A package of this Python that the environment sees as well gives way, as numpy 2 must."""
    names = ("iniconfig", "made_here")
    wheels = [make_wheel(tmp_path, name, "99.0", {f"{name}.py": "VERSION = 'carried'"}) for name in names]
    archive = pack.archive_site(wheels, PYTHON, tmp_path / carried.SITE_ARCHIVE)
    interpreter = install.make_environment(tmp_path / "work", archive, [])
    program = (
        "import iniconfig, made_here, numpy, importlib.metadata as m\n"
        "from temper import builder\n"
        "print(iniconfig.VERSION, made_here.VERSION, numpy.__version__, m.version('temper'), builder.__file__)"
    )
    done = subprocess.run([interpreter, "-I", "-c", program], capture_output=True, text=True, check=True)
    expected = ["carried", "carried", np.__version__, importlib.metadata.version("temper")]
    assert done.stdout.split() == [*expected, str(ROOT / "temper" / "builder" / "__init__.py")]


@pytest.mark.slow
def test_environment_follows_a_newer_archive(tmp_path: Path) -> None:
    for name in ("first", "second"):
        wheel = make_wheel(tmp_path, name, "1.0", {f"{name}.py": ""})
        archive = pack.archive_site([wheel], PYTHON, tmp_path / carried.SITE_ARCHIVE)
        install.make_environment(tmp_path / "work", archive, [])
        site = tmp_path / "work" / "site"
        assert [path.name for path in site.glob("*.py")] == [f"{name}.py"]
        (site / "kept").touch()
        install.make_environment(tmp_path / "work", archive, [])
        assert (site / "kept").exists()


# Networks and their skeletons.


def test_weights_are_the_same_on_every_machine() -> None:
    weights = networks.make_weights("layer1.0.conv1.weight", (64, 64, 3, 3))
    assert weights.dtype == np.float32
    assert weights.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.01)
    assert hashlib.sha256(weights.tobytes()).hexdigest()[:16] == "1068578f820b147f"


@pytest.mark.slow
def test_skeleton_gives_the_graph_back_bit_for_bit(tmp_path: Path) -> None:
    shapes = {name: tuple(each.shape) for name, each in networks.build_network("resnet18").named_parameters()}
    names = skeletons.name_weights(networks.make_graph("resnet18", "fp32", tmp_path, 32), shapes)
    for precision in ("fp32", "fp16", "int8", "fp8"):
        graph = networks.make_graph("resnet18", precision, tmp_path, 32)
        quantized = networks.quantized_graph(graph)
        skeleton = tmp_path / f"{precision}{skeletons.SUFFIX}"
        skeletons.write_skeleton(graph, quantized if quantized.exists() else None, names, skeleton, shapes)
        assert skeleton.stat().st_size < 0.01 * graph.stat().st_size
        again = skeletons.read_skeleton(skeleton, tmp_path / "again.onnx")
        assert again.read_bytes() == graph.read_bytes(), precision


@pytest.mark.slow
def test_skeleton_of_other_weights_is_refused(tmp_path: Path) -> None:
    shapes = {name: tuple(each.shape) for name, each in networks.build_network("resnet18").named_parameters()}
    graph = networks.make_graph("resnet18", "fp32", tmp_path, 32)
    names = skeletons.name_weights(graph, shapes)
    skeletons.write_skeleton(graph, None, names, tmp_path / "whole", shapes)
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "changed", "w") as changed:
        for name in whole.namelist():
            content = whole.read(name).replace(b"layer1.0.conv1.weight", b"layer1.0.conv2.weight")
            changed.writestr(name, whole.read(name) if name.endswith(".onnx") else content)
    with pytest.raises(ValueError, match=r"changed: the weights made here are not those it was written with"):
        skeletons.read_skeleton(tmp_path / "changed", tmp_path / "again.onnx")


@pytest.mark.slow
def test_torch_contender_answers_as_the_exported_graph(tmp_path: Path) -> None:
    import torch

    from benchmarks.gpu.pytorch import Reference
    from benchmarks.gpu.timing import measure

    contender = Reference("resnet18", "cpu", torch.float32).eager(2, 32)
    contender.infer()
    expected = run_onnx(networks.make_graph("resnet18", "fp32", tmp_path, 32), networks.make_images(2, 32))
    np.testing.assert_allclose(contender.logits.numpy(), expected, rtol=1e-3, atol=1e-3)
    figures = measure(contender, 0.01)
    assert set(figures) == {"device_ips", "ips", "p50_ms", "p99_ms"}
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    contender.close()
