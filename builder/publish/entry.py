"""Writes a model repository entry that Triton can load at any moment, whatever happens to the writer.

Everything is written and flushed in a work folder *beside* the repository (Triton takes any folder inside it for
a model, even one whose name starts with a dot), then renamed in. A new model appears in one rename, and its
first version is served, as nothing else could be. A new version of a model is a *candidate*: its folder is renamed
in, and that is all. It is served to nobody, because config.pbtxt names the version to serve
(`version_policy { specific }`), until `switch.py` puts the candidate's in its place.

A version's folder holds all that belongs to it, its labels and a copy of its config.pbtxt included, and SHA256SUMS
names every file. So whatever config.pbtxt is in place, its digest is in the version that it serves. The
model's own labels.txt is a copy for people and their tools, as the layout promises it; Triton reads the version's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from temper.builder.contract import CARD_FILE, CONFIG_FILE, DIGESTS_FILE, LABELS_FILE, VERDICT_FILE
from temper.builder.errors import PublishError
from temper.builder.names import is_model_name, is_printable, render_labels
from temper.builder.publish.plans import Binding, Plan, carried_plans, plan_name, runtime_of
from temper.builder.publish.switch import opened, spared_versions
from temper.builder.publish.triton_config import TritonConfig, render_config
from temper.builder.publish.versions import (
    can_be_served,
    newest_in,
    remove_versions,
    same_content,
    serve_version,
    served_version,
)
from temper.builder.store.files import describe_os_error, fsync_path, fsync_tree, sha256_file


@dataclass(frozen=True)
class Published:
    """One version of one model in the repository."""

    model: str
    """Triton's model name."""
    version: int
    """The version that was published."""
    path: Path
    """The version's folder."""
    reused: bool
    """True when the newest version already was exactly this."""
    served: int
    """The version that config.pbtxt names; another one makes this one a candidate."""
    stuck: tuple[str, ...] = ()
    """Older versions that were to be removed and could not be, each with the reason; they do no harm."""

    @property
    def note(self) -> str:
        """Says in one line what was published."""
        role = "" if self.is_served else f", a candidate: version {self.served} is served"
        return "; ".join([f"{self.model} version {self.version}{role}", *self.stuck])

    @property
    def is_served(self) -> bool:
        """Whether it is served; a candidate is not."""
        return self.version == self.served


@dataclass(frozen=True)
class Entry:
    """What is to be published, but for its version."""

    plans: tuple[Plan, ...]
    """The engines; none for a model that runs none."""
    labels: bytes
    """The file of class names."""
    card: dict[str, Any]
    """The provenance."""
    config: TritonConfig
    """What config.pbtxt says."""
    graph_sha256: str | None = None
    """With plans per compute capability: what they must share to be served as one version."""

    @property
    def model(self) -> str:
        """Triton's model name."""
        return self.config.name


def publish(
    repository: Path,
    config: TritonConfig,
    *,
    engine_file: Path,
    labels: Sequence[str],
    card: Mapping[str, Any],
    binding: Binding | None = None,
) -> Published:
    """Publishes an engine as the newest version of a model, atomically: a candidate, but for a model's first.

    Nothing is written when the newest version already holds the same. An older version is never changed; of the
    older ones only the newest few are kept (`serving.keep_versions`), with the served one and the one before it.
    Several publishers of one repository take turns.

    A plan that runs on one compute capability only is published with it. When the newest version holds plans of
    the same graph for others, the new version gets copies of them, so that one entry serves several types of GPU;
    those of another graph are left behind.

    Args:
        repository: The model repository; made when missing.
        config: What config.pbtxt says; the engine file's name is added to its parameters.
        engine_file: The engine, copied under its own name (model.onnx, model.rtx, model.plan), with a compute
            capability as model_sm90.plan.
        labels: One class name per output, in order.
        card: The provenance, as JSON; the engine's digest and size are added to it.
        binding: Of a plan that does not run on every GPU.

    Returns:
        The version, and which one is served.

    Raises:
        PublishError: The name, the labels or the compute capability are wrong, an ONNX file keeps weights in
            another one, a plan to be kept was changed since it was published, or the repository cannot be written.
    """
    check_names(config.name, labels, config.num_classes)
    graph_sha256 = binding.graph_sha256 if binding else None
    plan = _read_plan(engine_file, binding, card)
    _check_whole(engine_file)
    entry = Entry(
        plans=(plan,),
        labels=render_labels(labels),
        card={
            "model": config.name,
            **card,
            **({"graph_sha256": graph_sha256} if graph_sha256 else {}),
            "engine_file": {"name": plan.name, "sha256": plan.sha256, "size_bytes": plan.size_bytes},
        },
        config=replace(config, parameters={"file": plan.name, **config.parameters}),
        graph_sha256=graph_sha256,
    )
    return publish_entry(repository, entry)


def publish_entry(repository: Path, entry: Entry) -> Published:
    """Publishes one entry as the newest version of its model, atomically, as `publish` does.

    Raises:
        PublishError: The repository cannot be written.
    """
    try:
        # Resolved, so that publishers that reach it by different links share one lock.
        return _publish(repository.resolve(), entry)
    except OSError as error:
        raise PublishError(
            f"model {entry.model}: cannot publish into {repository}: {describe_os_error(error)}"
        ) from error


def remove_entry(repository: Path, model: str) -> None:
    """Removes a model, in one rename; what a kill leaves of it is in the work folder. One that is gone is fine.

    Raises:
        PublishError: It cannot be removed.
    """
    try:
        repository = repository.resolve()
        with opened(repository) as work:
            if (repository / model).exists():
                os.rename(repository / model, work / model)
                fsync_path(repository)
    except OSError as error:
        raise PublishError(
            f"model {model}: cannot be removed from {repository}: {describe_os_error(error)}"
        ) from error


def _read_plan(engine_file: Path, binding: Binding | None, card: Mapping[str, Any]) -> Plan:
    capability = binding.compute_capability if binding else None
    name = plan_name(engine_file, capability)
    try:
        return Plan(
            name=name,
            source=engine_file,
            sha256=sha256_file(engine_file),
            size_bytes=engine_file.stat().st_size,
            compute_capability=capability,
            gpu=binding.gpu if binding else None,
            runtime=runtime_of(card),
        )
    except OSError as error:
        raise PublishError(f"engine {engine_file}: cannot be read: {describe_os_error(error)}") from error


def _check_whole(engine_file: Path) -> None:
    """Refuses weights outside of an ONNX file, which would be published without a digest, or not at all."""
    from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]  # ships none
    from onnx import ModelProto, TensorProto

    def is_whole(message: Message) -> bool:
        if isinstance(message, TensorProto) and (message.external_data or message.data_location):
            return False
        fields = (value for field, value in message.ListFields() if field.message_type is not None)
        return all(
            is_whole(each) for value in fields for each in ([value] if isinstance(value, Message) else value)
        )

    try:
        model = ModelProto.FromString(engine_file.read_bytes())
    except DecodeError:
        return  # an engine of another kind; of one that reads ONNX the server says what it is instead
    if not is_whole(model):
        raise PublishError(f"engine {engine_file}: keeps weights in another file; export one file")


def check_names(model: str, labels: Sequence[str], num_classes: int) -> None:
    """Checks a model's name, and that there is one printable label per class.

    Raises:
        PublishError: One of them is wrong.
    """
    if not is_model_name(model):
        raise PublishError(
            f"model name: got {model!r}, expected up to 220 letters, digits, '_', '.', '-'; rename it"
        )
    if len(labels) != num_classes:
        raise PublishError(
            f"model {model}: got {len(labels)} labels, expected one for each of {num_classes} classes"
        )
    for label in labels:
        if not label.strip() or not is_printable(label):
            raise PublishError(f"model {model}: got the label {label!r}, expected one line of printable text")


def _publish(repository: Path, entry: Entry) -> Published:
    repository.mkdir(parents=True, exist_ok=True)
    with opened(repository) as work:
        if not (repository / entry.model).exists():
            return _add_model(repository, entry, work)
        return _add_version(repository / entry.model, entry, work)


def _add_model(repository: Path, entry: Entry, work: Path) -> Published:
    entry = _completed(entry, None)
    folder = work / entry.model
    texts = _render_texts(entry, 1)
    _write_version(folder / "1", entry, texts)
    for name in (CONFIG_FILE, LABELS_FILE):
        (folder / name).write_bytes(texts[name])
    fsync_tree(folder)
    os.rename(folder, repository / entry.model)
    fsync_path(repository)
    return Published(model=entry.model, version=1, path=repository / entry.model / "1", reused=False, served=1)


def _add_version(model: Path, entry: Entry, work: Path) -> Published:
    newest = newest_in(model)
    entry = _completed(entry, model / str(newest) if newest > 0 else None)
    reused = newest > 0 and _holds(model / str(newest), entry, _render_texts(entry, newest))
    version = newest if reused else newest + 1
    if not reused:
        _write_version(work / str(version), entry, _render_texts(entry, version))
        fsync_tree(work / str(version))
        os.rename(work / str(version), model / str(version))
        fsync_path(model)
    served = served_version(model)
    if served is None:  # somebody removed it, or wrote a config.pbtxt
        served = newest if can_be_served(model, newest) else version
    if can_be_served(model, served):  # what somebody changed is put back
        serve_version(model, served, work)
    spared = {version, *spared_versions(model.parent, model.name)}
    _, stuck = remove_versions(model, entry.config.serving.keep_versions, spared, work)
    return Published(
        model=entry.model,
        version=version,
        path=model / str(version),
        reused=reused,
        served=served,
        stuck=tuple(stuck),
    )


def _completed(entry: Entry, newest: Path | None) -> Entry:
    """Returns the entry with the plans that it takes over from the newest version, named in config and card."""
    own = [plan for plan in entry.plans if plan.compute_capability is not None]
    if not own:
        return entry
    kept = carried_plans(newest, entry.graph_sha256, [plan.name for plan in own]) if newest is not None else []
    plans = sorted([*entry.plans, *kept], key=lambda plan: plan.name)
    filenames = {plan.compute_capability: plan.name for plan in plans if plan.compute_capability is not None}
    return replace(
        entry,
        plans=tuple(plans),
        card={**entry.card, "plans": [plan.as_json() for plan in plans]},
        config=replace(entry.config, cc_model_filenames=filenames),
    )


def _render_texts(entry: Entry, version: int) -> dict[str, bytes]:
    """Returns the version's files but for the engines; SHA256SUMS is what `sha256sum --check` reads."""
    how = entry.config.preprocessing
    card = entry.card if how is None else {**entry.card, "preprocessing": asdict(how)}
    texts = {
        CARD_FILE: (json.dumps(card, indent=1, default=str) + "\n").encode(),
        CONFIG_FILE: render_config(entry.config, version=version, label_filename=f"{version}/{LABELS_FILE}"),
        LABELS_FILE: entry.labels,
    }
    lines = [(plan.sha256, plan.name) for plan in entry.plans]
    lines += [(hashlib.sha256(content).hexdigest(), name) for name, content in texts.items()]
    return {**texts, DIGESTS_FILE: "".join(f"{digest}  {name}\n" for digest, name in lines).encode()}


def _write_version(folder: Path, entry: Entry, texts: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for plan in entry.plans:
        # A copy, never a link: a later change of the build's own file must not reach the served one.
        shutil.copyfile(plan.source, folder / plan.name)
        if sha256_file(folder / plan.name) != plan.sha256:
            raise PublishError(f"engine {plan.source}: changed while it was published; run it again")
    for name, content in texts.items():
        (folder / name).write_bytes(content)


def _holds(version: Path, entry: Entry, texts: Mapping[str, bytes]) -> bool:
    """Returns True when the version's files are whole and hold the same, with at most a verdict beside them."""
    names = {*texts, *(plan.name for plan in entry.plans)}
    if not version.is_dir() or {path.name for path in version.iterdir()} - {VERDICT_FILE} != names:
        return False
    return all(same_content(version / name, content) for name, content in texts.items()) and all(
        (version / plan.name).is_file() and sha256_file(version / plan.name) == plan.sha256 for plan in entry.plans
    )
