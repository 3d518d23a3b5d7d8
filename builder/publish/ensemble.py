"""Ensembles: published models behind something or together: a decoder, a defence, the mean of their logits.

An ensemble is several entries of the repository. `<model>` is a Triton *ensemble*: it has no engine, only steps,
and takes and answers what any of its members does. `<model>_mean` is its last step, run by the backend
`temper_mean`, where it has several members; `<model>_defence` its first, run by `temper_defence`, where it has a
defence. `<model>_jpeg` is an ensemble of one model, and `<model>_jpeg_decode` its first step, run by
`temper_decode`. Members are served as they are, in whatever version their own config.pbtxt names; each of these
entries is a candidate of its own, and `switch.py` switches a model with those that have its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from temper.builder.contract import CONFIG_FILE, INPUT_NAME
from temper.builder.errors import PublishError
from temper.builder.names import render_labels
from temper.builder.publish.entry import Entry, Published, check_names, publish_entry, remove_entry
from temper.builder.publish.switch import companions_of, steps_of
from temper.builder.publish.triton_config import (
    DecodeBackend,
    DefenceBackend,
    EnsembleBackend,
    MeanBackend,
    TritonConfig,
    decode_name,
    defence_name,
    jpeg_name,
    mean_name,
)
from temper.builder.publish.versions import newest_in, read_config, served_version
from temper.imaging.preprocess import PREPROCESSING, Preprocessing, sides


class NotYetError(PublishError):
    """A new ensemble would be served at once, on top of a member whose served version it does not fit."""


def publish_ensemble(
    repository: Path, config: TritonConfig, *, labels: Sequence[str], card: Mapping[str, Any]
) -> Published:
    """Publishes an ensemble of published models, and the models that defend them and average their logits.

    All are written as `entry.publish` writes an engine: atomically, each as a new version unless the
    newest one holds the same, a candidate but for its first. The ensemble comes last, so it never names a model
    that is not there. It is held against its members' newest versions, which are candidates as it is; a new one,
    which is served at once, also against the served ones.

    Args:
        repository: The model repository that holds the members.
        config: With an `EnsembleBackend`, whose members are published, each with `in_ensemble`.
        labels: One class name per output, in order; the members' own.
        card: The provenance, as JSON; the members' names and the defences are added to it.

    Returns:
        The ensemble's version, and which one is served.

    Raises:
        PublishError: There are fewer than two members, or none behind a decoder or a defence, a member is missing,
            takes other images, answers other classes, takes smaller batches or was not published with
            `in_ensemble`, or the repository cannot be written.
        NotYetError: The ensemble is new, and a member does not fit it as it is served.
    """
    assert isinstance(config.backend, EnsembleBackend), "nothing else is an ensemble"
    members, defend, decode = config.backend.members, config.backend.defend, config.backend.decode
    config = replace(config, in_ensemble=True, parameters={})
    check_names(config.name, labels, config.num_classes)
    if len(set(members)) < (1 if defend or decode else 2) or len(set(members)) != len(members):
        wanted = "one or more" if defend or decode else "two or more"
        raise PublishError(
            f"ensemble {config.name}: got the members {list(members)}, expected {wanted}, each once"
        )
    if not (repository / config.name).exists():
        _check_served(repository, config, members)
    weight_bits = max(_check_member(repository, config, member) for member in members)
    # A client asks the ensemble, and int8 saturates in any of its members.
    parameters = {"int8_weight_bits": weight_bits} if weight_bits else {}
    ensemble = replace(config, parameters=parameters)
    steps = []
    if decode:
        steps.append(replace(config, name=decode_name(config.name), backend=DecodeBackend()))
    if defend:
        steps.append(replace(config, name=defence_name(config.name), backend=DefenceBackend(defend=defend)))
    if len(members) > 1:
        mean = MeanBackend(num_members=len(members))
        steps.append(replace(config, name=mean_name(config.name), backend=mean))
    text, about = render_labels(labels), {"members": list(members), **card}
    if defend:
        about["defend"] = [one.to_json() for one in defend]
    entries = (
        Entry(plans=(), labels=text, card={"model": one.name, **about}, config=one) for one in (*steps, ensemble)
    )
    return [publish_entry(repository, entry) for entry in entries][-1]


def publish_jpeg(
    repository: Path, config: TritonConfig, *, labels: Sequence[str], card: Mapping[str, Any]
) -> Published:
    """Publishes the ensemble that takes image files for a published model, and the model that decodes them.

    The decoder is each model's own, though those of a recipe share what it does: one that they shared would change
    under those of them that are not published anew.

    Args:
        repository: The model repository that holds the model.
        config: The model's own, published with `in_ensemble`; it may be an ensemble itself.
        labels: As of the model.
        card: The provenance, as JSON; the model's name is added to it.

    Returns:
        The ensemble's version, and which one is served.

    Raises:
        PublishError: As `publish_ensemble`.
        NotYetError: As `publish_ensemble`; the model's served version may make images otherwise, too.
    """
    height, width = sides(config.image_size)
    ensemble = replace(
        config,
        name=jpeg_name(config.name),
        backend=EnsembleBackend(members=(config.name,), decode=True),
        preprocessing=config.preprocessing or Preprocessing(height=height, width=width),
    )
    return publish_ensemble(repository, ensemble, labels=labels, card=card)


def retract_jpeg(repository: Path, model: str) -> list[str]:
    """Removes what `publish_jpeg` published for a model, if it did; the ensemble first.

    Returns:
        What was removed; an entry of that name that is another thing stays.

    Raises:
        PublishError: It cannot be removed.
    """
    jpeg = jpeg_name(model)
    decoder = decode_name(jpeg)
    step = read_config(repository / decoder / CONFIG_FILE)
    gone = []
    if steps_of(repository / jpeg) == [decoder, model]:
        gone.append(jpeg)
    if step is not None and step.backend == DecodeBackend.name and (gone or not (repository / jpeg).exists()):
        gone.append(decoder)  # nobody's step any more
    for name in gone:
        remove_entry(repository, name)
    return gone


def unfit_ensembles(repository: Path, model: str, version: int) -> list[str]:
    """Finds the served ensembles that a version of one of their members does not fit, but for its companions.

    Returns:
        A line for each, which names it and says why.
    """
    member = read_config(repository / model / str(version) / CONFIG_FILE)
    own, found = set(companions_of(repository, model, version)), []
    for folder in sorted(repository.iterdir()):
        ensemble = read_config(folder / CONFIG_FILE)
        steps = [step.model_name for step in ensemble.ensemble_scheduling.step] if ensemble is not None else []
        if member is None or ensemble is None or model not in steps or folder.name in own:
            continue
        images = next((list(given.dims) for given in ensemble.input if given.name == INPUT_NAME), None)
        misfit = _misfit(member, images, ensemble.output[0].dims[0], ensemble.max_batch_size)
        if misfit is not None:
            found.append(f"ensemble {folder.name}: its member {model} {misfit[0]}")
    return found


def _check_served(repository: Path, wanted: TritonConfig, members: Sequence[str]) -> None:
    """Compares with what is served of a new ensemble's members, but for how their queues are bounded.

    That only matters to an older tritonserver that is overloaded while somebody asks the new ensemble, before its
    members are promoted; what does not fit otherwise keeps it from being loaded.
    """
    for member in members:
        folder = repository / member
        version, config = served_version(folder), read_config(folder / CONFIG_FILE)
        if version is None or config is None or version == newest_in(folder):
            continue
        config.dynamic_batching.default_queue_policy.max_queue_size = 0
        misfit = _misfit(config, wanted.image_dims, wanted.num_classes, wanted.max_batch)
        how = config.parameters[PREPROCESSING].string_value if PREPROCESSING in config.parameters else None
        made = wanted.preprocessing and wanted.preprocessing.render()
        if misfit is None and made and how not in (None, made):
            misfit = "takes images that are made otherwise", ""
        if misfit is not None:
            raise NotYetError(
                f"ensemble {wanted.name}: is new and would be served at once, and version {version} of {member}, "
                f"which is served, {misfit[0]}; promote {member} first, then build again"
            )


def _check_member(repository: Path, wanted: TritonConfig, member: str) -> str:
    """Compares a member's newest config.pbtxt with the ensemble's; Triton's own words for it name no member.

    Returns:
        The bits of its int8 weights, "7" or "8"; empty when it is not int8 or no CPU runs it.
    """
    folder, about = repository / member, f"ensemble {wanted.name}: its member {member}"
    config = read_config(folder / str(newest_in(folder)) / CONFIG_FILE)
    if config is None:
        raise PublishError(f"{about} is not a model of {repository}; publish it first, or choose another")
    misfit = _misfit(config, wanted.image_dims, wanted.num_classes, wanted.max_batch)
    if misfit is not None:
        raise PublishError(f"{about} {'; '.join(misfit)}")
    bits: str = config.parameters["int8_weight_bits"].string_value
    return bits


def _misfit(member: Any, wanted: list[int] | None, num_classes: int, max_batch: int) -> tuple[str, str] | None:
    """Says why a member's config does not fit an ensemble, and what helps; None when it does.

    Args:
        member: The member's `inference.ModelConfig`.
        wanted: The shape of the ensemble's images; None for one that takes files.
        num_classes: The classes that it answers.
        max_batch: The largest batch that it takes.
    """
    images, logits = ([size for tensor in each for size in tensor.dims] for each in (member.input, member.output))
    if (images, logits) != (wanted or images, [num_classes]):
        return (
            f"takes images of {images[:2]} pixels and answers {logits} classes, expected "
            f"{(wanted or images)[:2]} and [{num_classes}]",
            "choose members of one recipe",
        )
    if member.max_batch_size < max_batch:
        return (
            f"takes batches of up to {member.max_batch_size}, expected {max_batch}",
            "lower max_batch to that",
        )
    if member.dynamic_batching.default_queue_policy.max_queue_size > 0:
        return (
            "bounds its queue by number, and tritonserver dies when a step of an ensemble is refused so",
            "publish it again with in_ensemble",
        )
    return None
