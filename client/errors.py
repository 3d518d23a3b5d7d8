"""What can go wrong on the client's side.

    ClientError
    |-- ServerUnavailable   nothing answers at the address, or the connection broke
    |-- DeadlineExceeded    the server did not answer in the time given
    |-- ModelNotFound       the server has no such model or version, or it is not ready
    |-- InvalidRequest      the request does not fit the model; found before sending or answered by the server
    |-- ShortOutput         the server answered with fewer bytes than the shape it declared
    |-- ServerError         any other failure the server reported
    `-- ImageError          an image file cannot be decoded

gRPC's own errors never leave the package: `client/wire.py` translates them.
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of every error this package raises on purpose; its text is one line for the user.

    Attributes:
        code: Name of the gRPC status the server or the channel reported, such as "UNAVAILABLE"; None when the
            error was found on this side.
    """

    def __init__(self, message: str, *, code: str | None = None) -> None:
        """Keep the line and, where there was one, the gRPC status name."""
        super().__init__(message)
        self.code = code


class ServerUnavailable(ClientError):  # noqa: N818 - says what happened
    """Nothing answers at the address, or the connection broke before the answer came."""


class DeadlineExceeded(ClientError):  # noqa: N818 - says what happened
    """The server did not answer in the time given."""


class ModelNotFound(ClientError):  # noqa: N818 - says what happened
    """The server has no such model or version, or the model is not ready."""


class InvalidRequest(ClientError):  # noqa: N818 - says what happened
    """The request does not fit the model."""


class ShortOutput(ClientError):  # noqa: N818 - says what happened
    """The server answered with fewer (or more) bytes than the shape it declared."""


class ServerError(ClientError):
    """The server reported a failure of its own."""


class ImageError(ClientError):
    """An image file cannot be decoded."""
