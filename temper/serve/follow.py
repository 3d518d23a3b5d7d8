"""A running server follows its repository: a config.pbtxt that names another version is loaded.

Only the models that the server began with are followed; one that is published meanwhile waits for the next start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from temper.backends.temper.artifact import CONFIG, served_version
from temper.builder.errors import PublishError
from temper.builder.publish.switch import settle, steps_of
from temper.errors import ServerError, TemperError
from temper.serve import reload
from temper.serve.live import switch_of, take_back
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
        if not self._changed():
            return
        with contextlib.suppress(PublishError):  # of a repository that may only be read
            settle(self._server.repository)  # half a switch is waited for, or ended if it was killed
        changed = self._changed()
        self._seen |= changed
        loaded: set[str] = set()
        # An ensemble first: Triton loads its steps with it, and would end it meanwhile where it fits one no more.
        for model in sorted(changed, key=lambda one: not steps_of(self._server.repository / one)):
            if self._seen[model] != changed[model]:
                continue  # what was switched with it was taken back
            version = _version(self._path(model))
            is_there = model in loaded and self._served(model) == version
            if (is_there or self._load(model, version)) and self._server.alive:
                self._say(f"switched: {model} is served as version {version}")
                loaded |= set(steps_of(self._server.repository / model))

    def _changed(self) -> dict[str, _Stamp]:
        stamps = {model: _stamp(self._path(model)) for model in self._server.loaded}
        # Missing: Triton would take that for no config at all.
        return {model: one for model, one in stamps.items() if one is not None and one != self._seen.get(model)}

    def _path(self, model: str) -> Path:
        return self._server.repository / model / CONFIG

    def _served(self, model: str) -> int | None:
        try:
            return reload.served_version(self._server.grpc_url, model)
        except ServerError:
            return None  # it is dead, which whoever asks finds by itself

    def _load(self, model: str, version: int | None) -> bool:
        try:
            self._server.reload(model)
        except TemperError as error:
            if self._server.alive:
                line = f"not switched: {model}: version {version}: {error}"
                self._say(f"{line}; {self._take_back(model, version, str(error))}")
            return False
        return True

    def _take_back(self, entry: str, version: int | None, reason: str) -> str:
        """Switches back what brought a version of an entry, so that no restart meets it; says what is so now."""
        repository = self._server.repository
        model, after = switch_of(repository, entry, version, self._server.loaded)
        back = None if after is None else take_back(repository, model, after, f"{entry}: {reason}")
        if back is None:
            return (
                f"what was served is served on, until a restart: `temper rollback {model}` puts it back into the "
                "repository"
            )
        for name in {model, *(one.model for one in back.companions)} & self._seen.keys():
            if self._served(name) == _version(self._path(name)):
                self._seen[name] = _stamp(self._path(name))
        return f"version {back.after} of {model} is served on, in the repository, too"


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
