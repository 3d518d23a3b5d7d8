"""What of a store counts as unused, and that its removal leaves the rest, also while a run is at work."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from temper.builder.store.artifacts import Artifact, Store, lock_path
from temper.builder.store.clean import find_kept, pick_unused, remove
from temper.builder.store.files import locked
from temper.cli.main import cli

DAY_S = 86400.0


def make(folder: Path) -> dict[str, int]:
    (folder / "content").write_bytes(bytes(1000))
    return {"size": 1000}


def kept(root: Path, *ages_days: float) -> list[Artifact]:
    """A store whose stages were last used so many days ago."""
    made = [Store(root).run(f"stage{index}", {}, [], make, code=()) for index, _ in enumerate(ages_days)]
    for artifact, age in zip(made, ages_days, strict=True):
        os.utime(artifact.path / "artifact.json", (time.time() - age * DAY_S,) * 2)
    return made


@pytest.mark.parametrize(
    ("older_days", "to_bytes", "expected"),
    [
        (30.0, None, ["stage1"]),
        (3.0, None, ["stage1", "stage2"]),
        (365.0, None, []),
        (365.0, 0, ["stage1", "stage2", "stage0"]),
        (365.0, 2900, ["stage1"]),
        (30.0, 10**9, ["stage1"]),
    ],
)
def test_longest_unused_go_first(
    tmp_path: Path, older_days: float, to_bytes: int | None, expected: list[str]
) -> None:
    kept(tmp_path, 1.0, 100.0, 10.0)
    picked = pick_unused(find_kept(tmp_path), older_s=older_days * DAY_S, to_bytes=to_bytes)
    assert [one.path.name.partition("-")[0] for one in picked] == expected


def test_reuse_counts_as_use(tmp_path: Path) -> None:
    kept(tmp_path, 100.0)
    assert Store(tmp_path).run("stage0", {}, [], make, code=()).reused
    assert pick_unused(find_kept(tmp_path), older_s=DAY_S) == []


def test_what_an_interrupted_run_left_is_listed(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, int]:
        make(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).run("cut", {}, [], fail, code=())
    (one,) = find_kept(tmp_path)
    assert (one.finished, one.size_bytes, one.path.name.endswith(".partial")) == (False, 1000, True)
    assert remove(one)
    assert [path.name for path in tmp_path.iterdir()] == [lock_path(one.path).name]
    assert remove(one), "what is gone already is no error"


def test_removal_waits_for_a_run(tmp_path: Path) -> None:
    (artifact,) = kept(tmp_path, 100.0)
    (one,) = find_kept(tmp_path)
    removal = threading.Thread(target=remove, args=(one,))
    with locked(lock_path(artifact.path)):
        removal.start()
        removal.join(0.2)
        assert artifact.path.is_dir()
    removal.join()
    assert not artifact.path.exists()


def test_what_was_used_meanwhile_stays(tmp_path: Path) -> None:
    kept(tmp_path, 100.0)
    (one,) = find_kept(tmp_path)
    assert Store(tmp_path).run("stage0", {}, [], make, code=()).reused
    assert not remove(one)
    assert one.path.is_dir()


def test_command_shows_and_removes_when_told_to(tmp_path: Path) -> None:
    old, new = kept(tmp_path / "toy" / "stages", 100.0, 1.0)
    (tmp_path / "toy" / "report.json").write_text("{}")
    shown = CliRunner().invoke(cli, ["clean", "--runs", str(tmp_path)])
    assert shown.exit_code == 0
    assert f"{old.path}  0.0 MB  last used " in shown.output
    assert "1 of 2 stages, 0.0 MB, can be removed: the same command with --yes does it" in shown.output
    assert old.path.is_dir()
    done = CliRunner().invoke(cli, ["clean", "--runs", str(tmp_path), "--yes", "--json"])
    assert [Path(row["path"]) for row in json.loads(done.stdout)["stages"]] == [old.path]
    assert not old.path.exists()
    assert new.path.is_dir()
    assert (tmp_path / "toy" / "report.json").is_file()


def test_no_folder_of_runs_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["clean", "--runs", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'none'}: is no folder, expected the one of `temper run`")
