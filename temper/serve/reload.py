"""A running server is told that a model was switched in its repository, and waited for until it answers so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from temper.client import Client
from temper.client.errors import ClientError
from temper.errors import ServerError
from temper.serve.control import open_control

_POLL_S = 0.1
# More than the 15 s after which a server looks for changes that polls as Triton does by default.
_FOLLOWS_S = 20.0
# Triton's words when models are not loaded by request, and when only who has a key may ask for it.
_OFF, _RESTRICTED = "not allowed", "This protocol is restricted"


def served_version(url: str, model: str) -> int | None:
    """The version that requests go to which name none; None when the model is not served.

    Raises:
        ServerError: The server cannot be asked.
    """
    try:
        with Client(url) as client:
            served = client.versions(model)
    except ClientError as error:
        raise ServerError(str(error)) from error
    return int(served[-1]) if served else None


def reload_model(
    url: str,
    model: str,
    version: int,
    *,
    timeout_s: float = 300.0,
    headers: Mapping[str, str] | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Loads what a model's config.pbtxt says now, and returns when requests that name no version go to it.

    What was served answers until then, and so it does when the new version does not load. A server that looks for
    changes by itself, as `temper serve` does or one that polls, is waited for.

    Args:
        url: host:port of the server's gRPC endpoint; it must read the repository that was switched.
        model: The model.
        version: The version that config.pbtxt names.
        timeout_s: How long loading may take.
        headers: What a restricted call carries.
        is_wanted: Whether config.pbtxt still names the version: who runs the server may have taken it back.

    Raises:
        ServerError: The server cannot be asked, the version does not load or is not wanted any more, or the server
            does not look for changes.
    """
    served_version(url, model)
    with open_control(url, headers or {}) as control:
        reason = control.load(model, timeout_s=timeout_s)
    follows = reason is not None and (_OFF in reason or _RESTRICTED in reason)
    if reason is not None and not follows:
        raise ServerError(
            f"model {model}: version {version} is not loaded by {url}: {' '.join(reason.split())[:600]}"
        )
    # Whether a restricted one loads just now, nobody but its owner can see.
    limit_s = _FOLLOWS_S if reason is not None and _OFF in reason else timeout_s
    begin = time.monotonic()
    while (served := served_version(url, model)) != version:
        if not is_wanted():
            raise ServerError(f"model {model}: version {version} was switched back before {url} served it")
        if time.monotonic() - begin > limit_s:
            raise ServerError(_why_not(url, model, version, served, limit_s, follows=follows))
        time.sleep(_POLL_S)


def _why_not(url: str, model: str, version: int, served: int | None, limit_s: float, *, follows: bool) -> str:
    found = "is not served" if served is None else f"is served as version {served}"
    line = f"model {model}: {found} by {url} after {limit_s:.0f} s, expected version {version}"
    if not follows:
        return f"{line}; does the server read this repository?"
    return (
        f"{line}: the server loads nothing that it is asked to; restart it, or start it with "
        "--model-control-mode=explicit, or poll; of a `temper serve` read what it said"
    )
