"""Where requests go: a server that is running already, or the embedded one, started when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from temper.progress import Display

if TYPE_CHECKING:
    from temper.server import TritonServer


class Endpoint:
    """A context manager around one server; the embedded one ends with it.

    Args:
        url: host:port of a running server's gRPC endpoint; None starts the embedded server.
        repository: The embedded server's model repository.
        models: The models it loads; None loads all.
        log_file: Where its log goes; None keeps none.
        display: Shows the server's start as a stage.
    """

    def __init__(
        self,
        url: str | None,
        repository: Path,
        *,
        models: Sequence[str] | None = None,
        log_file: Path | None = None,
        display: Display | None = None,
    ) -> None:
        """Starts nothing yet."""
        self._url = url
        self._repository = repository
        self._models = models
        self._log_file = log_file
        self._display = display or Display()
        self._server: TritonServer | None = None

    def __enter__(self) -> Self:
        """Starts nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the embedded server, if it was started."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def description(self) -> str:
        """Names the server, for the report."""
        return f"the server at {self._url}" if self._url else "the embedded tritonserver"

    def url(self) -> str:
        """The gRPC address; the first call starts the embedded server.

        Raises:
            ServerError: It cannot be started, or does not load the models.
        """
        if self._url is not None:
            return self._url
        if self._server is None:
            self._server = self._start()
        return self._server.grpc_url

    def why(self, error: Exception) -> str:
        """The error's line, preceded by the embedded server's death when that is the reason."""
        if self._server is None or self._server.alive:
            return str(error)
        log = f" (its log: {self._log_file})" if self._log_file else ""
        return f"the embedded tritonserver died{log}: {error}"

    def _start(self) -> TritonServer:
        from temper.server import TritonServer

        if self._log_file is not None:
            self._log_file.unlink(missing_ok=True)  # one run, one log
        with self._display.stage("start the embedded tritonserver") as stage:
            stage.note = f"{self._repository}: {', '.join(self._models or ['every model'])}"
            return TritonServer(self._repository, models=self._models, log_file=self._log_file).start()
