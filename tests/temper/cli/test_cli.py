"""The command line: exit statuses, one-line errors, and a help that needs nothing heavy."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from temper.cli.main import cli
from temper.client.robustness.base import ATTACKS
from temper.errors import WorkflowError
from temper.serve.ports import take_ports

ROOT = Path(__file__).parents[3]
STRIPES = ROOT / "docs" / "examples" / "attack" / "temper_example_attack.py"
HEAVY = (
    "torch",
    "numpy",
    "grpc",
    "tritonclient",
    "pydantic",
    "rich",
    "PIL",
    "openvino",
    "modelopt",
    "temper.builder",
    "temper.client",
)


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def check_failed(result: Result, *lines: str) -> None:
    assert result.exit_code == 1, result.output
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {line}" for line in lines
    ]
    assert "Traceback" not in result.output


def run_temper(*args: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user has it."""
    command = [sys.executable, "-m", "temper.cli.main", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom temper.cli.main import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    for command in ("init", "recipe", "run", "build", "report", "serve", "query", "load", "attack", "corrupt"):
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize(
    "command", ["init", "recipe", "run", "build", "report", "serve", "query", "load", "attack", "corrupt"]
)
def test_help_of_a_command(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: cli {command} [OPTIONS]")


def test_attacks_of_other_packages_are_choices(install: Callable[..., Path]) -> None:
    install(
        ATTACKS,
        "stripes",
        (ROOT / "docs" / "examples" / "attack" / "temper_example_attack.py").read_text(),
        {"stripes": "STRIPES"},
    )
    shown = " ".join(invoke("attack", "--help").stdout.split())
    assert (
        "--attack [square|simba|hop-skip-jump|noise|fgsm|pgd|mi-fgsm|apgd-ce|apgd-dlr|apgd-t|differential"
        "|art-square|stripes]"
    ) in shown


def test_broken_attack_of_another_package_costs_only_what_it_is_for(install: Callable[..., Path]) -> None:
    install(ATTACKS, "broken", "import no_such_module", {"mine": "MINE"})
    assert invoke("attack", "--help").exit_code == 0
    check_failed(
        invoke("attack", "--model", "m", "--images", "d", "--attack", "mine"),
        "temper.attacks 'mine' of broken (broken:MINE) does not load: ModuleNotFoundError: No module named "
        "'no_such_module'; mend or uninstall it",
    )
    install(ATTACKS, "greedy", "", {"mine": "MINE"})
    result = invoke("attack", "--help")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "has the name of temper.attacks 'mine' of " in result.stderr


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("temper ")


# Wrong usage: the command line, and what the message says.
USAGE = {
    "no such command": (("fly",), "No such command 'fly'"),
    "no recipe": (("run",), "Missing argument 'RECIPE'"),
    "neither recipe nor schema": (("recipe",), "expected either RECIPE or --schema"),
    "both recipe and schema": (("recipe", "x.toml", "--schema"), "expected either RECIPE or --schema"),
    "no images": (("init",), "Missing option '--images'"),
    "ending of weights": (
        ("init", "--images", "d", "--weights", "model.zip"),
        "--weights: got 'model.zip', expected 'random', 'torchvision', a file that ends in .safetensors",
    ),
    "no model": (("load",), "Missing option '--model'"),
    "no image": (("query", "--model", "m"), "Missing argument 'IMAGE...'"),
    "top": (("query", "--model", "m", "x.png", "--top", "0"), "0 is not in the range x>=1"),
    "concurrency": (
        ("load", "--model", "m", "--concurrency", "1,zero"),
        "got '1,zero', expected integers of at least 1 such as 1,4,16",
    ),
    "rate": (("load", "--model", "m", "--rate", "-5"), "got '-5', expected numbers above 0 such as 50,100"),
    "duration": (("load", "--model", "m", "--duration", "-1"), "duration_s: got -1.0, expected seconds above 0"),
    "port": (("serve", "--grpc-port", "70000"), "70000 is not in the range 1<=x<=65535"),
    "reference": (
        ("attack", "--model", "m", "--images", "d", "--attack", "pgd", "--reference", "n"),
        "--reference: the attack pgd compares with no other model, expected differential",
    ),
    "no reference": (
        ("attack", "--model", "m", "--images", "d", "--attack", "differential"),
        "--reference: the attack differential needs one, expected a second served model",
    ),
    "attack": (("attack", "--model", "m", "--images", "d", "--attack", "laser"), "'laser' is not one of 'square'"),
    "norm": (
        ("attack", "--model", "m", "--images", "d", "--attack", "art-square", "--norm", "l2"),
        'norm: got "l2", expected one of "linf"',
    ),
    "norm that there is not": (
        ("attack", "--model", "m", "--images", "d", "--attack", "noise", "--norm", "l1"),
        'norm: got "l1", expected one of "linf", "l2"',
    ),
    "epsilon": (
        ("attack", "--model", "m", "--images", "d", "--epsilon", "300"),
        "epsilon: got 300, expected 1 to 255 (units of 1/255",
    ),
    "labels missing": (
        ("attack", "--model", "m", "--images", "x.npy"),
        "--images x.npy: expected --labels with the .npy of classes",
    ),
    "labels beside a folder": (
        ("attack", "--model", "m", "--images", "d", "--labels", "y.npy"),
        "--images d: expected no --labels beside a folder of images",
    ),
    "labels of what is corrupted": (
        ("corrupt", "--model", "m", "x.npy"),
        "IMAGES x.npy: expected LABELS with the .npy of classes",
    ),
    "kind of corruption": (
        ("corrupt", "--model", "m", "d", "--kinds", "fog,rain"),
        "kinds: got rain, expected some of gaussian_noise, shot_noise,",
    ),
    "severity": (
        ("corrupt", "--model", "m", "d", "--severities", "1,6"),
        "severities: got 6, expected some of 1, 2, 3, 4, 5",
    ),
}


@pytest.mark.parametrize(("args", "message"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_exits_2(args: tuple[str, ...], message: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_run_without_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    check_failed(invoke("run", path), f"{path}: no such file, expected a recipe such as recipes/digits.toml")


def test_run_recipe_mistakes_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "x"\ncolumns = 1\n[data]\nsource = "digit"\n[[variants]]\nname = "a"\n')
    result = run_temper("run", path, folder=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    keys = "name, data, model, train, variants, engine, serving, load, attacks, corruptions, gate, explain"
    sources = '"digits", "textures", "photos", "folder", "table", "webdataset", "huggingface", "torchvision"'
    assert result.stderr.splitlines() == [
        f'error: {path}: data.source: got "digit", expected one of {sources}',
        f"error: {path}: columns: no such key, expected one of {keys}",
    ]
    assert not (tmp_path / "runs").exists()


def test_recipe_that_is_fine(quick_recipe: Path) -> None:
    result = invoke("recipe", quick_recipe)
    assert (result.exit_code, result.stdout) == (
        0,
        f"{quick_recipe}: fine: quick, variants fp32, int8, attacks: 2\n",
    )
    found = json.loads(invoke("recipe", quick_recipe, "--json").stdout)
    assert (found["path"], found["ok"], found["errors"]) == (str(quick_recipe), True, [])
    assert found["recipe"]["data"]["image_size"] == 32


def test_recipe_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "X"\n[data]\nimage_size = 32\n[[variants]]\nname = "a"\n')
    line = f'{path}: name: got "X", expected up to 100 of a-z, 0-9, "_" and "-", as it names the models'
    check_failed(invoke("recipe", path), line)
    result = invoke("recipe", path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"path": str(path), "ok": False, "errors": [line], "recipe": None}


def test_recipe_schema() -> None:
    result = invoke("recipe", "--schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["title"] == "Temper recipe"


def test_run_into_a_folder_that_cannot_be_made(quick_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    result = invoke("run", quick_recipe, "--runs", tmp_path / "runs", "--repository", tmp_path / "m")
    message = "cannot be written: Not a directory; choose another folder with --runs"
    check_failed(result, f"{tmp_path / 'runs' / 'quick'}: {message}")


def test_build_from_a_pickle_that_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    recipe = tmp_path / "x.toml"
    recipe.write_text(
        'name = "x"\n[data]\nimage_size = 32\nnum_test = 20\n[model]\nweights = "w.pt"\n[[variants]]\nname = "a"\n'
    )
    result = run_temper("build", recipe, folder=tmp_path)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: checkpoint {tmp_path / 'w.pt'}: ")
    assert "Traceback" not in result.stderr


def test_build_from_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    recipe = tmp_path / "x.toml"
    recipe.write_text(
        'name = "x"\n[data]\nsource = "folder"\npath = "images"\nimage_size = 32\n[[variants]]\nname = "a"\n'
    )
    result = run_temper("build", recipe, folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: data {tmp_path / 'images'}: ")
    assert "Traceback" not in result.stderr


def test_query_without_image_file(tmp_path: Path) -> None:
    path = tmp_path / "none.png"
    result = invoke("query", "--model", "m", path, "--repository", tmp_path)
    check_failed(result, f"{path}: no such file, expected an image or a folder of images")


def test_query_without_repository(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    result = invoke("query", "--model", "m", tmp_path / "x.png", "--repository", tmp_path / "none")
    assert result.exit_code == 1
    assert f"error: model repository {tmp_path / 'none'}: no such folder" in result.stderr


@pytest.mark.parametrize("command", ["load", "attack"])
def test_no_server(command: str, tmp_path: Path) -> None:
    result = invoke(command, "--model", "m", "--url", "127.0.0.1:1", "--images", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: 127.0.0.1:1: no server answers there")
    assert len(result.stderr.splitlines()) == 1


def test_serve_an_empty_repository(tmp_path: Path) -> None:
    result = invoke("serve", "--repository", tmp_path, "--log-file", tmp_path / "log" / "server.log")
    check_failed(result, f"model repository {tmp_path} holds no model; publish one with `temper build`")


def test_unexpected_error_saves_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setitem(cli.commands, "break", click.Command("break", callback=lambda: [][1]))
    result = invoke("break")
    assert result.exit_code == 1
    line = result.stderr.strip()
    assert line.startswith("error: unexpected IndexError: list index out of range; its traceback is in ")
    saved = Path(line.rpartition(" ")[2]).read_text()
    assert "Traceback" in saved
    assert "IndexError: list index out of range" in saved


NO_FOLDER = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/x']")


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; the temporary folder is "),
        (
            OSError(errno.EROFS, "Read-only file system", "/x/y"),
            "/x/y: Read-only file system; the temporary ",
        ),
        (
            shutil.Error([("a", "/x/b", "[Errno 28] No space left on device: '/x/b'")]),
            "/x/b: No space left on device; the",
        ),
        (NO_FOLDER, "No usable temporary directory found in ['/x']; make room"),
    ],
)
def test_disk_without_room_names_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, trouble: OSError, line: str
) -> None:
    def fail() -> None:
        raise trouble

    monkeypatch.setitem(cli.commands, "break", click.Command("break", callback=fail))
    result = invoke("break")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {line}")
    assert result.stderr.endswith("point TMPDIR to another folder\n")
    assert len(result.stderr.splitlines()) == 1


def test_unexpected_error_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setitem(cli.commands, "break", click.Command("break", callback=lambda: [][1]))
    check_failed(
        invoke("break"),
        "unexpected IndexError: list index out of range; its traceback could not be saved (No such file or "
        "directory; TMPDIR names the place); see --debug",
    )


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise WorkflowError("one\ntwo")

    monkeypatch.setitem(cli.commands, "break", click.Command("break", callback=fail))
    check_failed(invoke("break"), "one", "two")
    assert "Traceback" in invoke("--debug", "break").output


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> click.Command:
        return click.Command(name, callback=lambda: __import__(name))

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.setitem(cli.commands, "train", fail("torch"))
    monkeypatch.setitem(cli.commands, "ask", fail("grpc"))
    check_failed(
        invoke("train"), "the package torch is not installed; run `pip install 'temper[builder,embedded]'`"
    )
    check_failed(invoke("ask"), "the package grpc is not installed; run `pip install 'temper[client]'`")


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.commands, "wait", click.Command("wait", callback=interrupt))
    result = invoke("wait")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


@pytest.mark.server
@pytest.mark.parametrize(
    ("number", "word", "asked"), [(signal.SIGINT, "interrupted", True), (signal.SIGTERM, "terminated", False)]
)
def test_serve_until_interrupted(
    toy_repository: Path,
    tmp_path: Path,
    until: Callable[[Callable[[], object]], None],
    number: signal.Signals,
    word: str,
    asked: bool,
) -> None:
    command = [sys.executable, "-m", "temper.cli.main", "serve", "--repository", str(toy_repository)]
    log_file, folder = tmp_path / "server.log", tmp_path / "tmp"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
    (http_port,) = take_ports([0])
    options = ["--log-file", str(log_file), "--http-port", str(http_port)] if asked else []
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    names = ["gRPC", *(["HTTP"] if asked else []), "metrics", "log", "models"]
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in names]
        process.send_signal(number)
        _, errors = process.communicate()
    finally:
        process.kill()
    assert [line[0] for line in lines] == names
    said = dict(lines)
    assert said["models"] == "toy_fp32"
    assert process.returncode == 130
    assert errors.splitlines()[-1] == word
    until(lambda: not _listens(said["gRPC"]))
    if asked:
        assert said["HTTP"] == f"127.0.0.1:{http_port}"
        assert said["log"] == str(log_file)
        assert log_file.stat().st_mode & 0o077 == 0
    else:
        assert Path(said["log"]).is_relative_to(folder)
    until(lambda: not list(folder.iterdir()))


def _listens(address: str) -> bool:
    port = int(address.rpartition(":")[2])
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in listening)


# What no file and no model can be called; each is one line, and starts no server.
ODD_NAMES = ["x" * 300, "../repository/m", "\udcff", "\x1b[31m"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=["long", "up", "not UTF-8", "escape"])
@pytest.mark.parametrize(
    "command",
    [
        ("build", "NAME"),
        ("verify", "NAME"),
        ("serve", "--repository", "NAME"),
        ("serve", "--repository", "repository", "--model", "NAME"),
        ("query", "NAME", "--model", "m", "--repository", "repository"),
        ("query", "x.png", "--model", "m", "--repository", "NAME"),
        ("query", "x.png", "--model", "NAME", "--repository", "repository"),
    ],
    ids=" ".join,
)
def test_odd_name_is_one_line(
    command: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repository" / "m").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    result = invoke(*(name if word == "NAME" else word for word in command))
    assert result.exit_code in (1, 2)
    last = result.stderr.splitlines()[-1]
    assert last.lower().startswith("error: ")
    assert "unexpected" not in last
    assert last.isprintable()
