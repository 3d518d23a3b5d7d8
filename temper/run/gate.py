"""Judges a run's variants by what was measured of each and of what it is held against."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.contract import CARD_FILE, TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.store.artifacts import Artifact
from temper.builder.store.files import sha256_file
from temper.client.load import RaceConfig
from temper.errors import RecipeError
from temper.gate.config import SERVED, GateConfig
from temper.gate.decide import decide
from temper.gate.evidence import Answers, Evidence
from temper.gate.seal import side_of, write_verdict
from temper.host.machine import commit, machine, versions
from temper.imaging.errors import show
from temper.report.model import Variant
from temper.report.verdict import Side, Verdict
from temper.run.measure import ANSWERS_FILE, CONFIDENCE_FILE, SAME_FILE, Measurements, Subject, subject
from temper.run.recipe import read_toml
from temper.run.recipe_errors import format_errors
from temper.run.worst_case import with_worst_case, withstood

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from temper.builder.built import Built

_CONCURRENCY = 16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run measured, by the variant's name."""

    variants: Mapping[str, Variant]
    """Their figures."""
    accuracies: Mapping[str, Artifact]
    """The stages of their accuracy."""
    attacks: Mapping[str, Sequence[Artifact]]
    """The stages of their attacks."""
    parities: Mapping[str, Artifact]
    """The stages of their agreement with the network before compression."""


@dataclass(frozen=True, kw_only=True)
class _Contender:
    """A variant, or the version that is served today."""

    subject: Subject
    variant: Variant
    accuracy: Artifact
    attacks: Sequence[Artifact] = ()
    parity: Artifact | None = None


def read_gate(texts: Sequence[str], file: Path | None) -> GateConfig:
    """Reads rules that no recipe holds.

    Args:
        texts: As "accuracy.max_drop=0.5"; they win over those of the file.
        file: A TOML file with a table `[gate]`.

    Raises:
        RecipeError: They cannot be read, or there are none.
    """
    from pydantic import TypeAdapter, ValidationError

    content = {} if file is None else read_toml(file).get("gate", {})
    if not isinstance(content, dict):
        raise RecipeError(f"--rules: gate: got {type(content).__name__}, expected one table [gate]")
    for text in texts:
        match = re.fullmatch(r"([a-z_]+)(?:\.([a-z0-9_]+))?=(.+)", text, re.DOTALL)
        if match is None:
            raise RecipeError(f"--rule {show(text)}: expected RULE.LIMIT=VALUE, as accuracy.max_drop=0.5")
        rule, limit, value = match.groups()
        place = content if limit is None else content.setdefault(rule, {})
        if not isinstance(place, dict):
            raise RecipeError(
                f"--rule {show(text)}: {rule} is {show(str(place))} already, expected one or the other"
            )
        place[limit or rule] = _value(value)
    try:
        return TypeAdapter(GateConfig).validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        lines = format_errors(error.errors(include_url=False), GateConfig)
        raise RecipeError("\n".join(f"gate: {line}" for line in lines)) from None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a word, as of a name


def race_of(config: GateConfig) -> RaceConfig | None:
    """How two models are loaded in turns for a gate's rules; None where no rule is on speed."""
    if config.throughput is None and config.latency is None:
        return None
    return RaceConfig(
        rounds=config.rounds,
        duration_s=config.duration_s,
        concurrency=None if config.throughput is None else _CONCURRENCY,
        rate_rps=None if config.latency is None else config.latency.rate,
    )


def judge_run(
    config: GateConfig,
    built: Sequence[Built],
    measured: Measured,
    measurements: Measurements,
    *,
    today: Measurements,
    key: Ed25519PrivateKey | None,
) -> Iterator[tuple[Built, Verdict]]:
    """Yields a verdict on every variant but what it is held against; it lies beside the engine by then.

    Args:
        config: The rules.
        built: The variants.
        measured: What was measured of them.
        measurements: Measures what the rules on speed ask for.
        today: Measures what is served today, where they are held against that.
        key: Signs the verdicts.

    Raises:
        TemperError: Something cannot be measured, or verdict.json not be written.
    """
    for one in built:
        other = today if config.against == SERVED else measurements
        if (reference := _reference(config, one, built, measured, other)) is not None:
            verdict = _judge(config, _contender(one, measured, measurements), reference, measurements, other)
            yield one, write_verdict(one.path, verdict, key)


def _contender(one: Built, measured: Measured, measurements: Measurements) -> _Contender:
    name, attacks = one.variant, measured.attacks.get(one.variant, ())
    labels = measurements.test_images()[1]
    return _Contender(
        subject=subject(name, one.model, one.version, one.path),
        variant=with_worst_case(measured.variants[name], attacks, labels, measurements.class_names()),
        accuracy=measured.accuracies[name],
        attacks=attacks,
        parity=measured.parities.get(name),
    )


def _reference(
    config: GateConfig, one: Built, built: Sequence[Built], measured: Measured, measurements: Measurements
) -> _Contender | None:
    """What a variant is held against; None of what is held against nothing."""
    if config.against != SERVED:
        name = config.against or built[0].variant
        other = next(each for each in built if each.variant == name)
        return None if other is one else _contender(other, measured, measurements)
    if one.served == one.version:
        return None
    path = one.path.with_name(str(one.served))
    served = subject(f"{one.variant} as served", one.model, one.served, path)
    figures = replace(measured.variants[one.variant], size_bytes=size_in(path) or 0)
    return _Contender(subject=served, variant=figures, accuracy=measurements.accuracy(served))


def _judge(
    config: GateConfig,
    candidate: _Contender,
    reference: _Contender,
    measurements: Measurements,
    other: Measurements,
) -> Verdict:
    found: dict[str, Any] = {}
    if (settings := race_of(config)) is not None:
        found = raced(measurements.race(reference.subject, candidate.subject, settings, other).info)
    if candidate.parity is not None:
        found["same_as_torch"] = np.load(candidate.parity.path / SAME_FILE)
    _, labels = measurements.test_images()
    evidence = Evidence(
        class_names=measurements.class_names(),
        labels=labels,
        reference=_answers(reference.accuracy),
        candidate=_answers(candidate.accuracy),
        attacked=tuple(withstood(reference.attacks, candidate.attacks, (reference.variant, candidate.variant))),
        size_bytes=(reference.variant.size_bytes, candidate.variant.size_bytes),
        **found,
    )
    data = measurements.data.path
    return give_verdict(
        config,
        evidence,
        candidate=side_in(candidate.subject.artifact.path),
        reference=side_in(reference.subject.artifact.path),
        data_sha256=digest_of(data / TEST_IMAGES_FILE, data / TEST_LABELS_FILE),
        server=measurements.endpoint.description,
    )


def raced(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a race says to the rules, as fields of the evidence."""
    found: dict[str, Any] = {
        "throughput_ips": [tuple(pair) for pair in info["throughput_ips"]],
        "p99_ms": info["p99_ms"],
        "latency_note": info["open_trouble"],
    }
    if (trouble := info["closed_trouble"]) is not None:
        found["missing"] = {"throughput": trouble}
    return found


def give_verdict(
    config: GateConfig,
    evidence: Evidence,
    *,
    candidate: Side,
    reference: Side,
    data_sha256: str | None,
    server: str,
) -> Verdict:
    """Decides, and writes down about what, on what and where."""
    answer, findings, correction = decide(config, evidence)
    candidate, reference = (
        replace(one, accuracy=float((answers.classes == evidence.labels).mean()) if len(evidence.labels) else None)
        for one, answers in ((candidate, evidence.candidate), (reference, evidence.reference))
    )
    here = machine()
    return Verdict(
        answer=answer,
        candidate=candidate,
        reference=reference,
        findings=findings,
        confidence=config.confidence,
        correction=correction,
        config=dataclasses.asdict(config),
        data_sha256=data_sha256,
        num_images=len(evidence.labels),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        server=server,
        machine=here["gpu"]["name"] if here["gpu"] else here["cpu"],
        versions=versions(),
        commit=commit(),
    )


def side_in(folder: Path) -> Side:
    """Names the version in a folder by its digests; of several engines, the one that its card is of.

    Raises:
        GateError: A file is not what was published.
    """
    return side_of(folder, engine=_engine_file(folder).get("name"))


def size_in(folder: Path) -> int | None:
    """The size of a version's engine in bytes, as its card says; None when it does not."""
    size = _engine_file(folder).get("size_bytes")
    return size if isinstance(size, int) else None


def _engine_file(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CARD_FILE).read_bytes())["engine_file"]
    except (OSError, ValueError, LookupError, TypeError):  # provenance alone, and an ensemble has none
        return {}
    return found if isinstance(found, dict) else {}


def digest_of(*files: Path) -> str:
    """SHA-256 over the digests of some files: what was asked about."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(sha256_file(file).encode())
    return digest.hexdigest()


def _answers(accuracy: Artifact) -> Answers:
    confidence = accuracy.path / CONFIDENCE_FILE
    return Answers(
        classes=np.load(accuracy.path / ANSWERS_FILE),
        confidence=np.load(confidence) if confidence.is_file() else None,
    )
