"""TensorRT-RTX's compiled kernels, kept on disk so that the next start need not compile them again.

The version's folder never changes and may be read-only, so the cache lies elsewhere. It holds code for the GPU:
only a folder that this user alone can write is used, and a file whose digest is wrong is not read.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

_SUFFIX = ".rtxcache"
_DIGEST_BYTES = 32


def cache_key(*, digest: str, version: str, capability: str, gpu: str) -> str:
    """The name of the file that fits an engine, a library and a GPU.

    Args:
        digest: The engine's SHA-256, hexadecimal.
        version: TensorRT-RTX's version.
        capability: The GPU's compute capability, as "9.0".
        gpu: The GPU's name; the library takes a cache from the same product only.
    """
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{digest[:32]}-rtx{version}-sm{capability.replace('.', '')}-{name}{_SUFFIX}"


def cache_folder() -> Path:
    """Where caches lie: in TEMPER_CACHE_DIR, else in the user's cache folder, else in the tmp folder."""
    if given := os.environ.get("TEMPER_CACHE_DIR"):
        return Path(given) / "rtx"
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "temper" / "rtx"
    if home := os.environ.get("HOME"):
        return Path(home) / ".cache" / "temper" / "rtx"
    return Path(tempfile.gettempdir()) / f"temper-{os.getuid()}" / "rtx"


class CacheFile:
    """One file of the cache; whatever is wrong with it costs time at the start and nothing else.

    Args:
        path: From `cache_folder` and `cache_key`.
        log: Told in one line why the cache is not used.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        """Read nothing yet."""
        self.path = path
        self._log = log
        self._stored = b""

    def read(self) -> bytes | None:
        """The kernels, or None without a whole file that this user wrote."""
        try:
            _check_owner(self.path.parent)
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log(f"runtime cache {self.path} is not used: {error.strerror or error}")
            return None
        digest, kernels = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(kernels).digest() != digest:
            self._log(f"runtime cache {self.path} is damaged and is not used; it is written again")
            return None
        self._stored = digest
        return kernels

    def write(self, kernels: bytes) -> None:
        """Replace the file in one rename, unless it holds the same."""
        digest = hashlib.sha256(kernels).digest()
        if digest == self._stored:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_owner(self.path.parent)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".writing-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(digest + kernels)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            self._log(f"runtime cache {self.path} is not written: {error.strerror or error}")
            return
        self._stored = digest


def _check_owner(folder: Path) -> None:
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(
            0, f"{folder} can be written by others; name a folder of your own in TEMPER_CACHE_DIR"
        )
