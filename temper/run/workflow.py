"""The main job: a recipe becomes served variants, and these become one report.

Build, serve, measure, attack, compare, report. Everything before the report is a stage that is kept, so a second
run does only what changed; with nothing changed the server is not even started. When it dies again after it was
started again, what was measured until then is reported all the same.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.build import build_variants
from temper.builder.engines.build import pick_engine
from temper.builder.engines.isa import UNKNOWN, instruction_set, why_inexact
from temper.builder.engines.kind import ENGINES
from temper.builder.engines.latency import timing_engine
from temper.builder.errors import BuilderError
from temper.builder.store.artifacts import Artifact, Store
from temper.errors import TemperError
from temper.host.machine import commit, machine, versions
from temper.progress import Display
from temper.report import write_report
from temper.run.measure import LoadStopped, Measurements, Subject, subject
from temper.run.summary import Row, add_accuracy, add_attack, add_load, compare
from temper.serve.endpoint import Endpoint

if TYPE_CHECKING:
    from temper.builder.built import Built
    from temper.run.recipe import Recipe

Report = dict[str, Any]
FORMAT = 1
SERVER_LOG = "tritonserver.log"


def run_recipe(
    recipe: Recipe,
    *,
    repository: Path,
    runs: Path,
    display: Display,
    url: str | None = None,
    folder: Path | None = None,
) -> Report:
    """Builds, serves, measures and attacks a recipe's variants and writes the report.

    Args:
        recipe: The recipe.
        repository: The model repository that the variants are published into.
        runs: The run's folder is `runs/<recipe>`: its stages, its server's log, report.json and report.html.
        display: Where progress is shown.
        url: The gRPC address of a running server that serves `repository`; None starts the embedded one.
        folder: For the report and the server's log, when they shall not lie in the run's folder.

    Returns:
        The report, JSON throughout. `stopped` is None, or says in one line why the measurements are not complete;
        `deaths` has a line for each time that the embedded server died and was started again.

    Raises:
        BuilderError: A variant cannot be built or published; nothing is reported.
        KeyboardInterrupt: After the report of what had been measured was written.
    """
    started = time.monotonic()
    stages = Store(runs / recipe.name / "stages")
    folder = folder or runs / recipe.name
    built = build_recipe(recipe, repository=repository, runs=runs, display=display)
    models = [one.model for one in built]
    endpoint = Endpoint(url, repository, models=models, log_file=folder / SERVER_LOG, display=display)
    report = _new_report(recipe, built, endpoint)
    measurements = Measurements(store=stages, endpoint=endpoint, data=built[0].data, display=display, url=url)
    targets = [subject(one.variant, one.model, one.version, one.path) for one in built]
    run = _Run(recipe, report, built, targets, measurements, folder)
    with _reporting(run, started), endpoint:
        run.measure()
    return report


def build_recipe(recipe: Recipe, *, repository: Path, runs: Path, display: Display) -> list[Built]:
    """Builds and publishes a recipe's variants; stages that are done are reused.

    Raises:
        BuilderError: A variant cannot be built or published.
    """
    return build_variants(
        recipe.name,
        data=recipe.data,
        model=recipe.model,
        train=recipe.train,
        variants=recipe.variants,
        engine=recipe.engine,
        serving=recipe.serving,
        store=Store(runs / recipe.name / "stages"),
        repository=repository,
        progress_factory=display.stage,
    )


@contextmanager
def _reporting(run: _Run, started: float) -> Iterator[None]:
    """Writes the report however the measurements end; what stops them becomes one line in it."""
    report = run.report
    try:
        yield
    except (TemperError, BuilderError) as error:
        report["stopped"] = str(error)
    except KeyboardInterrupt as stopped:
        report["stopped"] = str(stopped) or "interrupted"
        raise
    finally:
        report["comparisons"] = compare(report["variants"], run.accuracies, run.attacks)
        report["deaths"] = run.measurements.endpoint.deaths
        report["stages"] = [dataclasses.asdict(stage) for stage in run.measurements.display.finished]
        report["seconds"] = round(time.monotonic() - started, 1)
        write_report(report, run.folder)


@dataclass
class _Run:
    """The measurements of one run and where their figures go."""

    recipe: Recipe
    report: Report
    built: list[Built]
    targets: list[Subject]
    measurements: Measurements
    folder: Path
    accuracies: dict[str, Artifact] = field(default_factory=dict)
    attacks: dict[str, list[Artifact]] = field(default_factory=dict)

    def measure(self) -> None:
        """Measures everything, one thing at a time: no variant shares the machine with another's test."""
        pairs: list[tuple[Row, Subject]] = list(zip(self.report["variants"], self.targets, strict=True))
        names = self.measurements.class_names()
        self._audit()
        for row, target in pairs:
            self.accuracies[target.name] = self.measurements.accuracy(target)
            add_accuracy(row, self.accuracies[target.name], names)
        for row, target, one in zip(self.report["variants"], self.targets, self.built, strict=True):
            if row["int8"] is not None and one.snapshots:  # an ensemble has no graph
                row["int8"]["exact"] = self.measurements.agreement(target, one.snapshots[-1].graph).info
        for row, target in pairs:
            self._load(row, target)
        for config in self.recipe.attacks:
            for row, target in pairs:
                attacked = self.measurements.attack(target, config)
                self.attacks.setdefault(target.name, []).append(attacked)
                add_attack(row, attacked, names, self.folder)

    def _audit(self) -> None:
        """Measures the steps in process, before there is a server to share the machine with."""
        engine = timing_engine(pick_engine(self.recipe.engine).config)
        if engine is None:
            return
        from temper.run.steps import audit_steps

        images, labels = self.measurements.test_images()
        store, display = self.measurements.store, self.measurements.display
        for row, one in zip(self.report["variants"], self.built, strict=True):
            row["stages"] = audit_steps(one, store, images, labels, engine, display)

    def _load(self, row: Row, target: Subject) -> None:
        try:
            add_load(row, self.measurements.load(target, self.recipe.load).info["runs"])
        except LoadStopped as stopped:
            add_load(row, stopped.runs)
            if stopped.by_user:
                raise KeyboardInterrupt(str(stopped)) from stopped
            raise


def _new_report(recipe: Recipe, built: list[Built], endpoint: Endpoint) -> Report:
    isa = instruction_set() if endpoint.is_embedded else UNKNOWN
    return {
        "format": FORMAT,
        "recipe": recipe.name,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": 0.0,
        "server": endpoint.description,
        "stopped": None,
        "deaths": [],
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "config": dataclasses.asdict(recipe),
        "data": dict(built[0].data.info),
        "variants": [_new_row(one, isa) for one in built],
        "comparisons": [],
        "stages": [],
    }


def _new_row(built: Built, isa: str | None) -> Row:
    return {
        "name": built.variant,
        "model": built.model,
        "version": built.version,
        "engine": built.engine,
        "engine_reason": built.engine_why,
        "size_bytes": built.size_bytes,
        "accuracy": None,
        "per_class": [],
        "throughput_ips": None,
        "latency_ms": None,
        "latency_from": None,
        "load": [],
        "robustness": [],
        "calibration": _calibration(built),
        "int8": _int8(built, isa),
        "stages": [],
        "build": [stage.to_json() for stage in built.stages if stage.name != "quantize"],
    }


def _int8(built: Built, isa: str | None) -> Row | None:
    """What decides whether int8 answers depend on the CPU: the weights' bits and the serving instruction set."""
    if built.weight_bits is None:
        return None
    stages = {stage.name: stage.figures for stage in built.stages}  # none for an ensemble
    saturates = ENGINES.get(built.engine).saturates_int8
    return {
        "weight_bits": built.weight_bits,
        "reduce_range": stages.get("quantize", {}).get("reduce_range"),
        "verified_isa": stages.get("engine", {}).get("isa"),
        "serving_isa": isa if saturates else None,
        "warning": why_inexact(isa, built.weight_bits) if saturates else None,
        "exact": None,
    }


def _calibration(built: Built) -> Row | None:
    """How the variant was quantised, what the audit counted, how near it is to float32; None when it was not."""
    for stage in built.stages:
        if stage.name == "quantize":
            figures = stage.figures
            counts = ("num_conv", "num_gemm", "num_residual_adds")
            return {
                **{name: figures[name] for name in ("precision", "method", "num_calibration")},
                **{name: figures["audit"][name] for name in counts},
                **{name: figures["against_float32"][name] for name in ("agreement", "num_images")},
            }
    return None
