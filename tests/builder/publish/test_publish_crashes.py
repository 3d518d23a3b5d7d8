"""Publishing that is interrupted: by another publisher, a kill at any moment, a full disk, a mount."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from publishing import check_repository, serve_bytes

from temper.builder.publish.switch import versions_of

Mount = Callable[[Path, str], list[str]]
WITH_HELPERS = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


@pytest.mark.slow
def test_concurrent_publishers_take_turns(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from publishing import publish_bytes
        folder, number = Path(sys.argv[1]), sys.argv[2]
        (folder / number).mkdir()
        (folder / number / "repository").symlink_to(folder / "repository")
        publish_bytes(folder / number, f"engine {number}".encode())
    """
    (tmp_path / "repository").mkdir()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(number)],
            env=WITH_HELPERS,
            stderr=subprocess.PIPE,
        )
        for number in range(6)
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 6, errors
    assert [version for _, version, _ in check_repository(tmp_path / "repository")] == [1]
    assert versions_of(tmp_path / "repository", "m_int8") == [1, 2, 3, 4, 5, 6]


# Forks a publisher for every number of file operations, each killed by SIGKILL just before its n-th one.
KILLED = """
import os, signal, sys
from pathlib import Path
from temper.builder.publish.serving import ServingConfig
from temper.builder.publish.switch import versions_of
from publishing import check_repository, publish_bytes, serve_bytes

EVENTS = {
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile", "tempfile.mkdtemp", "fcntl.flock"
}

def publish_until(folder, limit, content, **changes):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
    pid = os.fork()
    if pid == 0:
        sys.addaudithook(hook)
        publish_bytes(folder, content, **changes)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

import google.protobuf.text_format, tritonclient.grpc  # or their files count as ours
root, old = Path(sys.argv[1]), sys.argv[2] == "old"
for limit in range(1, 200):
    folder = root / str(limit)
    folder.mkdir()
    for version in range(1, 4 if old else 1):
        serve_bytes(folder, f"engine {version}".encode())
    changes = {"labels": ["a", "b", "c"], "num_classes": 3, "serving": ServingConfig(keep_versions=1)}
    status = publish_until(folder, limit, b"newest", **changes)
    repository = folder / "repository"
    left = check_repository(repository) if repository.exists() else []
    expected = [("m_int8", 3, "engine 3") if old else ("m_int8", 1, "newest")]
    assert left in (expected if old else [], expected), (limit, left)
    assert publish_bytes(folder, b"newest", **changes).version == (4 if old else 1)
    assert check_repository(repository) == expected, limit
    assert versions_of(repository, "m_int8") == ([2, 3, 4] if old else [1]), limit  # 2 was served before 3
    work = folder / ".repository-work"
    assert [path.name for path in work.iterdir()] == ["lock"], (limit, list(work.iterdir()))
    print(limit, status, left)
    if status == 0:
        break
"""


@pytest.mark.parametrize("start", ["new", "old"])
@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_repository_that_loads(tmp_path: Path, start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), start],
        env=WITH_HELPERS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = [line.split()[1] for line in done.stdout.splitlines()]
    assert statuses[-1] == "0", "the last one was not killed"
    assert set(statuses[:-1]) == {"9"}
    assert len(statuses) > 20, done.stdout


def test_full_disk_is_one_line_and_leaves_the_old_version(tmp_path: Path, mount: Mount) -> None:
    code = """
        import sys
        from pathlib import Path
        from publishing import check_repository, publish_bytes
        from temper.builder.errors import PublishError

        folder = Path(sys.argv[1])
        publish_bytes(folder, b"engine 1")
        (folder / "model.onnx").unlink()
        outside = Path(sys.argv[2]) / "model.onnx"
        outside.write_bytes(bytes(3_000_000))
        try:
            publish_bytes(folder, b"", engine_file=outside)
        except PublishError as error:
            print(error)
        print(check_repository(folder / "repository"))
        print([path.name for path in (folder / ".repository-work").iterdir()])
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [*mount(disk, "size=1m"), sys.executable, "-c", textwrap.dedent(code), str(disk), str(tmp_path)],
        env=WITH_HELPERS,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        f"model m_int8: cannot publish into {disk}/repository: "
        "no space left on the disk; free some and run it again",
        "[('m_int8', 1, 'engine 1')]",
        "['lock']",
    ], done.stderr


def test_file_over_the_limit_is_one_line(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from publishing import publish_bytes
        from temper.builder.errors import PublishError

        folder = Path(sys.argv[1])
        engine = folder / "big.onnx"
        engine.write_bytes(bytes(2_000_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            publish_bytes(folder, engine_file=engine)
        except PublishError as error:
            print(error)
        print(list((folder / "repository").iterdir()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env=WITH_HELPERS,
        capture_output=True,
        text=True,
    )
    assert "the file is larger than this process may write (see `ulimit -f`)\n[]\n" in done.stdout, done.stderr


def test_old_version_that_cannot_be_removed_is_no_error(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from publishing import check_repository, publish_bytes
        from temper.builder.publish.serving import ServingConfig

        folder = Path(sys.argv[1])
        for number in (4, 5):
            done = publish_bytes(folder, f"engine {number}".encode(), serving=ServingConfig(keep_versions=1))
            print(done.note)
        print(check_repository(folder / "repository"))
    """
    for number in (1, 2, 3):
        old = serve_bytes(tmp_path, f"engine {number}".encode())
    mounts = f'mount --bind {old.path.parent / "1"} {old.path.parent / "1"} && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounts, "sh"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system lets nobody mount a folder")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env=WITH_HELPERS,
        capture_output=True,
        text=True,
    )
    why = "the old version 1 cannot be removed (Device or resource busy)"
    assert done.stdout.splitlines() == [
        f"m_int8 version 4, a candidate: version 3 is served; {why}",
        f"m_int8 version 5, a candidate: version 3 is served; {why}",
        "[('m_int8', 3, 'engine 3')]",
    ], done.stderr
    assert versions_of(tmp_path / "repository", "m_int8") == [1, 2, 3, 5]
