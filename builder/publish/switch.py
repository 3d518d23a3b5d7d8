"""Which version of a model is served: switching it, and what was served when.

Publishing a version serves it to nobody; `switch` does, under the publisher's lock. A model may be several
entries: its companions (`_mean`, `_defence`, `_jpeg`, `_jpeg_decode`) are switched with it, steps before their
ensemble. What is to be done is written down first, beside the repository. The rename of the model's own
config.pbtxt decides: whoever holds the lock next finishes a switch that was killed after it, and takes back one
that was killed before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.builder.contract import CONFIG_FILE, DIGESTS_FILE
from temper.builder.errors import PublishError
from temper.builder.names import is_model_name
from temper.builder.publish.history import (
    Change,
    Event,
    What,
    append,
    event_of,
    found_elsewhere,
    now,
    read_events,
    served_before,
)
from temper.builder.publish.triton_config import decode_name, defence_name, jpeg_name, mean_name
from temper.builder.publish.versions import (
    can_be_served,
    named_version,
    newest_in,
    read_config,
    remove_versions,
    serve_version,
    served_version,
    versions_in,
    work_folder,
    work_root,
)
from temper.builder.store.files import describe_os_error, fsync_path, replace_file
from temper.imaging.errors import show
from temper.imaging.preprocess import PREPROCESSING

_INTENT = "switch.json"


@dataclass(frozen=True, kw_only=True)
class Switched:
    """What is served now."""

    model: str
    """Triton's model name."""
    before: int | None
    """The version that was served; None when there was none. The same as `after` when nothing had to change."""
    after: int
    """The version that is."""
    companions: tuple[Change, ...] = ()
    """Those that are served with it, also where nothing had to change."""

    def describe(self) -> Iterator[str]:
        """Yields a line for the model, and one for each that was switched with it."""
        if self.before == self.after:
            yield f"{self.model}: version {self.after} is served already"
            return
        yield f"{self.model}: version {self.after} is served, {_before(self.before)} before"
        for one in self.companions:
            if one.before != one.after:
                yield f"{one.model}: version {one.after} with it, {_before(one.before)} before"


def _before(version: int | None) -> str:
    return "none" if version is None else f"version {version}"


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was removed of a model and its companions."""

    gone: Mapping[str, list[int]]
    """The versions, by entry."""
    stuck: tuple[str, ...]
    """A line for each that could not be removed; it does no harm."""


def switch(
    repository: Path,
    model: str,
    version: int,
    *,
    event: What,
    reason: str = "",
    verdict: Mapping[str, Any] | None = None,
    override: bool = False,
    instead_of: int | None = None,
) -> Switched:
    """Serves another version of a model, with what belongs to it, durably; one that is served already stays.

    A kill at any moment leaves the old version or the new one.

    Args:
        repository: The model repository.
        model: The model.
        version: What is served from now on. Nothing here asks whether it may be, or is whole.
        event: What the history calls it.
        reason: Why, for the history.
        verdict: The version's, whose answer the history keeps.
        override: Whether it is switched to against its verdict, or without one.
        instead_of: The version that it takes the place of; when not given, whichever is served.

    Raises:
        PublishError: The version is not there, another one than expected is served by now, or the repository
            cannot be written.
    """
    with _opened(repository, f"model {model}: cannot be switched in") as (repository, work):
        folder = repository / model
        if version not in versions_of(repository, model) or not can_be_served(folder, version):
            raise PublishError(
                f"model {model}: has no version {version} to serve; it has {_say(versions_of(repository, model))}"
            )
        before = served_version(folder)
        if before == version:
            return Switched(model=model, before=before, after=version)
        if instead_of not in (None, before):
            raise PublishError(
                f"model {model}: version {before} is served by now, expected version {instead_of}, so nothing was "
                f"switched; see `temper history {model}`"
            )
        if (missing := found_elsewhere(folder, read_events(folder))) is not None:
            append(folder, missing)
        sums = hashlib.sha256((folder / str(version) / DIGESTS_FILE).read_bytes()).hexdigest()
        happened = Event(
            time=now(),
            event=event,
            before=before,
            after=version,
            answer=None if verdict is None else str(verdict.get("answer")),
            sums_sha256=sums,
            override=override,
            reason=reason,
            companions=tuple(
                Change(model=name, before=served_version(repository / name), after=after)
                for name, after in companions_of(repository, model, version).items()
            ),
        )
        for one in happened.companions:
            read_events(repository / one.model)  # before anything changes: it is written to in the end
        intent = json.dumps({"model": model, "event": happened.to_json()}).encode()
        replace_file(work_root(repository) / _INTENT, intent, work=work)
        _serve(repository, model, happened, work)
        _finish(repository, model, happened)
    return Switched(model=model, before=before, after=version, companions=happened.companions)


def _say(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


@contextmanager
def opened(repository: Path) -> Iterator[Path]:
    """A new folder beside the repository for the one who holds its lock; a switch that was killed is over then."""
    with work_folder(repository) as work:
        _settle(repository, work)
        yield work


@contextmanager
def _opened(repository: Path, trouble: str) -> Iterator[tuple[Path, Path]]:
    """As `opened`, of a repository that must be there; returns where it really lies, too."""
    if not repository.is_dir():
        raise PublishError(f"model repository {repository}: no such folder")
    try:
        repository = repository.resolve()
        with opened(repository) as work:
            yield repository, work
    except OSError as error:
        raise PublishError(f"{trouble} {repository}: {describe_os_error(error)}") from error


def settle(repository: Path) -> None:
    """Ends a switch that was killed, if there is one; whoever publishes or switches does the same.

    One that is under way is waited for.

    Raises:
        PublishError: The repository cannot be written.
    """
    try:
        is_there = (work_root(repository.resolve()) / _INTENT).exists()
    except OSError as error:
        raise PublishError(f"{repository}: cannot be looked into: {describe_os_error(error)}") from error
    if is_there:
        with _opened(repository, "a switch cannot be finished in"):
            pass


def _settle(repository: Path, work: Path) -> None:
    if (intent := _read_intent(repository)) is None:
        return
    model, event = intent
    if named_version(repository / model) == event.after:
        _serve(repository, model, event, work)
        _finish(repository, model, event)
        return
    for one in event.companions:
        if one.before is not None and can_be_served(repository / one.model, one.before):
            serve_version(repository / one.model, one.before, work)
    _forget_intent(repository)


def _serve(repository: Path, model: str, event: Event, work: Path) -> None:
    own = Change(model=model, before=event.before, after=event.after)
    steps = [one for one in event.companions if one.model in _own_steps(model)]
    others = [one for one in event.companions if one not in steps]
    for one in (*steps, own, *others):
        folder = repository / one.model
        if one is own or can_be_served(folder, one.after):  # else removed since, by hand
            serve_version(folder, one.after, work)


def _finish(repository: Path, model: str, event: Event) -> None:
    """Writes the histories, those that are not written yet, and forgets what was to be done."""
    for one in event.companions:
        part = Event(
            time=event.time, event=event.event, before=one.before, after=one.after, reason=f"with {model}"
        )
        if one.before != one.after and part not in read_events(repository / one.model)[-1:]:
            append(repository / one.model, part)
    if event not in read_events(repository / model)[-1:]:
        append(repository / model, event)
    _forget_intent(repository)


def _read_intent(repository: Path) -> tuple[str, Event] | None:
    try:
        found = json.loads((work_root(repository) / _INTENT).read_bytes())
        return str(found["model"]), event_of(found["event"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # there is none, or somebody wrote into it: nothing to go on with


def _forget_intent(repository: Path) -> None:
    (work_root(repository) / _INTENT).unlink(missing_ok=True)
    fsync_path(work_root(repository))


def companions_of(repository: Path, model: str, version: int) -> dict[str, int]:
    """Finds what else is served with a version of a model, as far as it is in the repository.

    Returns:
        The companions by name, steps before their ensemble, each in the version with which this one was served
        last; else the newest that takes the same images, as the newest ones of all are published together.
    """
    served: dict[str, int | None] = {}
    for event in read_events(repository / model):
        if event.before == version:
            served |= {one.model: one.before for one in event.companions}
        if event.after == version:
            served |= {one.model: one.after for one in event.companions}
    found: dict[str, int] = {}
    own = _taken(repository / model / str(version))
    for name in _companions(repository, model):
        wanted = served.get(name)
        is_there = wanted is not None and can_be_served(repository / name, wanted)
        # The number may have been given again, to one that takes other images.
        if wanted is None or not is_there or _differ(_taken(repository / name / str(wanted)), own):
            wanted = _matching(repository / name, own)
        found[name] = wanted
    return found


def versions_with(repository: Path, versions: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    """Finds what a server must load to answer with versions of models: these, and their companions.

    Args:
        repository: The model repository.
        versions: Models, each with its version.

    Returns:
        The versions of each entry, as a server takes them.
    """
    found: dict[str, tuple[int, ...]] = {}
    for model, version in versions:
        found |= {name: (one,) for name, one in companions_of(repository, model, version).items()}
        found[model] = (version,)
    return found


def _matching(companion: Path, own: tuple[str, int]) -> int:
    """Returns a companion's newest version that takes what a version of its model does, else its newest."""
    versions = versions_in(companion)[::-1]
    return next((one for one in versions if not _differ(_taken(companion / str(one)), own)), versions[0])


def _taken(version: Path) -> tuple[str, int]:
    """What images a version takes, and how many at once; nothing and 0 when its config cannot be read."""
    config = read_config(version / CONFIG_FILE)
    return ("", 0) if config is None else (config.parameters[PREPROCESSING].string_value, config.max_batch_size)


def _differ(companion: tuple[str, int], own: tuple[str, int]) -> bool:
    """Whether a companion takes other images, or another number of them; which images, not every one says."""
    return companion[1] != own[1] or (companion[0] != own[0] and "" not in (companion[0], own[0]))


def _companions(repository: Path, model: str) -> list[str]:
    """Returns the companions that are there, steps before their ensemble."""
    steps, jpeg = steps_of(repository / model), jpeg_name(model)
    names = [name for name in _own_steps(model) if name in steps]
    if steps_of(repository / jpeg) == [decode_name(jpeg), model]:
        names += [decode_name(jpeg), jpeg]
    return [name for name in names if versions_of(repository, name)]


def _own_steps(model: str) -> tuple[str, ...]:
    return defence_name(model), mean_name(model)


def steps_of(folder: Path) -> list[str]:
    """Returns the models that the newest version of an ensemble is made of, in order; none of any other model."""
    config = read_config(folder / str(newest_in(folder)) / CONFIG_FILE)
    return [] if config is None else [step.model_name for step in config.ensemble_scheduling.step]


def read_history(repository: Path, model: str) -> list[Event]:
    """Reads what was served when, the oldest first.

    What a killed switch or somebody else changed since the last event was written is the last one.

    Raises:
        PublishError: There is no such model, or its history cannot be read.
    """
    repository = repository.resolve()
    folder = repository / model
    if not versions_of(repository, model):
        raise PublishError(f"model {show(model)}: is not in {repository}; publish it with `temper build`")
    try:
        events = read_events(folder)
        intent = _read_intent(repository)
        if intent is not None and intent[0] == model and named_version(folder) == intent[1].after:
            events += [intent[1]] if intent[1] not in events[-1:] else []
        missing = found_elsewhere(folder, events)
    except OSError as error:
        raise PublishError(f"model {model}: its history cannot be read: {describe_os_error(error)}") from error
    return [*events, missing] if missing else events


def versions_of(repository: Path, model: str) -> list[int]:
    """Returns the versions of a model in the repository, ascending; none where there is no such model."""
    return versions_in(repository / model) if is_model_name(model) else []


def prune_versions(repository: Path, model: str, keep: int) -> Pruned:
    """Removes old versions of a model and of its companions.

    The newest few stay, and with them the served version and the one that was served before it.

    Args:
        repository: The model repository.
        model: The model.
        keep: How many of the newest stay, at least 1.

    Raises:
        PublishError: There is no such model, its history cannot be read, or the repository cannot be written.
    """
    gone, stuck = {}, []
    read_history(repository, model)  # says whether it is there
    with _opened(repository, f"model {model}: cannot be pruned in") as (repository, work):
        for name in (model, *_companions(repository, model)):
            spared = spared_versions(repository, name)
            gone[name], trouble = remove_versions(repository / name, keep, spared, work)
            stuck += [f"{name}: {line}" for line in trouble]
    return Pruned(gone=gone, stuck=tuple(stuck))


def spared_versions(repository: Path, model: str) -> set[int | None]:
    """Returns the served version of a model and the one that a rollback would go to."""
    return {named_version(repository / model), served_before(read_history(repository, model))}
