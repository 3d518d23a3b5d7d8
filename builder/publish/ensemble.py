"""Ensembles: several published models answer together, with the mean of their logits.

An ensemble is two entries of the repository. `<model>` is a Triton *ensemble*: it has no engine, only steps, and
takes and answers what any of its members does. `<model>_mean` is its last step, run by the backend `temper_mean`.
Members are served as they are, in whatever version their own config.pbtxt names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from temper.builder.contract import CONFIG_FILE
from temper.builder.errors import PublishError
from temper.builder.names import render_labels
from temper.builder.publish.entry import Entry, Published, check_names, publish_entry
from temper.builder.publish.serving import ServingConfig
from temper.builder.publish.triton_config import TritonConfig, mean_name


def publish_ensemble(
    repository: Path,
    *,
    model: str,
    members: Sequence[str],
    labels: Sequence[str],
    card: Mapping[str, Any],
    image_size: int,
    num_classes: int,
    max_batch: int,
    serving: ServingConfig | None = None,
) -> Published:
    """Publishes an ensemble of published models, and the model that averages their logits.

    Both are written as `entry.publish` writes an engine: atomically, each as a new version unless the
    newest one holds the same. The mean comes first, so the ensemble never names a model that is not there.

    Args:
        repository: The model repository that holds the members.
        model: The ensemble's name; the mean's is `<model>_mean`.
        members: The names of two or more published models, each published with `in_ensemble`.
        labels: One class name per output, in order; the members' own.
        card: The provenance, as JSON; the members' names are added to it.
        image_size: Height and width of the members' input, in pixels.
        num_classes: Length of the members' output.
        max_batch: The largest batch, at most every member's.
        serving: What bounds the mean's queue; the defaults when not given.

    Returns:
        The ensemble's version served from now on.

    Raises:
        PublishError: There are fewer than two members, a member is missing, takes other images, answers other
            classes, takes smaller batches or was not published with `in_ensemble`, or the repository cannot be
            written.
    """
    check_names(model, labels, num_classes)
    if len(set(members)) < 2 or len(set(members)) != len(members):
        raise PublishError(f"ensemble {model}: got the members {list(members)}, expected two or more, each once")
    wanted = (image_size, num_classes, max_batch)
    weight_bits = max(_check_member(repository, model, member, wanted) for member in members)
    text = render_labels(labels)
    ensemble = TritonConfig(
        name=model,
        server_backend="ensemble",
        image_size=image_size,
        num_classes=num_classes,
        max_batch=max_batch,
        # A client asks the ensemble, and int8 saturates in any of its members.
        parameters={"int8_weight_bits": weight_bits} if weight_bits else {},
        members=tuple(members),
        serving=serving or ServingConfig(),
        in_ensemble=True,
    )
    mean = replace(ensemble, name=mean_name(model), server_backend="temper_mean", parameters={})
    about = {"members": list(members), **card}
    publish_entry(repository, Entry(plans=(), labels=text, card={"model": mean.name, **about}, config=mean))
    return publish_entry(repository, Entry(plans=(), labels=text, card={"model": model, **about}, config=ensemble))


def _check_member(repository: Path, model: str, member: str, wanted: tuple[int, int, int]) -> str:
    """Compares a member's config.pbtxt with the ensemble's; Triton's own words for it name no member.

    Returns:
        The bits of its int8 weights, "7" or "8"; empty when it is not int8 or no CPU runs it.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
    from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships none

    path = repository / member / CONFIG_FILE
    try:
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise PublishError(
            f"ensemble {model}: its member {member} is not a model of {repository}; publish it first, or "
            "choose another"
        ) from error
    image_size, num_classes, max_batch = wanted
    images, logits = ([size for tensor in each for size in tensor.dims] for each in (config.input, config.output))
    found = (images[:1], logits)
    if found != ([image_size], [num_classes]):
        raise PublishError(
            f"ensemble {model}: its member {member} takes images of {found[0]} pixels and answers {found[1]} "
            f"classes, expected [{image_size}] and [{num_classes}]; choose members of one recipe"
        )
    if config.max_batch_size < max_batch:
        raise PublishError(
            f"ensemble {model}: its member {member} takes batches of up to {config.max_batch_size}, expected "
            f"{max_batch}; lower max_batch to that"
        )
    if config.dynamic_batching.default_queue_policy.max_queue_size > 0:
        raise PublishError(
            f"ensemble {model}: its member {member} bounds its queue by number, and tritonserver dies when a step "
            "of an ensemble is refused so; publish it again with in_ensemble"
        )
    bits: str = config.parameters["int8_weight_bits"].string_value
    return bits
