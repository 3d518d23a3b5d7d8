"""history.jsonl of a model: which version was served when, and why. One JSON object a line, only ever added to."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from temper.builder.contract import CONFIG_FILE, HISTORY_FILE
from temper.builder.errors import PublishError
from temper.builder.publish.versions import named_version
from temper.builder.store.files import fsync_path

What = Literal["promoted", "rolled back", "taken back", "recovered"]
"""`taken back` undoes the one before it, which a server did not load. The last is what somebody else did:
config.pbtxt was found to name another version than the history does."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Another version of one entry is served."""

    model: str
    """The entry."""
    before: int | None
    """The version that was served; None when there was none."""
    after: int
    """The version that is."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the history."""

    time: str
    """When, in UTC: 2026-11-28T08:00:00Z."""
    event: What
    """What happened."""
    before: int | None
    """The version that was served; None when there was none."""
    after: int
    """The version that is."""
    answer: str | None = None
    """What the verdict on it said; None without one."""
    sums_sha256: str | None = None
    """SHA-256 of its SHA256SUMS."""
    override: bool = False
    """Whether it was switched to against its verdict, or without one."""
    reason: str = ""
    """Why, in the words of whoever did it."""
    companions: tuple[Change, ...] = ()
    """What is served with it, the same as before or not: what takes image files for it, and steps of it."""

    def to_json(self) -> dict[str, Any]:
        """Returns the event as JSON."""
        return dataclasses.asdict(self)


def now() -> str:
    """Returns this moment as events have it."""
    return _in_utc(datetime.datetime.now(datetime.UTC))


def _in_utc(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def read_events(model: Path) -> list[Event]:
    """Reads the history in a model's folder as it was written; a torn last line is no event.

    Raises:
        PublishError: A line is none that was written here.
    """
    path = model / HISTORY_FILE
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def _parse(path: Path, number: int, line: bytes) -> Event:
    try:
        return event_of(json.loads(line))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PublishError(
            f"{path}: line {number} is no event that temper wrote; put that line back, or remove it"
        ) from error


def event_of(found: dict[str, Any]) -> Event:
    """Reads an event from its JSON.

    Raises:
        ValueError: A value is none that an event has.
        TypeError: It is no event at all, or has other keys.
        KeyError: It has too few.
    """
    event = Event(**{**found, "companions": tuple(Change(**each) for each in found["companions"])})
    versions = [(one.before, one.after) for one in event.companions] + [(event.before, event.after)]
    texts = (event.time, event.reason, event.answer or "", *(one.model for one in event.companions))
    if (
        event.event not in get_args(What)
        or not all(isinstance(before, int | None) and isinstance(after, int) for before, after in versions)
        or not all(isinstance(text, str) for text in texts)
    ):
        raise ValueError("got other values than an event has")
    return event


def append(model: Path, event: Event) -> None:
    """Adds an event durably; what a crash left of the last one is cut off."""
    path = model / HISTORY_FILE
    line = json.dumps(event.to_json(), ensure_ascii=True).encode() + b"\n"
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b") as file:
        whole = file.read().rfind(b"\n") + 1
        file.seek(whole)
        file.truncate()
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    fsync_path(model)


def found_elsewhere(model: Path, events: Sequence[Event]) -> Event | None:
    """Returns the event that is missing when config.pbtxt names another version than the last one; else None.

    Of a model without a history nothing is missing: it is as it was published.
    """
    version = named_version(model)
    if not events or version is None or version == events[-1].after:
        return None
    changed = datetime.datetime.fromtimestamp((model / CONFIG_FILE).stat().st_mtime, datetime.UTC)
    return Event(
        time=_in_utc(changed),
        event="recovered",
        before=events[-1].after,
        after=version,
        reason="config.pbtxt was changed by something else",
    )


def served_before(events: Sequence[Event]) -> int | None:
    """Returns the version that a rollback goes to; None when there is none.

    A version from which one was rolled back is none to go back to: two rollbacks go two versions back.
    """
    earlier: list[int | None] = []
    undone = list(earlier)
    for event in events:
        if event.event == "taken back":
            earlier = undone
            continue
        undone = list(earlier)
        if event.event == "rolled back" and earlier and earlier[-1] == event.after:
            earlier.pop()
        else:
            earlier.append(event.before)
    return earlier[-1] if earlier else None
