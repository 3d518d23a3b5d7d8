"""Ports of this machine's loopback address, the only one that the embedded server listens on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from temper.errors import ServerError

LOOPBACK = "127.0.0.1"


def take_ports(wanted: Sequence[int]) -> list[int]:
    """Ports that are free now: the wanted ones, or any for 0.

    Raises:
        ServerError: A wanted one is in use.
    """
    with contextlib.ExitStack() as stack:
        ports = []
        for port in wanted:
            probe = stack.enter_context(socket.socket())
            # As Triton does: a port that is only waiting out old connections counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise ServerError(
                    f"port {port} is in use ({error.strerror}); choose another, or stop what listens there"
                ) from error
            ports.append(probe.getsockname()[1])
    return ports


def listens(port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2):
            return True
    except OSError:
        return False
