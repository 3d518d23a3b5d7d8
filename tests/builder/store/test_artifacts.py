"""The store: what is reused, what is not, and what an interruption leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from temper.builder.errors import StoreError
from temper.builder.store.artifacts import Artifact, Store, stage_digest


@dataclass(frozen=True)
class Config:
    size: int = 1
    path: Path = Path("x")


def make(folder: Path) -> Mapping[str, Any]:
    (folder / "result.txt").write_text("done")
    return {"figure": 1.5, "shape": (2, 3)}


def never(folder: Path) -> Mapping[str, Any]:
    raise AssertionError("must be reused")


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_run_twice_makes_once_and_gives_the_same(tmp_path: Path) -> None:
    first = Store(tmp_path).run("data", Config(), [], make, code=())
    second = Store(tmp_path).run("data", Config(), [], never, code=())
    assert (first.reused, second.reused) == (False, True)
    assert first.info == second.info == {"figure": 1.5, "shape": [2, 3]}
    assert first.path == second.path == tmp_path / f"data-{first.digest[:12]}"
    assert (second.path / "result.txt").read_text() == "done"
    assert not list(tmp_path.glob("*.partial"))


def test_digest_depends_on_stage_config_and_inputs() -> None:
    artifact = Artifact(path=Path("a"), digest="0" * 64, info={}, reused=False)
    digests = {
        stage_digest("data", Config(), [], code=()),
        stage_digest("other", Config(), [], code=()),
        stage_digest("data", Config(size=2), [], code=()),
        stage_digest("data", Config(path=Path("y")), [], code=()),
        stage_digest("data", None, [], code=()),
        stage_digest("data", Config(), [artifact], code=()),
    }
    assert len(digests) == 6
    assert stage_digest("data", {"size": 1, "path": "x"}, [], code=()) == stage_digest(
        "data", Config(), [], code=()
    )


def test_failed_stage_keeps_its_files_for_the_next_run(tmp_path: Path) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        (folder / "checkpoint").write_text("half")
        raise RuntimeError("stop")

    def resume(folder: Path) -> Mapping[str, Any]:
        return {"found": (folder / "checkpoint").read_text()}

    with pytest.raises(RuntimeError, match="stop"):
        Store(tmp_path).run("train", None, [], fail, code=())
    artifact = Store(tmp_path).run("train", None, [], resume, code=())
    assert artifact.info == {"found": "half"}


def test_killed_stage_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from temper.builder.store.artifacts import Store

        def die(folder):
            (folder / "result.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

        Store(Path(sys.argv[1])).run("data", {"size": 1, "path": "x"}, [], die, code=())
    """
    assert run_python(code, tmp_path).returncode == -9
    assert not list(tmp_path.glob("data-*/artifact.json"))
    assert not Store(tmp_path).run("data", Config(), [], make, code=()).reused


RECORDS = {"record of a list": b"[]", "record without end": b"[" * 100_000, "record of nothing": b"{}"}


@pytest.mark.parametrize(
    "damage", ["remove a file", "cut a file", "cut the record", "remove the record", *RECORDS]
)
def test_damaged_result_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = Store(tmp_path).run("data", Config(), [], make, code=()).path
    victim = folder / ("artifact.json" if "record" in damage else "result.txt")
    if damage in RECORDS:
        victim.write_bytes(RECORDS[damage])
    elif "remove" in damage:
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:3])
    again = Store(tmp_path).run("data", Config(), [], make, code=())
    assert not again.reused
    assert (again.path / "result.txt").read_text() == "done"
    assert json.loads((again.path / "artifact.json").read_text())["digest"] == again.digest


def test_two_processes_make_a_stage_once(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from temper.builder.store.artifacts import Store

        def make(folder):
            time.sleep(0.5)
            return {}

        print(Store(Path(sys.argv[1])).run("slow", None, [], make, code=()).reused)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = sorted(process.communicate()[0].strip() for process in running)
    assert answers == ["False", "True"]


def test_file_over_the_limit_is_one_line(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from temper.builder.store.artifacts import Store
        from temper.builder.errors import StoreError

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            def make(folder):
                (folder / "x").write_bytes(bytes(2000))
            Store(Path(sys.argv[1])).run("data", None, [], make, code=())
        except StoreError as error:
            print(error)
    """
    message = run_python(code, tmp_path).stdout
    assert "stage data: " in message
    assert message.endswith("the file is larger than this process may write (see `ulimit -f`)\n")


def test_config_without_json_form_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a stage's config holds set, which has no JSON form"):
        Store(tmp_path).run("data", {"bad": {1}}, [], make, code=())


def test_root_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"stage data: .*file.*: Not a directory"):
        Store(tmp_path / "file" / "store").run("data", None, [], make, code=())
