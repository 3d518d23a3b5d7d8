"""The images: linted, of one release, and asking for what the repository has."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships none

from temper.builder.engines.containers import expected_tensorrt

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = ("server.Dockerfile", "builder.Dockerfile")


def tool(name: str) -> str:
    """A program of the development environment."""
    return str(Path(sys.executable).with_name(name))


def lint(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def instructions(name: str, kind: str) -> list[list[str]]:
    """The arguments of a Dockerfile's instructions of one kind, options left out."""
    text = (DOCKER / name).read_text().replace("\\\n", " ")
    found = [line.split() for line in text.splitlines() if line.startswith(f"{kind} ")]
    return [[word for word in words[1:] if not word.startswith("--")] for words in found]


def base(name: str) -> tuple[str, str]:
    """The image that a Dockerfile starts from, and NGC's name of the release."""
    ((image,),) = instructions(name, "FROM")
    match = re.fullmatch(r"(nvcr\.io/nvidia/\w+):(\d\d\.\d\d)-py3(@sha256:[0-9a-f]{64})?", image)
    assert match, image
    return match[1], match[2]


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return found


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile_is_linted(name: str) -> None:
    lint(tool("hadolint"), "--failure-threshold", "info", f"docker/{name}")


def test_linter_finds_something_in_a_bad_file(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM ubuntu\nRUN apt-get install curl\n")
    with pytest.raises(AssertionError, match="DL3006"):
        lint(tool("hadolint"), "--failure-threshold", "info", str(bad))


def test_compose_file_follows_its_specification() -> None:
    lint(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml")


def test_both_images_are_of_one_release_whose_tensorrt_is_known() -> None:
    (server, release), (builder, month) = base("server.Dockerfile"), base("builder.Dockerfile")
    assert (server, builder) == ("nvcr.io/nvidia/tritonserver", "nvcr.io/nvidia/tensorrt")
    assert release == month
    assert release >= "26.06", "older ones have known holes"
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", expected_tensorrt(release))
    assert {service["image"].rpartition(":")[2] for service in services().values()} == {release}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_reaches_docker(name: str) -> None:
    rules = (DOCKER / f"{name}.dockerignore").read_text().split("\n")
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    assert "*" in rules
    for words in instructions(name, "COPY"):
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == rule or fnmatch.fnmatch(source, f"{rule}/*") for rule in allowed), source


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_does_not_run_as_root(name: str) -> None:
    assert instructions(name, "USER")[-1] == ["1000:1000"]


def test_cache_is_the_servers_alone() -> None:
    text = (DOCKER / "server.Dockerfile").read_text()
    assert "install -d -m 0700 -o 1000 -g 1000 /var/cache/temper" in text
    assert "TEMPER_CACHE_DIR=/var/cache/temper" in text
    assert "cache:/var/cache/temper" in services()["server"]["volumes"]


def test_plugin_gets_the_versions_that_are_tested_here() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = (DOCKER / "server-requirements.txt").read_text().splitlines()
    pins = {line for line in wanted if line and not line.startswith("#")}
    release = base("server.Dockerfile")[1]
    assert f"tensorrt-cu13-bindings=={expected_tensorrt(release)}" in pins, "the bindings of the image's library"
    for package, extra in (("openvino", "embedded"), ("tensorrt-rtx", "rtx")):
        (pin,) = [line for line in extras[extra] if line.startswith(f"{package}==")]
        assert pin in pins
    (bindings,) = [line for line in pins if line.startswith("cuda-bindings")]
    major, minor = re.findall(r"\d+", bindings)[:2]
    assert (12, 9) <= (int(major), int(minor)) < (14, 0)


def test_compose_serves_read_only_on_loopback_with_a_gpu() -> None:
    server = services()["server"]
    assert server["read_only"] is True
    assert "models:/models:ro" in server["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert server["depends_on"] == {"builder": {"condition": "service_completed_successfully"}}
    for service in services().values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        resources = service["deploy"]["resources"]
        assert set(resources["limits"]) == {"cpus", "memory", "pids"}
        (device,) = resources["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize("recipe", ["digits"])
def test_builder_publishes_where_the_server_reads(recipe: str) -> None:
    command = services()["builder"]["command"]
    repository = command[command.index("--repository") + 1]
    assert f'"TEMPER_REPOSITORY", "{repository}"' in (DOCKER / "serve.py").read_text().replace("'", '"')
    assert (ROOT / "recipes" / f"{recipe}.toml").is_file()
    assert f"RECIPE:-{recipe}" in command[1]


def test_command_needs_no_more_than_the_image_holds(tmp_path: Path) -> None:
    """What the Dockerfile copies, laid out as there, on a Python without this environment."""
    for *sources, target in instructions("server.Dockerfile", "COPY"):
        if target.startswith("/opt/temper/"):
            folder = tmp_path / target.strip("/")
            folder = folder if target.endswith("/") else folder.parent
            folder.mkdir(parents=True, exist_ok=True)
            for source in sources:
                shutil.copy(ROOT / source, folder)
    command = [sys.executable, "-S", "-E", str(tmp_path / "opt" / "temper" / "serve.py")]
    done = subprocess.run(
        command, env={"TEMPER_ADMIN_KEY_FILE": str(tmp_path / "gone")}, capture_output=True, text=True
    )
    assert done.stderr.startswith("temper: TEMPER_ADMIN_KEY_FILE: "), done.stderr


def test_image_imports_what_it_installs_when_it_is_built() -> None:
    """Else `docker compose up` would show it, model by model."""
    text = (DOCKER / "server.Dockerfile").read_text()
    (imported,) = re.findall(r"for each in ([\w. ]+);", text)
    wanted = re.findall(r"^([\w-]+)[=>]", (DOCKER / "server-requirements.txt").read_text(), re.MULTILINE)
    known = {
        "cuda-bindings": "cuda.bindings.runtime",
        "tensorrt-cu13-bindings": "tensorrt_bindings",
        "pillow": "PIL",
    }
    modules = {known.get(project, project.replace("-", "_")) for project in wanted}
    assert modules - set(imported.split()) == {"numpy"}, "which openvino imports"


def test_readme_is_short_and_its_command_names_a_file() -> None:
    text = (DOCKER / "README.md").read_text()
    assert len(text.splitlines()) <= 15
    (command,) = [line for line in text.splitlines() if line.startswith("    ")]
    words = shlex.split(command)
    assert (ROOT / words[words.index("-f") + 1]).is_file()
