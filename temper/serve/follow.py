"""A running server follows its repository: a config.pbtxt that names another version is loaded.

Only the models that the server began with are followed; one that is published meanwhile waits for the next start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from temper.backends.temper.artifact import CONFIG, served_version
from temper.errors import TemperError
from temper.serve.server import TritonServer

_Stamp = tuple[int, int, int] | None


class Follower:
    """Loads anew what was switched since a server was started.

    Args:
        server: One that `reloads`; it need not run yet.
        say: Takes a line for the user.
    """

    def __init__(self, server: TritonServer, say: Callable[[str], None]) -> None:
        """Remembers what is there now, so that it is made before the server starts."""
        self._server = server
        self._say = say
        self._seen = {path.parent.name: _stamp(path) for path in server.repository.glob(f"*/{CONFIG}")}

    def look(self) -> None:
        """Loads the models whose config.pbtxt was replaced, and says so; one that does not load is said once."""
        for model in self._server.loaded:
            stamp = _stamp(self._server.repository / model / CONFIG)
            # Missing: Triton would take that for no config at all.
            if stamp is not None and stamp != self._seen.get(model):
                self._seen[model] = stamp
                self._load(model)

    def _load(self, model: str) -> None:
        version = _version(self._server.repository / model / CONFIG)
        try:
            self._server.reload(model)
        except TemperError as error:
            if self._server.alive:
                self._say(
                    f"not switched: {model}: version {version}: {error}; what was served is served on, until a "
                    f"restart: `temper rollback {model}` puts it back into the repository"
                )
            return
        if self._server.alive:
            self._say(f"switched: {model} is served as version {version}")


def _stamp(path: Path) -> _Stamp:
    """What tells a replaced file from the old one."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


def _version(path: Path) -> int | None:
    try:
        return served_version(path.read_bytes())
    except OSError:
        return None
