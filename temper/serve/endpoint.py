"""Where requests go: a server that is running already, or the embedded one, started when it is first needed.

The embedded one may die: Tritons of its age have races in their gRPC handlers, and it ends when one of its stubs
does. What was being measured is then measured again on a new one, once in an endpoint's life.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from temper.client.errors import ClientError
from temper.errors import ServerError, TemperError
from temper.progress import Display

if TYPE_CHECKING:
    from temper.serve.server import TritonServer

Result = TypeVar("Result")


def start_again(server: TritonServer) -> str:
    """Starts a server that died again, at the same address, and returns a line that says so and how it died.

    Raises:
        ServerError: It does not start again.
    """
    death = server.death()
    try:
        server.restart()
    except ServerError as error:
        raise ServerError(f"{death}; it does not start again: {error}") from error
    return f"{death}; started again"


class Endpoint:
    """A context manager around one server; the embedded one ends with it.

    Args:
        url: host:port of a running server's gRPC endpoint; None starts the embedded server.
        repository: The embedded server's model repository.
        models: The models it loads; None loads all.
        versions: By model, the versions that the embedded server loads in the place of the served one; a request
            that names none goes to the highest. A running server loads what it loads.
        log_file: Where its log goes; None keeps none.
        display: Shows the server's start as a stage.
    """

    def __init__(
        self,
        url: str | None,
        repository: Path,
        *,
        models: Sequence[str] | None = None,
        versions: Mapping[str, Sequence[int]] | None = None,
        log_file: Path | None = None,
        display: Display | None = None,
    ) -> None:
        """Starts nothing yet."""
        self._url = url
        self._repository = repository
        self._models = models
        self._versions = versions
        self._log_file = log_file
        self._display = display or Display()
        self._server: TritonServer | None = None
        self.deaths: list[str] = []
        """How the embedded server died and what was measured again, one line for each death that was got over."""

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
    def is_embedded(self) -> bool:
        """Whether the server runs on this machine, as a child of this process."""
        return self._url is None

    @property
    def description(self) -> str:
        """Names the server, for the report."""
        return f"the server at {self._url}" if self._url else "the embedded tritonserver"

    @property
    def words(self) -> list[str]:
        """The options of a command that asks the same server."""
        return ["--url", self._url] if self._url else ["--repository", str(self._repository)]

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

    def retrying(self, what: str, measure: Callable[[str], Result]) -> Result:
        """Measures on the server, and once again on a new one when the embedded one died meanwhile.

        Args:
            what: Names the measurement.
            measure: Called with the gRPC address. What it raises says that it could not finish.

        Raises:
            ServerError: The embedded server cannot be started, or not again.
            ClientError: From `measure`, as all that it raises: the server did not die, or for the second time.
        """
        try:
            return measure(self.url())
        except (ClientError, TemperError):
            if not self._revive(what):
                raise
        return measure(self.url())

    def why(self, error: object) -> str:
        """The error's line, preceded by the embedded server's death when that is the reason."""
        death = self._server and self._server.death()
        return f"{death}: {error}" if death else str(error)

    def _revive(self, what: str) -> bool:
        """Starts the embedded server again, if it died and for the first time."""
        if self._server is None or self._server.death() is None or self.deaths:
            return False
        self.deaths.append(f"{start_again(self._server)}, measuring {what} again")
        self._display.say(self.deaths[-1])
        return True

    def _start(self) -> TritonServer:
        from temper.serve.server import TritonServer

        if self._log_file is not None:
            self._log_file.unlink(missing_ok=True)  # one run, one log
        with self._display.stage("start the embedded tritonserver") as stage:
            stage.note = f"{self._repository}: {', '.join(self._models or ['every model'])}"
            return TritonServer(
                self._repository, models=self._models, versions=self._versions, log_file=self._log_file
            ).start()
