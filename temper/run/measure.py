"""The measurements on a served model as stages: kept by a digest of model, images, settings and machine."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.contract import (
    DIGESTS_FILE,
    GRAPH_FILE,
    LABELS_FILE,
    OWNER_LOGITS_FILE,
    TEST_IMAGES_FILE,
    TEST_LABELS_FILE,
)
from temper.builder.names import read_labels
from temper.builder.store.artifacts import Artifact, Store
from temper.builder.store.code import tree_digest
from temper.builder.store.files import sha256_file
from temper.client.errors import ClientError
from temper.client.robustness.base import ATTACKS
from temper.errors import WorkflowError
from temper.host.machine import machine_id
from temper.progress import Display, Stage
from temper.report import text
from temper.report.gallery import write_gallery
from temper.serve.endpoint import Endpoint
from temper.serve.runtime import BACKENDS

if TYPE_CHECKING:
    from temper.builder.network.stage import Setting
    from temper.client.accuracy import AccuracyResult
    from temper.client.corruptions import CorruptionResult, CorruptionsConfig
    from temper.client.load import LoadConfig, RaceConfig
    from temper.client.robustness import AttackConfig, AttackResult

CORRECT_FILE = "correct.npy"
ANSWERS_FILE = "answers.npy"
CONFIDENCE_FILE = "confidence.npy"
SAME_FILE = "same.npy"
_CHECKPOINT = "finished.jsonl"
_GALLERY_SIZE = 8
_MAX_EXACT = 500
_MAX_PARITY = 64
_EXACT_LIMIT_S = 600.0
"""For one request: only a hang takes so long."""


class LoadStopped(WorkflowError):  # noqa: N818 - says what happened
    """A load test was cut short; `runs` holds what it measured until then."""

    def __init__(self, message: str, runs: list[dict[str, Any]], *, by_user: bool) -> None:
        """Keeps the line, the runs, and whether it was Ctrl-C."""
        super().__init__(message)
        self.runs = runs
        self.by_user = by_user


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One version of a published model, and its key."""

    name: str
    """The variant."""
    model: str
    """Triton's name of it."""
    version: int
    artifact: Artifact
    """Its folder in the repository; the digest is over its files' digests, its own config.pbtxt among them."""


def subject(name: str, model: str, version: int, path: Path) -> Subject:
    """Describes the version of a model at `path`, `<repository>/<model>/<version>`, whatever version is served."""
    artifact = Artifact(path=path, digest=sha256_file(path / DIGESTS_FILE), info={}, reused=True)
    return Subject(name=name, model=model, version=version, artifact=artifact)


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Runs the measurements of one run, or finds them in the store.

    Args:
        store: Where the results are kept.
        endpoint: The server; it is not asked, nor started, while everything is in the store.
        data: The test images' stage.
        display: Shows a line and a bar for each.
        url: The server's address in the key, when it is not the embedded one.
    """

    store: Store
    endpoint: Endpoint
    data: Artifact
    display: Display
    url: str | None = None

    def accuracy(self, target: Subject) -> Artifact:
        """Accuracy on all test images; the vectors of `AccuracyResult` lie in the artifact's folder."""

        def make(folder: Path, stage: Stage, url: str) -> dict[str, Any]:
            from temper.client.accuracy import evaluate_accuracy

            images, labels = self.test_images()
            result: AccuracyResult = evaluate_accuracy(
                url, target.model, images, labels, progress=stage, version=str(target.version)
            )
            np.save(folder / CORRECT_FILE, result.correct)
            np.save(folder / ANSWERS_FILE, result.answers)
            if result.confidence is not None:
                np.save(folder / CONFIDENCE_FILE, result.confidence)
            return result.to_json()

        return self._run("accuracy", target, {}, make, _note_accuracy, code=("temper.client.accuracy",))

    def agreement(self, target: Subject, graph: Artifact) -> Artifact:
        """How far the served answers are from the exact arithmetic of the graph that the engine was made from.

        On the first test images, at most 500; `info` is that of `compare_logits`, and how many requests
        were sent again.
        """
        num_images = min(_MAX_EXACT, len(self.test_images()[0]))

        def make(folder: Path, stage: Stage, url: str) -> dict[str, Any]:
            del folder, stage
            from temper.builder.network.export import compare_logits, run_onnx
            from temper.client.accuracy import read_scores

            images = np.array(self.test_images()[0][:num_images])
            exact = run_onnx(graph.path / "model.onnx", images)
            served, retries = read_scores(
                url, target.model, images, version=str(target.version), timeout_s=_EXACT_LIMIT_S
            )
            # The accuracy counts answers that are no numbers; here they are as wrong as any other.
            served = np.nan_to_num(served, nan=0.0, posinf=0.0, neginf=0.0)
            return {**compare_logits(exact, served), "retries": retries}

        config = {"graph": graph.digest, "num_images": num_images}
        code = ("temper.client.accuracy", "temper.builder.network.export")
        libraries = ("onnxruntime-gpu",)
        return self._run("agreement", target, config, make, _note_agreement, code=code, libraries=libraries)

    def parity(
        self, target: Subject, setting: Setting, owner: Artifact, encoded: Subject | None = None
    ) -> Artifact:
        """How far the served answers are from torchvision and the network as they are, on the first test images.

        The served ones: the files as a client sends them, with the preprocessing that the server says.

        Args:
            target: Who is asked.
            setting: The recipe's.
            owner: From `owners_answers`.
            encoded: What takes image files for it: the files themselves should give the same logits to the bit.
        """

        def make(folder: Path, stage: Stage, url: str) -> dict[str, Any]:
            del stage
            from temper.builder.data.prepare import file_of, open_tests
            from temper.builder.network.export import compare_logits
            from temper.client.accuracy import read_scores
            from temper.client.client import Client
            from temper.client.images import preprocessing_of, take_image
            from temper.client.stats import proportion

            expected = np.load(owner.path / OWNER_LOGITS_FILE)
            with Client(url) as client:
                how = preprocessing_of(client.model_info(target.model, str(target.version)))
            same_encoded, retries, parts = None, Counter[str](), []
            tests = open_tests(setting.data, len(expected))
            while some := [take_image(image, how) for image in itertools.islice(tests, _MAX_PARITY)]:
                answer, again = read_scores(url, target.model, np.stack(some), version=str(target.version))
                parts.append(answer)
                retries.update(again)
            if encoded is not None:
                pixels = (take_image(image, how) for image in open_tests(setting.data, len(expected)))
                files = map(file_of, open_tests(setting.data, len(expected)))
                same_encoded = _count_same(url, target, encoded, zip(pixels, files, strict=True))
            served = np.concatenate(parts)
            same = np.isfinite(served).all(axis=1) & (expected.argmax(1) == served.argmax(1))
            np.save(folder / SAME_FILE, same)
            served = np.nan_to_num(served, nan=0.0, posinf=0.0, neginf=0.0)
            return {
                **compare_logits(expected, served),
                "agreement": proportion(same),
                **{name: owner.info[name] for name in ("num_same_pixels", "max_pixel_diff")},
                "runtime": _runtime(setting),
                "retries": dict(retries),
                "num_same_encoded": same_encoded,
            }

        code = ("temper.client.accuracy", "temper.client.images", "temper.builder.network.export")
        config = {"owner": owner.digest, "encoded": encoded.artifact.digest if encoded else None}
        return self._run("parity", target, config, make, _note_parity, code=code)

    def owners_answers(self, setting: Setting, weights: Artifact, num_images: int = _MAX_PARITY) -> Artifact:
        """What the network answers to the raw files by torchvision, before any compression.

        The raw files by torchvision's reading and transforms, then PyTorch; an ONNX file by ONNX Runtime.
        """
        num_images = min(num_images, len(self.test_images()[0]))
        libraries = {"PyTorch": ("torch",), "ONNX Runtime": ("onnx", "onnxruntime-gpu")}[_runtime(setting)]
        with self.display.stage("the same by torchvision") as shown:

            def make(folder: Path) -> dict[str, Any]:
                from temper.builder.network.parity import answer_files

                return answer_files(setting, self.data, weights, num_images, folder, shown)

            artifact = self.store.run(
                "owner",
                {"num_images": num_images, "data": setting.data},
                [self.data, weights],
                make,
                code=("temper.builder.network.parity",),
                libraries=(*libraries, "torchvision", *setting.data.libraries),
            )
            shown.reused = artifact.reused
            shown.note = f"{num_images} files by torchvision and {_runtime(setting)}"
        return artifact

    def load(self, target: Subject, config: LoadConfig) -> Artifact:
        """The load tests, one after the other; `info["runs"]` holds their figures.

        Raises:
            LoadStopped: A run was cut short, mostly because the server died.
        """

        def make(folder: Path, stage: Stage, url: str) -> dict[str, Any]:
            from temper.client.load import measure

            images, _ = self.test_images()
            results = measure(url, target.model, images, config, progress=stage, version=str(target.version))
            runs = [result.to_json() for result in results]
            if results[-1].interrupted is not None:
                why = self.endpoint.why(results[-1].interrupted)
                raise LoadStopped(f"load test of {target.model}: {why}", runs, by_user=results[-1].stopped_by_user)
            reasons = [result.why_unanswered() for result in results]
            if all(reasons):
                raise LoadStopped(f"load test of {target.model}: {reasons[-1]}", runs, by_user=False)
            return {"runs": runs}

        code = ("temper.client.load.generator", "temper.client.load.worker")
        return self._run("load", target, dataclasses.asdict(config), make, _note_load, code=code)

    def race(self, reference: Subject, target: Subject, config: RaceConfig, other: Measurements) -> Artifact:
        """Loads a model and the one that it is held against in turns; `info` is that of `Race`.

        Args:
            reference: Who it is held against.
            target: The model.
            config: How they are loaded.
            other: Where the reference is measured.
        """

        def make(folder: Path, stage: Stage, url: str) -> dict[str, Any]:
            del folder
            from temper.client.load import race

            first, second = ((one.model, str(one.version)) for one in (reference, target))
            images, where = self.test_images()[0], other.endpoint.url()
            return race(url, first, second, images, config, stage, url_of_first=where).to_json()

        key = {**dataclasses.asdict(config), "reference": reference.artifact.digest}
        code = ("temper.client.load.interleaved", "temper.client.load.worker")
        return self._run("race", target, key, make, _note_race, code=code, label=f"in turns with {reference.name}")

    def attack(
        self,
        target: Subject,
        config: AttackConfig,
        surrogates: Mapping[str, Sequence[tuple[Artifact, str]]] | None = None,
        reference: Subject | None = None,
    ) -> Artifact:
        """One attack; the vectors of `AttackResult.save_vectors` and the gallery lie in the artifact's folder.

        An attack that was interrupted goes on from the images it had finished.

        Args:
            target: What is attacked.
            config: The attack.
            surrogates: The graphs of the networks whose gradients it follows, by the name in the config, each with
                the defence before it, as `render_defences` writes it.
            reference: What it compares the target with, if it does.
        """
        graphs = surrogates or {}

        def make(folder: Path, stage: Stage, url: str) -> dict[str, Any]:
            from temper.client.robustness import attack
            from temper.client.robustness.base import Network

            images, labels = self.test_images()
            checkpoint = folder / _CHECKPOINT
            result: AttackResult = attack(
                url,
                target.model,
                images,
                labels,
                config,
                progress=stage,
                gallery=_GALLERY_SIZE,
                checkpoint=checkpoint,
                version=str(target.version),
                surrogates={
                    name: [Network(graph.path / GRAPH_FILE, defend) for graph, defend in each]
                    for name, each in graphs.items()
                },
                reference=reference.model if reference else "",
                reference_version=str(reference.version) if reference else "",
                say=self.display.say,
            )
            checkpoint.unlink(missing_ok=True)
            result.save_vectors(folder)
            return {**result.to_json(), "gallery": self._gallery(result, folder / "gallery")}

        code = ("temper.client.robustness.harness", type(config).__module__)
        return self._run(
            f"attack-{config.name}",
            target,
            {
                **dataclasses.asdict(config),
                "graphs": {
                    name: [(graph.digest, defend) for graph, defend in each] for name, each in graphs.items()
                },
                "compared_with": reference.artifact.digest if reference else None,
            },
            make,
            _note_attack,
            code=code,
            libraries=ATTACKS.get(config.name).libraries,
            label=f"attack {config.name} {text.budget(config.norm, config.epsilon)}",
        )

    def corruptions(self, target: Subject, config: CorruptionsConfig) -> Artifact:
        """Accuracy on corrupted images; the vectors of `CorruptionResult` lie in the artifact's folder.

        A measurement that was interrupted goes on from the kinds and severities that it had finished.
        """
        from temper.client.corruptions.library import LIBRARIES

        def make(folder: Path, stage: Stage, url: str) -> dict[str, Any]:
            from temper.client.corruptions import evaluate_corruptions

            images, labels = self.test_images()
            checkpoint = folder / _CHECKPOINT
            result: CorruptionResult = evaluate_corruptions(
                url,
                target.model,
                images,
                labels,
                config,
                progress=stage,
                checkpoint=checkpoint,
                version=str(target.version),
            )
            checkpoint.unlink(missing_ok=True)
            result.vectors.save(folder)
            return result.to_json()

        settings = dataclasses.asdict(config)
        code = ("temper.client.corruptions.harness",)
        return self._run("corruptions", target, settings, make, _note_corruptions, code=code, libraries=LIBRARIES)

    def class_names(self) -> list[str]:
        """The names of the data's classes, by index."""
        return read_labels(self.data.path / LABELS_FILE)

    def test_images(self) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.int64]]]:
        """The test images, mapped, uint8 [N, H, W, 3], and their labels, int64 [N]."""
        images = np.load(self.data.path / TEST_IMAGES_FILE, mmap_mode="r")
        return images, np.load(self.data.path / TEST_LABELS_FILE)

    def _gallery(self, result: AttackResult, folder: Path) -> list[dict[str, Any]]:
        names = self.class_names()
        entries = [
            {
                "index": example.index,
                "label": names[example.label],
                "answer": names[example.served_label],
                "num_queries": example.num_queries,
                "original": example.original,
                "adversarial": example.adversarial,
            }
            for example in result.gallery
        ]
        return write_gallery(entries, folder)

    def _run(
        self,
        stage: str,
        target: Subject,
        config: Mapping[str, Any],
        make: Callable[[Path, Stage, str], dict[str, Any]],
        note: Callable[[dict[str, Any]], str],
        *,
        code: Sequence[str],
        libraries: Sequence[str] = (),
        label: str = "",
    ) -> Artifact:
        # Of a server elsewhere nobody can say what it runs.
        backends = tree_digest(BACKENDS) if self.url is None else None
        key = {"config": config, "machine": machine_id(), "server": self.url, "backends": backends}
        label = f"{target.name}: {label or stage}"
        with self.display.stage(label) as shown:

            def checked(folder: Path) -> dict[str, Any]:
                def measure(url: str) -> dict[str, Any]:
                    shown.restart()  # the server's start, or what was lost with it, is not this stage's time
                    return make(folder, shown, url)

                try:
                    return self.endpoint.retrying(label, measure)
                except ValueError as error:
                    # Settings that only the data or the model show to be impossible.
                    raise WorkflowError(f"{stage} of {target.model}: {error}") from error

            try:
                inputs = [target.artifact, self.data]
                artifact = self.store.run(stage, key, inputs, checked, code=code, libraries=libraries)
            except ClientError as error:
                raise WorkflowError(f"{stage} of {target.model}: {self.endpoint.why(error)}") from error
            shown.reused = artifact.reused
            shown.note = note(artifact.info)
        return artifact


def _note_accuracy(info: dict[str, Any]) -> str:
    return f"{text.percent(info['value'])} of {info['num_images']} test images"


def _note_agreement(info: dict[str, Any]) -> str:
    rms = text.percent(info["relative_rms"])
    return f"{text.percent(info['agreement'])} as in exact arithmetic, logits {rms} of their spread apart"


def _runtime(setting: Setting) -> str:
    """Who runs the network before it is served."""
    return "PyTorch" if setting.model.graph is None else "ONNX Runtime"


def _count_same(
    url: str, target: Subject, encoded: Subject, pairs: Iterable[tuple[np.ndarray[Any, Any], bytes]]
) -> int:
    """Of how many images the pixels sent to one model and the file sent to the other give the same logits.

    One at a time: in a larger batch an engine may add in another order.
    """
    from temper.client.client import Client
    from temper.client.errors import InvalidRequest, NonFiniteOutput

    with Client(url) as client:

        def is_same(image: np.ndarray[Any, Any], file: bytes) -> bool:
            try:
                found = client.infer_encoded(encoded.model, [file], version=str(encoded.version))
                return np.array_equal(found, client.infer(target.model, image[None], version=str(target.version)))
            except (InvalidRequest, NonFiniteOutput):  # no image for the decoder, and no answer
                return False

        return sum(is_same(*pair) for pair in pairs)


def _note_parity(info: dict[str, Any]) -> str:
    rms, same = text.fine_percent(info["relative_rms"]), info["num_same_encoded"]
    return (
        f"{text.percent(info['agreement']['value'])} as by torchvision and {info['runtime']} by the recipe; "
        f"logits {rms} of their spread apart"
        + ("" if same is None else f"; {same} of {info['num_images']} files as they are the same to the bit")
    )


def _note_load(info: dict[str, Any]) -> str:
    return f"at best {text.number(max(run['throughput_ips'] for run in info['runs']))} images/s"


def _note_race(info: dict[str, Any]) -> str:
    if trouble := info["closed_trouble"] or info["open_trouble"]:
        return str(trouble)
    pairs, p99 = info["throughput_ips"], info["p99_ms"]
    ratio = (
        [f"{text.times(float(np.exp(np.log([b / a for a, b in pairs]).mean())))} the throughput"] if pairs else []
    )
    return ", ".join([*ratio, *([f"p99 {np.mean(p99):.1f} ms"] if p99 else [])])


def _note_attack(info: dict[str, Any]) -> str:
    if (success := info["success"]) is not None:
        return f"wrong here alone: {text.percent(success['value'])} of {success['num_images']} images"
    accuracy = info["accuracy"]
    left = f"{text.percent(accuracy['value'])} of {accuracy['num_images']} images"
    return f"{left} still right after {info['num_queries']:,} queries"


def _note_corruptions(info: dict[str, Any]) -> str:
    return f"{text.percent(info['accuracy']['value'])} right, {len(info['cells'])} kinds and severities"
