"""Writes a model repository entry that Triton can load at any moment, whatever happens to the writer.

Everything is written and flushed in a work folder *beside* the repository (Triton takes any folder inside it for
a model, even one whose name starts with a dot), then renamed in. A new model appears in one rename. A new version
of a model appears in two steps: its folder is renamed in, which changes nothing, because config.pbtxt names the
version to serve (`version_policy { specific }`); then config.pbtxt is replaced, which switches shapes, labels and
version at once. A crash between the two leaves the old version served; the next publish goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import PublishError
from builder.files import describe_os_error, fsync_path, fsync_tree, locked, replace_file, sha256_file
from builder.triton_config import TritonConfig, render_config

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
CARD_FILE = "card.json"
DIGESTS_FILE = "SHA256SUMS"

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Published:
    """One version of one model in the repository."""

    model: str
    """Triton's model name."""
    version: int
    """The version that config.pbtxt serves now."""
    path: Path
    """The version's folder."""
    reused: bool
    """True when the repository already served exactly this."""


@dataclass(frozen=True)
class _Entry:
    """What is to be published, but for its version."""

    model: str
    engine_file: Path
    engine_sha256: str
    labels: bytes
    card: dict[str, Any]
    config: TritonConfig


def publish(
    repository: Path,
    *,
    model: str,
    engine_file: Path,
    labels: Sequence[str],
    card: Mapping[str, Any],
    image_size: int,
    num_classes: int,
    max_batch: int,
    parameters: Mapping[str, str],
    num_instances: int = 1,
) -> Published:
    """Publishes an engine as the newest version of a model, atomically.

    Nothing is written when the newest version already holds the same engine and card. Older versions are never
    touched. Several publishers of one repository take turns.

    Args:
        repository: The model repository; made when missing.
        model: The model's name in Triton: letters, digits, `_`, `.`, `-`.
        engine_file: The engine, copied under its own name (model.onnx, model.rtx).
        labels: One class name per output, in order.
        card: The provenance, as JSON; the engine's digest and size are added to it.
        image_size: Height and width of the input, in pixels.
        num_classes: Length of the output.
        max_batch: The largest batch that the engine takes.
        parameters: config.pbtxt's parameters; `engine` and `file` are read by the plugin.
        num_instances: Triton's model instances.

    Returns:
        The version served from now on.

    Raises:
        PublishError: The name or the labels are wrong, or the repository cannot be written.
    """
    _check(model, labels, num_classes)
    try:
        digest = sha256_file(engine_file)
        size = engine_file.stat().st_size
    except OSError as error:
        raise PublishError(f"engine {engine_file}: cannot be read: {describe_os_error(error)}") from error
    entry = _Entry(
        model=model,
        engine_file=engine_file,
        engine_sha256=digest,
        labels="".join(f"{label}\n" for label in labels).encode(),
        card={
            "model": model,
            **card,
            "engine_file": {"name": engine_file.name, "sha256": digest, "size_bytes": size},
        },
        config=TritonConfig(
            name=model,
            image_size=image_size,
            num_classes=num_classes,
            max_batch=max_batch,
            parameters={"file": engine_file.name, **parameters},
            num_instances=num_instances,
        ),
    )
    try:
        # Resolved, so that publishers that reach it by different links share one lock.
        return _publish(repository.resolve(), entry)
    except OSError as error:
        raise PublishError(
            f"model {model}: cannot publish into {repository}: {describe_os_error(error)}"
        ) from error


def _check(model: str, labels: Sequence[str], num_classes: int) -> None:
    if not _MODEL_NAME.fullmatch(model):
        raise PublishError(f"model name: got {model!r}, expected letters, digits, '_', '.', '-'; rename it")
    if len(labels) != num_classes:
        raise PublishError(
            f"model {model}: got {len(labels)} labels, expected one for each of {num_classes} classes"
        )
    for label in labels:
        if not label.strip() or "\n" in label or "\r" in label:
            raise PublishError(f"model {model}: got the label {label!r}, expected one line of text")


def _publish(repository: Path, entry: _Entry) -> Published:
    repository.mkdir(parents=True, exist_ok=True)
    work_root = _work_root(repository)
    with locked(work_root / "lock"):
        _remove_leftovers(work_root)
        work = Path(tempfile.mkdtemp(prefix="publish-", dir=work_root))
        try:
            if not (repository / entry.model).exists():
                return _add_model(repository, entry, work)
            return _add_version(repository / entry.model, entry, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _work_root(repository: Path) -> Path:
    """Returns the folder beside the repository where entries are put together, on the same file system."""
    if repository.stat().st_dev != repository.parent.stat().st_dev:
        raise PublishError(
            f"repository {repository}: is the root of its file system, so nothing beside it can be renamed "
            "into it; use a folder inside it"
        )
    work_root = repository.with_name(f".{repository.name}-work")
    work_root.mkdir(exist_ok=True)
    return work_root


def _remove_leftovers(work_root: Path) -> None:
    """Removes what killed publishers left; the lock is ours, so nobody is using it."""
    for path in work_root.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink(missing_ok=True)


def _add_model(repository: Path, entry: _Entry, work: Path) -> Published:
    folder = work / entry.model
    _write_version(folder / "1", entry)
    (folder / LABELS_FILE).write_bytes(entry.labels)
    (folder / CONFIG_FILE).write_bytes(render_config(entry.config, version=1, label_filename=LABELS_FILE))
    fsync_tree(folder)
    os.rename(folder, repository / entry.model)
    fsync_path(repository)
    return Published(model=entry.model, version=1, path=repository / entry.model / "1", reused=False)


def _add_version(model: Path, entry: _Entry, work: Path) -> Published:
    newest = max((int(path.name) for path in model.iterdir() if path.name.isdigit()), default=0)
    reused = newest > 0 and _holds(model / str(newest), entry)
    version = newest if reused else newest + 1
    if not reused:
        _write_version(work / str(version), entry)
        fsync_tree(work / str(version))
        os.rename(work / str(version), model / str(version))
        fsync_path(model)
    label_filename = _write_labels(model, entry.labels, version, work)
    config = render_config(entry.config, version=version, label_filename=label_filename)
    if not _same_content(model / CONFIG_FILE, config):
        replace_file(model / CONFIG_FILE, config, work=work)
        reused = False
    return Published(model=entry.model, version=version, path=model / str(version), reused=reused)


def _write_labels(model: Path, labels: bytes, version: int, work: Path) -> str:
    """Returns the name of a file with these labels; never changes the one that the present config may name."""
    for name in (LABELS_FILE, f"labels.{version}.txt"):
        if _same_content(model / name, labels):
            return name
    name = f"labels.{version}.txt" if (model / LABELS_FILE).exists() else LABELS_FILE
    replace_file(model / name, labels, work=work)
    return name


def _same_content(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _write_version(folder: Path, entry: _Entry) -> None:
    folder.mkdir(parents=True)
    engine = folder / entry.engine_file.name
    # A copy, never a link: a later change of the build's own file must not reach the served one.
    shutil.copyfile(entry.engine_file, engine)
    if sha256_file(engine) != entry.engine_sha256:
        raise PublishError(f"engine {entry.engine_file}: changed while it was published; run it again")
    (folder / CARD_FILE).write_bytes(_render_card(entry))
    (folder / DIGESTS_FILE).write_bytes(_render_digests(entry))


def _render_card(entry: _Entry) -> bytes:
    return (json.dumps(entry.card, indent=1, default=str) + "\n").encode()


def _render_digests(entry: _Entry) -> bytes:
    """Returns the lines that `sha256sum --check` reads."""
    card_sha256 = hashlib.sha256(_render_card(entry)).hexdigest()
    return f"{entry.engine_sha256}  {entry.engine_file.name}\n{card_sha256}  {CARD_FILE}\n".encode()


def _holds(version: Path, entry: _Entry) -> bool:
    """Returns True when the version's files are whole and hold the same engine and card."""
    engine = version / entry.engine_file.name
    return (
        _same_content(version / CARD_FILE, _render_card(entry))
        and _same_content(version / DIGESTS_FILE, _render_digests(entry))
        and engine.is_file()
        and sha256_file(engine) == entry.engine_sha256
    )
