"""`temper load`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from temper.cli.inputs import load_encoded, load_images, random_images
from temper.client.client import Client
from temper.client.errors import ClientError
from temper.client.images import JPEG_SUFFIX
from temper.client.load import POOL_REQUESTS, LoadConfig, LoadResult, plan_runs, run_closed_loop, run_open_loop
from temper.client.protocol import Payload
from temper.errors import TemperError
from temper.progress import Display
from temper.report.text import number, percent
from temper.serve.endpoint import Endpoint
from temper.terminal import echo, escape

_HEAD = (
    "load",
    "images/s",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "p99.9 ms",
    "queue ms",
    "infer ms",
    "shed",
    "errors",
    "lost",
)
_WIDTHS = (24, 10, 8, 8, 8, 9, 9, 9, 14, 8, 6)
_SHED = (
    "shed: refused by the server because of its load; images/s and latencies are those of the answered requests"
)


class LoadError(TemperError):
    """A load test was cut short, or not one request was answered."""


class _CutShort(TemperError):  # noqa: N818 - says what happened
    """A run that the server's death, or a load process's, cut short; what it measured is in `result`."""

    def __init__(self, result: LoadResult) -> None:
        super().__init__(result.interrupted)
        self.result = result


def load_command(
    images: Sequence[Path],
    *,
    settings: Mapping[str, Any],
    model: str,
    url: str | None,
    repository: Path,
    as_json: bool,
    encoded: bool = False,
) -> None:
    """Runs the load tests and prints a row as each ends; `encoded` asks the model's twin that takes image files.

    Raises:
        LoadError: The server died, or nothing was answered; the rows until then are printed.
    """
    try:
        config = LoadConfig(**settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    model = _asked(model, images, encoded=encoded)
    results: list[LoadResult] = []
    with Display() as display, Endpoint(url, repository, models=[model], display=display) as endpoint:
        pixels = endpoint.retrying(model, lambda url: _images(images, url, model, config, display))
        if not as_json:
            echo(_row(_HEAD))
        try:
            for result in _runs(endpoint, model, pixels, config, results, display):
                if result.version != results[0].version:
                    raise LoadError(
                        f"model {model}: version {results[0].version} was replaced by {result.version} "
                        "between two runs; their figures are not comparable"
                    )
                if not as_json:
                    echo(_row(_cells(result)))
        except ClientError as error:
            raise LoadError(endpoint.why(error)) from error
        finally:
            if as_json:
                echo(json.dumps([result.to_json() for result in results], indent=2, allow_nan=False))
            else:
                click.echo(escape("".join(f"{line}\n" for line in _notes(results))), nl=False)
        last = results[-1]
        if last.interrupted is not None:
            # The generator keeps Ctrl-C to itself, so as to return what it measured.
            by_user = last.stopped_by_user
            raise KeyboardInterrupt(last.interrupted) if by_user else LoadError(endpoint.why(last.interrupted))
    reasons = [reason for result in results if (reason := result.why_unanswered())]
    if len(reasons) == len(results):
        raise LoadError(reasons[-1])


def _asked(model: str, images: Sequence[Path], *, encoded: bool) -> str:
    """The model to ask; what it lacks is said before a server is started."""
    if encoded and not images:
        raise click.UsageError("--encoded: sends image files, expected --images with some; none are made up")
    return model.removesuffix(JPEG_SUFFIX) + JPEG_SUFFIX if encoded else model


def _images(paths: Sequence[Path], url: str, model: str, config: LoadConfig, display: Display) -> Payload:
    """What is sent: the first images given, as many as are ever sent, as files or pixels; or random pixels."""
    count = POOL_REQUESTS * config.batch_size
    with Client(url, timeout_s=config.timeout_s) as client:
        info = client.model_info(model)
    if info.takes_encoded:
        return load_encoded(paths, info, count, display.say)
    if paths:
        return load_images(paths, info, count, display.say)
    display.say(f"no --images: sending random pixels of shape {list(info.image_shape)}")
    return random_images(info, count)


def _runs(
    endpoint: Endpoint,
    model: str,
    images: Payload,
    config: LoadConfig,
    results: list[LoadResult],
    display: Display,
) -> Iterator[LoadResult]:
    """Yields each run of the plan and keeps it in `results`; an interrupted one is the last."""
    run: Callable[..., LoadResult]
    for concurrency, rate_rps in plan_runs(config, results):
        if concurrency:
            label, run = f"closed loop, {concurrency} in flight", partial(run_closed_loop, concurrency=concurrency)
        else:
            label, run = f"open loop, {rate_rps:.1f} requests/s", partial(run_open_loop, rate_rps=rate_rps)
        result = _run(endpoint, label, partial(run, model=model, images=images, config=config), display)
        results.append(result)
        yield result
        if result.interrupted is not None:
            return


def _run(endpoint: Endpoint, label: str, run: Callable[..., LoadResult], display: Display) -> LoadResult:
    """Makes one run, and makes it anew when the embedded server died."""

    def measure(url: str) -> LoadResult:
        with display.stage(label) as stage:
            result = run(url, progress=stage)
            if result.interrupted is not None and not result.stopped_by_user:
                raise _CutShort(result)
        return result

    try:
        return endpoint.retrying(label, measure)
    except _CutShort as stopped:
        return stopped.result


def _notes(results: Sequence[LoadResult]) -> Iterator[str]:
    """What the table's figures leave open: the errors by kind, a row without an answer, and what was shed."""
    for result in results:
        reason = result.why_unanswered() if result.interrupted is None else None
        if reason is None and result.errors:
            reason = f"errors: {result.say_errors()}"
        if reason is not None:
            yield f"{_load(result)}: {reason}"
    if any(result.shed for result in results):
        yield _SHED


def _load(result: LoadResult) -> str:
    closed = result.mode == "closed"
    return f"closed, {result.concurrency} in flight" if closed else f"open, {result.rate_rps:.1f} requests/s"


def _cells(result: LoadResult) -> list[str]:
    server = result.server or {}
    latencies = (result.latency_ms.get(name) for name in ("p50", "p90", "p99", "p999"))
    times = (server.get(name) for name in ("queue_ms", "compute_infer_ms"))
    shown = ["\N{EN DASH}" if value is None else number(value) for value in (*latencies, *times)]
    shed = f"{result.shed:,} ({percent(result.shed_share)})" if result.shed else "0"
    return [_load(result), number(result.throughput_ips), *shown, shed, str(result.num_errors), str(result.lost)]


def _row(cells: Sequence[str]) -> str:
    first, *others = zip(cells, _WIDTHS, strict=True)
    return f"{first[0]:<{first[1]}}" + "".join(f"{cell:>{width}}" for cell, width in others)
