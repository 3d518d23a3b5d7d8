"""The main job: a recipe becomes served variants, and these become one report.

Build, serve, measure, attack, compare, report. Everything before the report is a stage that is kept, so a second
run does only what changed; with nothing changed the server is not even started. When it dies again after it was
started again, what was measured until then is reported all the same.

Over 500 lines, as one class holds the order of all that is measured; how it is measured stands in `measure.py`.
"""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.build import build_variants
from temper.builder.contract import WEIGHTS_FILE
from temper.builder.engines.build import pick_engine
from temper.builder.engines.isa import UNKNOWN, instruction_set, why_inexact
from temper.builder.engines.kind import ENGINES, AutoConfig
from temper.builder.engines.latency import timing_engine
from temper.builder.errors import BuilderError
from temper.builder.network.stage import Setting
from temper.builder.publish.defence import render_defences
from temper.builder.publish.switch import versions_with
from temper.builder.store.artifacts import Artifact, Store
from temper.builder.store.files import describe_os_error, locked
from temper.client.errors import ClientError
from temper.client.robustness.base import OWN, REFERENCE
from temper.client.stats import images_needed
from temper.errors import ReportError, ServerError, TemperError, WorkflowError
from temper.gate.keys import read_key
from temper.host.machine import commit, machine, versions
from temper.imaging.errors import show
from temper.progress import Display
from temper.report import EXPLAIN_FILE, EXPLAIN_PAGE_FILE, write_explanation, write_report
from temper.report.answer import TELLING, say_chance
from temper.report.explained import Explanation
from temper.report.measured import Share
from temper.report.model import (
    FORMAT,
    Calibration,
    Exactness,
    Gpu,
    Int8,
    Machine,
    Parity,
    RangeLoss,
    ReduceRange,
    Report,
    Stage,
    Timing,
    Variant,
)
from temper.report.verdict_text import headline
from temper.run.gate import Measured, judge_run
from temper.run.measure import LoadStopped, Measurements, Subject, subject
from temper.run.summary import (
    compare,
    with_accuracy,
    with_attack,
    with_corruption_errors,
    with_corruptions,
    with_load,
)
from temper.run.worst_case import with_worst_case
from temper.serve.endpoint import Endpoint
from temper.serve.promote import PromoteError, promote
from temper.serve.runtime import has_backend

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from temper.builder.built import Built, StageReport
    from temper.client.robustness import AttackConfig
    from temper.report.verdict import Verdict
    from temper.run.recipe import Recipe

SERVER_LOG = "tritonserver.log"
LOCK_FILE = ".run.lock"
_MAX_GATED = 10_000
"""Test images that a rule on the agreement with the network looks at, at most: PyTorch takes its time."""
_DISCORDANT = 0.05
"""Share of the images that two variants judge otherwise under attack: what int8 and float32 did at most."""


def run_recipe(
    recipe: Recipe,
    *,
    repository: Path,
    runs: Path,
    display: Display,
    url: str | None = None,
    folder: Path | None = None,
    sign: Path | None = None,
) -> Report:
    """Builds, serves, measures and attacks a recipe's variants and writes the report.

    A second run into the same folder waits for the first: two that measure at once slow each other.

    Args:
        recipe: The recipe.
        repository: The model repository that the variants are published into.
        runs: The run's folder is `runs/<recipe>`: its stages, its server's log, report.json and report.html.
        display: Where progress is shown.
        url: The gRPC address of a running server that serves `repository`; None starts the embedded one.
        folder: For the report and the server's log, when they shall not lie in the run's folder.
        sign: The private key that signs the verdicts; they are not signed without.

    Returns:
        The report.

    Raises:
        BuilderError: A variant cannot be built or published; nothing is reported.
        WorkflowError: The run's folder cannot be written, or the recipe does not fit its data.
        KeyboardInterrupt: After the report of what had been measured was written.
    """
    folder = folder or runs / recipe.name
    with alone(folder, display):
        return _run_alone(
            recipe, repository=repository, runs=runs, display=display, url=url, folder=folder, sign=sign
        )


@contextmanager
def alone(folder: Path, display: Display) -> Iterator[None]:
    """Waits until no other run is at work in a folder, which is made when missing, and keeps others waiting.

    Raises:
        WorkflowError: The folder cannot be written.
    """

    def waiting() -> None:
        display.say(f"{folder}: another run is at work; waiting until it is done")

    stack = ExitStack()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(folder / LOCK_FILE, waiting))
    except OSError as error:
        raise WorkflowError(f"{folder}: cannot be written: {describe_os_error(error)}") from error
    with stack:
        yield


def _run_alone(
    recipe: Recipe,
    *,
    repository: Path,
    runs: Path,
    display: Display,
    url: str | None,
    folder: Path,
    sign: Path | None,
) -> Report:
    started = datetime.datetime.now(datetime.UTC), time.monotonic()

    def check(figures: Mapping[str, Any]) -> None:
        try:
            recipe.check_data(figures["num_test"], figures["num_classes"])
        except ValueError as error:
            raise WorkflowError(str(error)) from error

    key = None if sign is None else read_key(sign)  # before the minutes that come next
    if url is None:
        _check_embedded(recipe)
    _check_corruptions(recipe)
    _check_surrogates(recipe)
    built = build_recipe(recipe, repository=repository, runs=runs, display=display, check_data=check)
    models = [one.jpeg.model if one.jpeg else one.model for one in built]  # with what it is made of
    if url is not None:
        _check_served(built, url)
    versions = versions_with(repository, ((one.model, one.version) for one in built))
    log_file = folder / SERVER_LOG
    endpoint = Endpoint(url, repository, models=models, versions=versions, log_file=log_file, display=display)
    today = Endpoint(url, repository, models=models, display=display)  # started for what is held against it alone
    store = Store(runs / recipe.name / "stages")
    measurements = Measurements(store=store, endpoint=endpoint, data=built[0].data, display=display, url=url)
    run = _Run(recipe, built, measurements, folder, replace(measurements, endpoint=today), key)
    stopped = None
    try:
        with endpoint, today:
            run.measure()
            run.judge()
        run.explain()
    except (TemperError, BuilderError) as error:
        stopped = str(error)
    except KeyboardInterrupt as error:
        stopped = str(error) or "interrupted"
        raise
    finally:
        report = run.report(started, stopped)
        write_report(report, folder)
        if run.explanation is not None:  # its page links back to what is there
            write_explanation(run.explanation, folder)
    return report


def _check_served(built: Sequence[Built], url: str) -> None:
    """Refuses to measure candidates on a server that does not have them."""
    from temper.client.client import Client

    for one in built:
        if one.version == one.served:
            continue
        try:
            with Client(url) as client:
                client.model_info(one.model, str(one.version))
        except ClientError as error:
            raise WorkflowError(
                f"{one.model} version {one.version} is a candidate, which the server at {url} does not have "
                f"({error}); leave --url out, or promote it"
            ) from error


def _check_corruptions(recipe: Recipe) -> None:
    """Refuses, before anything is built, corruptions that nothing here can make."""
    if recipe.corruptions is not None:
        from temper.client.corruptions.library import load_library

        try:
            load_library()
        except ClientError as error:
            raise WorkflowError(str(error)) from error


def _check_surrogates(recipe: Recipe) -> None:
    """Refuses, before anything is built, gradients of an ONNX file with operators that no surrogate has."""
    if recipe.model.graph is None or not any(getattr(attack, "surrogates", ()) for attack in recipe.attacks):
        return
    from temper.builder.network.stage import Setting
    from temper.builder.network.stage_import import operators_of
    from temper.client.robustness.surrogate import unknown_operators

    setting = Setting(data=recipe.data, model=recipe.model, train=recipe.train)
    if unknown := unknown_operators(operators_of(setting)):
        raise WorkflowError(
            f"attacks: surrogates follow gradients, which the ONNX file's operator {unknown[0]} has none of here; "
            "leave attacks with surrogates out"
        )


def _check_embedded(recipe: Recipe) -> None:
    """Refuses, before anything is built, what the embedded server could not serve afterwards."""
    engine = pick_engine(recipe.engine)
    if engine.kind.device == "gpu" and (reason := engine.kind.why_not_run()) is not None:
        raise WorkflowError(
            f"engine {engine.kind.name}: nothing could be measured on this machine: {reason}; build it with "
            "`temper build`, or name a running server with --url"
        )
    backend = engine.kind.backend(engine.config, None).name
    if not has_backend(backend):
        raise WorkflowError(
            f"engine {engine.kind.name}: is served by Triton's backend {backend!r}, which the embedded server "
            "does not have; name a running server with --url, or leave engine.server_backend out"
        )


def build_recipe(
    recipe: Recipe,
    *,
    repository: Path,
    runs: Path,
    display: Display,
    check_data: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[Built]:
    """Builds and publishes a recipe's variants; stages that are done are reused.

    `check_data` is as in `build_variants`.

    Raises:
        BuilderError: A variant cannot be built or published.
    """
    if isinstance(recipe.engine, AutoConfig):
        picked = pick_engine(recipe.engine)
        display.say(f"engine: {picked.kind.name} ({picked.why})")
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
        check_data=check_data,
    )


@dataclass
class _Run:
    """The measurements of one run and what they gave."""

    recipe: Recipe
    built: list[Built]
    measurements: Measurements
    folder: Path
    today: Measurements
    """On a server of what is served today, in place of the candidates."""
    key: Ed25519PrivateKey | None = None
    """Signs the verdicts."""
    variants: dict[str, Variant] = field(init=False)
    accuracies: dict[str, Artifact] = field(default_factory=dict)
    attacks: dict[str, list[Artifact]] = field(default_factory=dict)
    corruptions: dict[str, Artifact] = field(default_factory=dict)
    parities: dict[str, Artifact] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    explanation: Explanation | None = None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        isa = instruction_set() if self.measurements.endpoint.is_embedded else UNKNOWN
        self.variants = {one.variant: _new_variant(one, isa) for one in self.built}

    def measure(self) -> None:
        """Measures everything, one thing at a time: no variant shares the machine with another's test."""
        targets = [subject(one.variant, one.model, one.version, one.path) for one in self.built]
        names = self.measurements.class_names()
        self._measure_steps()
        for target in targets:
            measured = self.accuracies[target.name] = self.measurements.accuracy(target)
            self.variants[target.name] = with_accuracy(self.variants[target.name], measured, names)
            if target is targets[0]:  # what the others are compared with
                self._warn_of_chance(target)
        for target, one in zip(targets, self.built, strict=True):
            self._measure_exactness(target, one)
        self._measure_parity(targets)
        for target in targets:
            self._load(target)
        self._say_images()
        for config in (single for attack in self.recipe.attacks for single in attack.each_budget()):
            for target in targets:
                other = self.recipe.reference_of(config)
                if other == target.name:
                    continue
                reference = next((one for one in targets if one.name == other), None)
                graphs = self._surrogates(config, target.name, other)
                fitting = self._fitting(config, target.name)
                measured = self.measurements.attack(target, fitting, graphs, reference)
                self.attacks.setdefault(target.name, []).append(measured)
                self.variants[target.name] = with_attack(
                    self.variants[target.name], measured, names, self.folder, other
                )
        if self.recipe.corruptions is not None:
            for target in targets:
                measured = self.measurements.corruptions(target, self.recipe.corruptions)
                self.corruptions[target.name] = measured
                self.variants[target.name] = with_corruptions(self.variants[target.name], measured)

    def _warn_of_chance(self, target: Subject) -> None:
        """Says so when the accuracy is none, and which command says why."""
        if (found := say_chance(self.variants[target.name])) is not None:
            data, words = self.recipe.data, self.measurements.endpoint.words
            images = data.path if data.source == "folder" and data.path else "FOLDER"
            named = ["--weights", show(self._weights()), "--images", show(images)]
            command = shlex.join(["temper", "diagnose", target.model, *words, *named])
            self.warnings.append(f"{found}; to learn why: {command}")
            self.measurements.display.say(f"warning: {self.warnings[-1]}")

    def _weights(self) -> Path | str:
        """The PyTorch checkpoint of what is served, as its owner gave it or as it was finetuned."""
        model, train, made = self.recipe.model, self.recipe.train, self.built[0].weights
        if model.graph is not None or made is None:
            return "FILE"
        own = None if train.epochs + train.head_epochs else model.checkpoint
        return own or made.path / WEIGHTS_FILE

    def _say_images(self) -> None:
        """Says before the attacks when they are on too few images to tell two variants apart."""
        available = len(self.measurements.test_images()[1])
        numbers = [attack.num_images or available for attack in self.recipe.attacks]
        needed = images_needed(TELLING, _DISCORDANT)
        if len(self.built) > 1 and numbers and min(numbers) < needed:
            self.measurements.display.say(
                f"attacks: {min(numbers):,} images; to find a difference of {100 * TELLING:.0f} points takes "
                f"about {needed:,}, where two variants judge {100 * _DISCORDANT:.0f} % of the images otherwise"
            )

    def _fitting(self, config: AttackConfig, name: str) -> AttackConfig:
        """The attack on a variant: one that does not draw at random is asked once, for as many queries.

        Turns on a surrogate stay as many as they are for the others: each costs more than its query.
        """
        if any(variant.is_random for variant in self.recipe.variants if variant.name == name):
            return config
        return config.of_one_answer() if hasattr(config, "surrogates") else replace(config, expectation=1)

    def _surrogates(
        self, config: AttackConfig, own: str, reference: str | None
    ) -> dict[str, list[tuple[Artifact, str]]]:
        """The graphs whose gradients an attack on the variant `own` follows, each with its defence."""
        roles = {OWN: own, REFERENCE: reference}
        built = {one.variant: one for one in self.built}
        variants = {variant.name: variant for variant in self.recipe.variants}
        return {
            name: [
                (built[member].snapshots[-1].graph, render_defences(variant.defend))
                for part in name.split("+")
                for variant in [variants[roles.get(part) or part]]
                for member in variant.ensemble or (variant.name,)
            ]
            for name in getattr(config, "surrogates", ())
        }

    def _measure_steps(self) -> None:
        """Measures the steps in process, before there is a server to share the machine with."""
        engine = timing_engine(pick_engine(self.recipe.engine).config)
        if engine is None:
            return
        from temper.run.steps import measure_steps

        images, labels = self.measurements.test_images()
        store, display = self.measurements.store, self.measurements.display
        for one in self.built:
            steps = measure_steps(one, store, images, labels, engine, display)
            self.variants[one.variant] = replace(self.variants[one.variant], steps=steps)

    def _measure_exactness(self, target: Subject, one: Built) -> None:
        variant = self.variants[target.name]
        if variant.int8 is not None and one.snapshots:  # an ensemble has no graph
            exact = Exactness.of(self.measurements.agreement(target, one.snapshots[-1].graph).info)
            self.variants[target.name] = replace(variant, int8=replace(variant.int8, exact=exact))

    def _measure_parity(self, targets: Sequence[Subject]) -> None:
        setting = Setting(data=self.recipe.data, model=self.recipe.model, train=self.recipe.train)
        weights = next(one.weights for one in self.built if one.weights is not None)
        gated = self.recipe.gate is not None and self.recipe.gate.engine is not None
        owner = self.measurements.owners_answers(setting, weights, *([_MAX_GATED] if gated else []))
        for target, one, variant in zip(targets, self.built, self.recipe.variants, strict=True):
            encoded = None
            if one.jpeg is not None and not variant.is_random:  # which answers otherwise each time
                encoded = subject(one.variant, one.jpeg.model, one.jpeg.version, one.jpeg.path)
            measured = self.parities[target.name] = self.measurements.parity(target, setting, owner, encoded)
            found = measured.info
            parity = Parity.of(found, agreement=Share(**found["agreement"]))
            self.variants[target.name] = replace(self.variants[target.name], parity=parity)

    def _load(self, target: Subject) -> None:
        variant = self.variants[target.name]
        try:
            runs = self.measurements.load(target, self.recipe.load).info["runs"]
        except LoadStopped as stopped:
            self.variants[target.name] = with_load(variant, stopped.runs)
            if stopped.by_user:
                raise KeyboardInterrupt(str(stopped)) from stopped
            raise
        self.variants[target.name] = with_load(variant, runs)

    def explain(self) -> None:
        """Looks into the network, where the recipe asks for it.

        Raises:
            WorkflowError: It failed; what was measured stays.
        """
        if self.recipe.explain is None:
            return
        from temper.report.earlier import with_earlier
        from temper.run.explain import explain_recipe

        display = self.measurements.display
        try:
            explanation = explain_recipe(self.recipe, self.built, folder=self.folder, display=display)
        except (BuilderError, ClientError) as error:
            raise WorkflowError(f"explain: {error}") from error
        self.explanation = with_earlier(explanation, self.folder)

    def judge(self) -> None:
        """Gives the verdicts, and promotes what may be shipped where the recipe says so."""
        if (config := self.recipe.gate) is None:
            return
        display = self.measurements.display
        shipped: list[Built] = []
        measured = Measured(
            variants=self.variants, accuracies=self.accuracies, attacks=self.attacks, parities=self.parities
        )
        for one, verdict in judge_run(
            config, self.built, measured, self.measurements, today=self.today, key=self.key
        ):
            self.verdicts.append(verdict)
            display.say(headline(verdict))
            if config.promote == "on-ship" and verdict.answer == "SHIP" and one.served != one.version:
                shipped.append(one)
        for one in shipped:  # once all are judged
            self._promote(one)

    def _promote(self, one: Built) -> None:
        """Serves what may be shipped; what stands in the way is said, and ends nothing."""
        display, repository = self.measurements.display, one.path.parents[1]
        try:
            switched = promote(repository, one.model, one.version, url=self.measurements.url, reason="on-ship")
        except (PromoteError, ServerError, BuilderError) as error:
            self.warnings.append(f"{one.model} version {one.version} was not promoted: {error}")
            display.say(f"warning: {self.warnings[-1]}")
            return
        for line in switched.describe():
            display.say(line)

    def report(self, started: tuple[datetime.datetime, float], stopped: str | None) -> Report:
        """What was measured until now.

        Args:
            started: When the run began, and the monotonic clock then.
            stopped: Why it ended early, if it did.
        """
        names, (_, labels) = self.measurements.class_names(), self.measurements.test_images()
        variants = tuple(
            with_worst_case(variant, self.attacks.get(name, ()), labels, names)
            for name, variant in self.variants.items()
        )
        baselines = {one.name: one.against for one in self.recipe.variants if one.against is not None}
        finished = self.measurements.display.finished
        here = machine()
        return Report(
            format=FORMAT,
            recipe=self.recipe.name,
            created=started[0].strftime("%Y-%m-%d %H:%M UTC"),
            seconds=round(time.monotonic() - started[1], 1),
            server=self.measurements.endpoint.description,
            stopped=stopped,
            deaths=(*self.measurements.endpoint.deaths, *self.today.endpoint.deaths),
            warnings=tuple(self.warnings),
            verdicts=tuple(self.verdicts),
            commit=commit(),
            machine=Machine.of(here, flags=tuple(here["flags"]), gpu=Gpu.of(here["gpu"]) if here["gpu"] else None),
            versions=versions(),
            config=self.recipe.to_json(),
            data=self.built[0].data.info,
            variants=variants,
            comparisons=tuple(
                with_corruption_errors(
                    compare(variants, self.accuracies, self.attacks, baselines), self.corruptions
                )
            ),
            timings=tuple(Timing.of(vars(stage)) for stage in finished),
            explanation=EXPLAIN_PAGE_FILE if self._is_explained() else None,
        )

    def _is_explained(self) -> bool:
        """Whether there is an explanation of these variants: this run's, or one that `temper explain` left."""
        if self.explanation is not None or not (self.folder / EXPLAIN_FILE).exists():
            return self.explanation is not None
        from temper.report.read import read_explanation
        from temper.run.explain.look import graphs_of

        try:
            return read_explanation(self.folder).graphs == graphs_of(self.built)
        except ReportError:
            return False


def _new_variant(built: Built, isa: str | None) -> Variant:
    return Variant.of(
        vars(built),
        name=built.variant,
        encoded_model=built.jpeg and built.jpeg.model,
        calibration=_calibration(built),
        int8=_int8(built, isa),
        build=tuple(Stage.of(vars(stage)) for stage in built.stages if not _is_calibrated(stage)),
    )


def _int8(built: Built, isa: str | None) -> Int8 | None:
    """What decides whether int8 answers depend on the CPU: the weights' bits and the serving instruction set."""
    if built.weight_bits is None:
        return None
    # None for an ensemble.
    figures = {name: value for stage in built.stages for name, value in stage.figures.items()}
    saturates = ENGINES.get(built.engine).saturates_int8
    return Int8(
        weight_bits=built.weight_bits,
        reduce_range=_reduce_range(figures.get("reduce_range")),
        verified_isa=figures.get("isa"),
        serving_isa=isa if saturates else None,
        warning=why_inexact(isa, built.weight_bits) if saturates else None,
        exact=None,
    )


def _reduce_range(figures: Mapping[str, Any] | None) -> ReduceRange | None:
    if figures is None:
        return None
    measured = {name: RangeLoss.of(figures[name]) for name in ("full", "reduced") if name in figures}
    return ReduceRange.of(figures, **measured)


def _calibration(built: Built) -> Calibration | None:
    """How the variant was quantised; None when it was not."""
    for stage in built.stages:
        if _is_calibrated(stage):
            audit = stage.figures["audit"]
            linear = audit["num_gemm"] + audit["num_matmul"]
            return Calibration.of(
                {**stage.figures, **audit, "num_gemm": linear, **stage.figures["against_float32"]}
            )
    return None


def _is_calibrated(stage: StageReport) -> bool:
    """Whether a stage quantised: its figures have a place of their own in the report."""
    return {"audit", "against_float32", "num_calibration"} <= stage.figures.keys()
