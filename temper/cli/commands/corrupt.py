"""`temper corrupt`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from temper.cli.target import JudgeError, Target, judge, say_kinds, say_share
from temper.client.corruptions import (
    CorruptionComparison,
    CorruptionResult,
    CorruptionsConfig,
    compare_corruptions,
    evaluate_corruptions,
)
from temper.client.corruptions.compare import check_alike
from temper.client.corruptions.result import Vectors
from temper.client.model import ModelInfo
from temper.client.robustness.checkpoint import FILE_NAME
from temper.client.stats import Estimate
from temper.progress import Stage
from temper.report.text import percent, points
from temper.terminal import echo


def corrupt_command(
    images: Path,
    labels: Path | None,
    *,
    settings: Mapping[str, Any],
    model: str,
    url: str | None,
    repository: Path,
    runs: Path,
    save: Path | None,
    against: Path | None,
    as_json: bool,
) -> None:
    """Measures a served model on corrupted images and prints its accuracy by kind and severity.

    What was finished of a measurement that ends early is kept in `save`, or else under `runs`, and the same
    command goes on from it.

    Raises:
        JudgeError: More images are asked for than there are, `against` is of other images or holds nothing, `save`
            belongs to another measurement, or the server failed.
        ClientError: The extra `corruptions` is not installed.
    """
    try:
        config = CorruptionsConfig(**{name: value for name, value in settings.items() if value is not None})
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    baseline = _load_baseline(against, config) if against else None

    def run(url: str, target: Target, progress: Stage) -> CorruptionResult:
        return evaluate_corruptions(
            url,
            model,
            target.tree.images,
            target.tree.labels,
            config,
            progress,
            checkpoint=save / FILE_NAME if save else None,
            checkpoints=runs / "corruptions",
            identity=target.identity,
            say=target.say,
            version=target.info.version,
        )

    label = f"corruptions on {model}"
    result, target = judge(run, images, labels, label=label, model=model, url=url, repository=repository)
    if save is not None:
        result.vectors.save(save)
    try:
        compared = compare_corruptions(baseline, result.vectors) if baseline else None
    except ValueError as error:
        raise JudgeError(f"{against}: {error}") from error
    found = {**result.to_json(), "left_out": target.tree.left_out}
    if compared is not None:
        found["against"] = compared.to_json()
    text = _text(result, target.info, compared)
    echo(json.dumps(found, indent=2, allow_nan=False) if as_json else text)


def _load_baseline(against: Path, config: CorruptionsConfig) -> Vectors:
    """What another run saved, refused before anything is measured if it cannot be compared with."""
    try:
        baseline = Vectors.load(against)
    except ValueError as error:
        raise JudgeError(str(error)) from error
    try:
        check_alike(baseline, config.kinds, config.severities)
    except ValueError as error:
        raise JudgeError(f"{against}: {error}") from error
    return baseline


def _text(result: CorruptionResult, info: ModelInfo, compared: CorruptionComparison | None) -> str:
    vectors, found = result.vectors, result.to_json()
    lines = [
        f"{len(vectors.kinds)} kinds of corruption, severities {', '.join(map(str, vectors.severities))}, "
        f"on {info.name} version {info.version}",
        f"accuracy without corruption  {say_share(found['clean_accuracy'])}  of {found['num_images']} images",
        f"accuracy with corruption     {say_share(found['accuracy'])}",
        f"images                       {vectors.correct.size:,} in all, {result.images_per_s:,.0f} per second",
    ]
    lines += [f"no score                     {say_kinds(result.errors)} images, wrong"] if result.errors else []
    lines += [f"sent again                   {say_kinds(result.retries)} requests"] if result.retries else []
    if compared is not None:
        change = compared.difference
        lines += [
            f"change of accuracy           {points(change['value'], change['low'], change['high'])}",
            f"mean corruption error        {_error(compared.mce)}{_left_out(compared)}",
            f"relative mCE                 {_error(compared.relative_mce)}",
        ]
    width = max(map(len, vectors.kinds))
    lines += ["", f"{'accuracy at severity':<{width}}{''.join(f'{level:>9}' for level in vectors.severities)}"]
    for kind, accuracies in zip(vectors.kinds, vectors.correct.mean(axis=2), strict=True):
        lines.append(f"{kind:<{width}} {''.join(f'{percent(value):>9}' for value in accuracies)}".rstrip())
    return "\n".join(lines)


def _left_out(compared: CorruptionComparison) -> str:
    without = [kind for kind, error in compared.corruption_errors.items() if error is None]
    return f", without {', '.join(without)}, where the baseline makes no error" if without and compared.mce else ""


def _error(found: Estimate | None) -> str:
    if found is None:
        return "none: the baseline makes no error to compare with"
    return (
        f"{found['value']:.1f} % (95 % interval {found['low']:.1f} to {found['high']:.1f}), 100 is the baseline's"
    )
