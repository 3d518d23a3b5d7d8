"""Ensembles: published models behind something or together: a decoder, a defence, the mean of their logits.

An ensemble is several entries of the repository. `<model>` is a Triton *ensemble*: it has no engine, only steps,
and takes and answers what any of its members does. `<model>_mean` is its last step, run by the backend
`temper_mean`, where it has several members; `<model>_defence` its first, run by `temper_defence`, where it has a
defence. `<model>_jpeg` is an ensemble of one model, and `<model>_jpeg_decode` its first step, run by
`temper_decode`. Members are served as they are, in whatever version their own config.pbtxt names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from temper.builder.contract import CONFIG_FILE
from temper.builder.errors import PublishError
from temper.builder.names import render_labels
from temper.builder.publish.entry import Entry, Published, check_names, publish_entry, remove_entry
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
from temper.imaging.preprocess import Preprocessing, sides


def publish_ensemble(
    repository: Path, config: TritonConfig, *, labels: Sequence[str], card: Mapping[str, Any]
) -> Published:
    """Publishes an ensemble of published models, and the models that defend them and average their logits.

    All are written as `entry.publish` writes an engine: atomically, each as a new version unless the
    newest one holds the same. The ensemble comes last, so it never names a model that is not there.

    Args:
        repository: The model repository that holds the members.
        config: With an `EnsembleBackend`, whose members are published, each with `in_ensemble`.
        labels: One class name per output, in order; the members' own.
        card: The provenance, as JSON; the members' names and the defences are added to it.

    Returns:
        The ensemble's version served from now on.

    Raises:
        PublishError: There are fewer than two members, or none behind a decoder or a defence, a member is missing,
            takes other images, answers other classes, takes smaller batches or was not published with
            `in_ensemble`, or the repository cannot be written.
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
        The ensemble's version served from now on.

    Raises:
        PublishError: As `publish_ensemble`.
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
    ensemble, step = (_read_config(repository / name) for name in (jpeg, decoder))
    gone = []
    if ensemble is not None and [one.model_name for one in ensemble.ensemble_scheduling.step] == [decoder, model]:
        gone.append(jpeg)
    if step is not None and step.backend == DecodeBackend.name and (gone or not (repository / jpeg).exists()):
        gone.append(decoder)  # nobody's step any more
    for name in gone:
        remove_entry(repository, name)
    return gone


def _read_config(model: Path) -> Any | None:
    """Reads a model's config.pbtxt; None when there is none, or it is none."""
    from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
    from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships none

    try:
        return text_format.Parse((model / CONFIG_FILE).read_text(), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError):
        return None


def _check_member(repository: Path, wanted: TritonConfig, member: str) -> str:
    """Compares a member's config.pbtxt with the ensemble's; Triton's own words for it name no member.

    Returns:
        The bits of its int8 weights, "7" or "8"; empty when it is not int8 or no CPU runs it.
    """
    config, about = _read_config(repository / member), f"ensemble {wanted.name}: its member {member}"
    if config is None:
        raise PublishError(f"{about} is not a model of {repository}; publish it first, or choose another")
    images, logits = ([size for tensor in each for size in tensor.dims] for each in (config.input, config.output))
    if (images, logits) != (wanted.image_dims, [wanted.num_classes]):
        raise PublishError(
            f"{about} takes images of {images[:2]} pixels and answers {logits} classes, expected "
            f"{wanted.image_dims[:2]} and [{wanted.num_classes}]; choose members of one recipe"
        )
    if config.max_batch_size < wanted.max_batch:
        raise PublishError(
            f"{about} takes batches of up to {config.max_batch_size}, expected "
            f"{wanted.max_batch}; lower max_batch to that"
        )
    if config.dynamic_batching.default_queue_policy.max_queue_size > 0:
        raise PublishError(
            f"{about} bounds its queue by number, and tritonserver dies when a step "
            "of an ensemble is refused so; publish it again with in_ensemble"
        )
    bits: str = config.parameters["int8_weight_bits"].string_value
    return bits
