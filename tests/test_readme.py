"""The README's commands and folders exist as written there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from temper.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^    temper ([\w-]+)(.*?)(?: #.*)?$", README, re.MULTILINE)))


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_readme_command_takes_these_options(command: str, arguments: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0, result.output
    for option in re.findall(r"--[a-z-]+", arguments):
        assert option in result.output, f"temper {command} has no {option}"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^    make ([\w-]+)", README, re.MULTILINE))))
def test_readme_make_target_exists(target: str) -> None:
    rules = re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if target.startswith("bench-"):
        assert "bench-%" in rules
        assert (ROOT / "benchmarks" / f"{target.removeprefix('bench-')}.py").is_file()
    else:
        assert target in rules


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_readme_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_readme_tree_is_the_tree_there_is() -> None:
    """Every folder with files of ours, and of those with rooms also the rooms."""
    with_rooms = ("builder", "backends", "client", "temper")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [line.split("/") for line in tracked.splitlines()]
    folders = {path[0] for path in paths if len(path) > 1 and not path[0].startswith(".")}
    rooms = {"/".join(path[:2]) for path in paths if len(path) > 2 and path[0] in with_rooms}

    printed: list[str] = []
    for indent, name in re.findall(r"^    ( {0,2})(\w+)/ ", README.partition("## The tree")[2], re.MULTILINE):
        parent = next((each for each in reversed(printed) if "/" not in each), "")
        printed.append(f"{parent}/{name}" if indent else name)
    assert sorted(printed) == sorted(folders | rooms)
