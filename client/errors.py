"""What can go wrong on the client's side.

    ClientError
    |-- ServerUnavailable   nothing answers at the address, or the connection broke
    |-- DeadlineExceeded    the server did not answer in the time given
    |-- Overloaded          the server sheds load: its queue is full, or the request waited too long in it
    |-- ModelNotFound       the server has no such model or version, or it is not ready
    |-- VersionChanged      another version of the model answers than the one asked for, or learned from
    |-- InvalidRequest      the request does not fit the model; found before sending or answered by the server
    |-- ShortOutput         the server answered with fewer bytes, or rows, than it should
    |-- NonFiniteOutput     the server answered NaN or an infinity where a score belongs
    |-- ServerError         any other failure the server reported
    `-- ImageError          an image file cannot be decoded

gRPC's own errors never leave the package: `client/wire.py` translates them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class ClientError(Exception):
    """Base of every error this package raises on purpose; its text is one line for the user.

    Attributes:
        code: Name of the gRPC status the server or the channel reported, such as "UNAVAILABLE"; None when the
            error was found on this side.
        kind: The name under which results count it.
    """

    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        """Keep the line and, where there was one, the gRPC status name."""
        super().__init__(message)
        self.code = code


class ServerUnavailable(ClientError):  # noqa: N818 - says what happened
    """Nothing answers at the address, or the connection broke before the answer came."""

    kind = "unavailable"


class DeadlineExceeded(ClientError):  # noqa: N818 - says what happened
    """The server did not answer in the time given."""

    kind = "deadline"


class Overloaded(ClientError):  # noqa: N818 - says what happened
    """The server sheds load: the model's queue is full, or the request waited too long in it."""

    kind = "overloaded"


class ModelNotFound(ClientError):  # noqa: N818 - says what happened
    """The server has no such model or version, or the model is not ready."""

    kind = "model_not_found"


class VersionChanged(ClientError):  # noqa: N818 - says what happened
    """Another version of the model answers than the one asked for, or whose labels and shapes are known."""

    kind = "version_changed"


class InvalidRequest(ClientError):  # noqa: N818 - says what happened
    """The request does not fit the model."""

    kind = "invalid_request"


class ShortOutput(ClientError):  # noqa: N818 - says what happened
    """The server answered with fewer (or more) bytes than the shape it declared, or not one row per image."""

    kind = "short_output"


class NonFiniteOutput(ClientError):  # noqa: N818 - says what happened
    """The server answered NaN or an infinity where a score belongs: no class may be read from such a row.

    Attributes:
        scores: The whole answer, float32 [N, classes]; its other rows are sound.
    """

    kind = "nonfinite_output"

    def __init__(
        self, message: str, *, code: str | None = None, scores: npt.NDArray[np.float32] | None = None
    ) -> None:
        """Keep the answer beside the line."""
        super().__init__(message, code=code)
        self.scores = scores


class ServerError(ClientError):
    """The server reported a failure of its own."""

    kind = "server_error"


class ImageError(ClientError):
    """An image file cannot be decoded."""
