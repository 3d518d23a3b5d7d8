"""TensorRT-RTX's compiled kernels on disk: read, damaged, or in reach of others."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from runners.runtime_cache import CacheFile, cache_folder, cache_key


@pytest.fixture
def cache(tmp_path: Path) -> tuple[CacheFile, list[str]]:
    lines: list[str] = []
    return CacheFile(tmp_path / "rtx" / "key.rtxcache", lines.append), lines


KEY = {"digest": "ab" * 32, "version": "1.7.1.116", "capability": "9.0", "gpu": "NVIDIA H200"}


def test_cache_key_differs_with_whatever_makes_other_kernels() -> None:
    assert cache_key(**KEY).endswith("-rtx1.7.1.116-sm90-nvidia-h200.rtxcache")
    others = {"digest": "cd" * 32, "version": "1.8.0.1", "capability": "8.9", "gpu": "NVIDIA L40S"}
    assert len({cache_key(**{**KEY, name: value}) for name, value in others.items()} | {cache_key(**KEY)}) == 5


def test_cache_folder_is_the_given_one_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEMPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == tmp_path / "rtx"
    monkeypatch.delenv("TEMPER_CACHE_DIR")
    assert cache_folder() == Path("/xdg/temper/rtx")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/users/me")
    assert cache_folder() == Path("/users/me/.cache/temper/rtx")
    monkeypatch.delenv("HOME")
    assert cache_folder().name == "rtx"


def test_cache_is_read_by_the_next_start(cache: tuple[CacheFile, list[str]]) -> None:
    file, lines = cache
    assert file.read() is None
    file.write(b"kernels")
    assert CacheFile(file.path, lines.append).read() == b"kernels"
    assert [path.name for path in file.path.parent.iterdir()] == ["key.rtxcache"]
    assert lines == []


def test_cache_that_did_not_change_is_not_written_again(cache: tuple[CacheFile, list[str]]) -> None:
    file, _ = cache
    file.write(b"kernels")
    before = file.path.stat().st_ino
    file.write(b"kernels")
    assert file.path.stat().st_ino == before
    file.write(b"more kernels")
    assert file.path.stat().st_ino != before


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"x"]
)
def test_damaged_cache_is_ignored_with_a_line(
    cache: tuple[CacheFile, list[str]], spoil: Callable[[bytes], bytes]
) -> None:
    file, lines = cache
    file.write(b"kernels")
    file.path.write_bytes(spoil(file.path.read_bytes()))
    assert file.read() is None
    (line,) = lines
    assert re.search(r"runtime cache .*key.rtxcache is damaged and is not used", line)


def test_cache_that_others_may_write_is_not_used(cache: tuple[CacheFile, list[str]]) -> None:
    """It is code: who writes it decides what runs on the GPU."""
    file, lines = cache
    file.write(b"kernels")
    file.path.parent.chmod(0o777)
    assert file.read() is None
    file.write(b"other kernels")
    assert len(lines) == 2
    assert all("can be written by others; name a folder of your own in TEMPER_CACHE_DIR" in line for line in lines)


def test_cache_that_cannot_be_written_costs_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    CacheFile(tmp_path / "file" / "key.rtxcache", lines.append).write(b"kernels")
    (line,) = lines
    assert "is not written: " in line
