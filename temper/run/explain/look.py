"""What every look shares: the recipe's stages, the images, and the networks that were run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from temper.builder.built import Built
from temper.builder.compress.variant import VariantConfig
from temper.builder.contract import GRAPH_FILE, TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.engines.build import pick_engine
from temper.builder.engines.kind import ENGINES
from temper.builder.errors import BuilderError
from temper.builder.explain.activations import RunsIn, pick_runs_in
from temper.builder.explain.config import Part
from temper.builder.network.stage import Setting
from temper.builder.store.artifacts import Artifact, Store
from temper.client.errors import ClientError
from temper.client.stats import compare_paired, proportion
from temper.report.explained import Note
from temper.report.measured import Estimate, Paired, Share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.progress import Display
    from temper.run.recipe import Recipe

ORIGINAL, INITIAL = "float32", "before finetuning"
_FEW = 64
"""The fewest images that the intervals of similarities and ranks were tested with."""
Kind = Literal["original", "initial", "variant", "snapshot"]
Progress = Callable[[int, int], None]
Make = Callable[[Path, Progress], Mapping[str, Any]]


@dataclass(frozen=True)
class Network:
    """One network that was run on the images."""

    name: str
    """As in the explanation."""
    kind: Kind
    """Which network it is."""
    graph: Artifact
    """Holds model.onnx."""
    run: Artifact
    """What `run_network` of the builder left: its answers, and what its blocks gave."""
    epoch: int | None = None
    """Of a snapshot."""

    @property
    def variant(self) -> str | None:
        """The variant that it is; None for one that the recipe does not name."""
        return self.name if self.kind == "variant" else None

    @property
    def answers(self) -> NDArray[np.int64]:
        """Its answers to the test images."""
        from temper.builder.explain.networks import ANSWERS_FILE

        answers: NDArray[np.int64] = np.load(self.run.path / ANSWERS_FILE)
        return answers


class Look:
    """One look into a recipe: its stages, and what is said of them."""

    def __init__(
        self, recipe: Recipe, built: Sequence[Built], folder: Path, display: Display, chosen: Sequence[Built]
    ) -> None:
        """Picks what runs the graphs, and writes the images.

        Args:
            recipe: The recipe.
            built: All its variants.
            folder: The run's folder, with its stages.
            display: Where progress is shown.
            chosen: The variants to look at; none is an ensemble.
        """
        self.recipe, self.folder, self.display, self.chosen = recipe, folder, display, chosen
        self.config = recipe.look
        self.built = {one.variant: one for one in built}
        self.store = Store(folder / "stages")
        self.setting = Setting(data=recipe.data, model=recipe.model, train=recipe.train)
        self.engine = pick_engine(recipe.engine).config
        self.notes: list[Note] = []
        first = next(one for one in built if one.snapshots)
        assert first.weights is not None, "what has a graph was made from a network"
        self.data, self.weights, self.original = first.data, first.weights, first.snapshots[0].graph
        self.runs_in: RunsIn = pick_runs_in(self.engine, onnx.load(self.original.path / GRAPH_FILE))
        if self.runs_in.note:
            self.note(self.runs_in.note)
        self.images = self._write_images()
        self.labels: NDArray[np.int64] = np.load(self.images.path / TEST_LABELS_FILE)
        if (count := self.images.info["num_images"]) < _FEW:
            self.note(f"{count} test images: intervals from fewer than {_FEW} are too narrow")
        if (missing := self.images.info["num_missing"]) > 0:
            self.note(
                f"{missing} classes have none of the {self.images.info['num_train']} training images, so no probe "
                "and no head of selected features answers them; a larger num_train helps"
            )

    def stage(
        self,
        name: str,
        label: str,
        config: Mapping[str, Any],
        inputs: Sequence[Artifact],
        make: Make,
        *,
        code: Sequence[str],
        libraries: Sequence[str] = (),
        runs: bool = False,
        note: Callable[[Mapping[str, Any]], str] = lambda info: "",
    ) -> Artifact:
        """Runs a stage; `runs` says that it runs graphs, whose answers depend on where."""
        kind = ENGINES.get(self.engine.kind)
        if runs:
            config = {**config, "runs_in": self.runs_in.title, "engine": self.engine, "on": kind.machine_key()}
            code = (*code, type(kind).__module__)
            libraries = (*libraries, "onnx", "onnxruntime-gpu", *kind.libraries(self.engine))
        with self.display.stage(label) as shown:
            made = self.store.run(
                name, config, inputs, lambda folder: dict(make(folder, shown)), code=code, libraries=libraries
            )
            shown.reused, shown.note = made.reused, note(made.info)
        return made

    def note(self, words: str, part: Part | None = None, variant: str | None = None) -> None:
        """Keeps what was left out or is not valid, once; of all parts and variants when none is given."""
        found = Note(part=part, variant=variant, words=words)
        if found not in self.notes:
            self.notes.append(found)

    @contextmanager
    def leaving_out(self, what: str, part: Part, variant: str | None = None) -> Iterator[None]:
        """Notes why a look could not be taken, and goes on with the others."""
        try:
            yield
        except (BuilderError, ClientError) as error:
            self.note(f"{what}: left out: {error}", part, variant)

    def _write_images(self) -> Artifact:
        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.images import write_images

            return write_images(self.setting.data, self.data.path, folder, progress, **sizes)

        sizes = {name: getattr(self.config, name) for name in ("num_images", "num_train", "seed")}
        return self.stage(
            "explain_images",
            "images to look with",
            sizes,
            [self.data],
            make,
            code=("temper.builder.explain.images",),
            libraries=self.setting.data.libraries,
            note=lambda info: f"{info['num_images']} test, {info['num_train']} training images",
        )

    def test_images(self) -> NDArray[np.uint8]:
        """The test images that are looked at, mapped from their file."""
        images: NDArray[np.uint8] = np.load(self.images.path / TEST_IMAGES_FILE, mmap_mode="r")
        return images

    def networks(self) -> list[Network]:
        """Runs the original, then the one before finetuning, the variants, and the snapshots of its training.

        Raises:
            BuilderError: The original does not run; of another one it is noted.
        """
        found, parts = [self._run(ORIGINAL, "original", self.original)], set(self.config.parts)
        wanted: list[tuple[str, Kind, Artifact | None, int | None]] = []
        if "representation" in parts and self.recipe.train.epochs + self.recipe.train.head_epochs > 0:
            wanted.append((INITIAL, "initial", None, None))
        if {"representation", "attributions"} & parts:
            compared = [one for one in self._compared() if not self.is_original(one.variant)]
            wanted += [(one.variant, "variant", one.snapshots[-1].graph, None) for one in compared]
        if "representation" in parts:
            epochs = self.weights.info.get("snapshots", ())
            wanted += [(f"epoch {epoch}", "snapshot", None, epoch) for epoch in epochs]
        for name, kind, graph, epoch in wanted:
            with self.leaving_out(name, "representation", name if kind == "variant" else None):
                found.append(self._run(name, kind, self._export(epoch) if graph is None else graph, epoch))
        return found

    def _compared(self) -> list[Built]:
        """The variants to look at, and those that they are compared with, in the recipe's order."""
        names = {one.variant for one in self.chosen} | {self.baseline(one) for one in self.chosen}
        return [one for name, one in self.built.items() if name in names and one.snapshots]

    def baseline(self, one: Built) -> str:
        """The variant that one is compared with."""
        return self.variant(one).against or self.recipe.variants[0].name

    def _export(self, epoch: int | None) -> Artifact:
        """The graph before finetuning, or after some of its epochs."""

        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.network.export import export_onnx
            from temper.builder.network.stage import initial_network, labels_of, open_snapshot

            if epoch is None:
                network = initial_network(self.setting, len(labels_of(self.data)))
            else:
                network = open_snapshot(self.setting, self.data, self.weights, epoch)
            mean, std = self.setting.data.normalization
            size = self.setting.data.image_size
            export_onnx(network, folder / GRAPH_FILE, image_size=size, mean=mean, std=std)
            return {}

        return self.stage(
            "snapshot",
            f"{INITIAL if epoch is None else f'epoch {epoch}'}: export to ONNX",
            {"epoch": epoch, "model": self.setting.model, "seed": self.setting.train.seed},
            [self.data, self.weights],
            make,
            code=("temper.builder.network.stage", "temper.builder.network.export"),
            libraries=("torch", "torchvision", "onnx"),
        )

    def _run(self, name: str, kind: Kind, graph: Artifact, epoch: int | None = None) -> Network:
        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.networks import run_network

            return run_network(graph.path / GRAPH_FILE, self.images.path, self.runs_in, folder, progress)

        run = self.stage(
            "features",
            f"{name}: what its blocks give",
            {},
            [graph, self.images],
            make,
            code=("temper.builder.explain.networks",),
            runs=True,
        )
        if run.info["note"]:
            words = f"{name}: {run.info['note']}, so its blocks are read in {run.info['runs_in']}"
            self.note(words, "representation", name if kind == "variant" else None)
        return Network(name, kind, graph, run, epoch)

    def is_original(self, name: str) -> bool:
        """Whether a variant is the finetuned network as it is."""
        snapshots = self.built[name].snapshots
        return bool(snapshots) and snapshots[-1].graph.digest == self.original.digest

    def variant(self, one: Built) -> VariantConfig:
        """What the recipe says of a variant."""
        return next(variant for variant in self.recipe.variants if variant.name == one.variant)


def graphs_of(built: Sequence[Built]) -> dict[str, str]:
    """The digests of the variants' graphs; an ensemble has none."""
    return {one.variant: one.snapshots[-1].graph.digest for one in built if one.snapshots}


def interval(found: Sequence[float]) -> Estimate:
    """A figure with the ends of its interval."""
    value, low, high = found
    return Estimate(value=value, low=low, high=high)


def share(hits: NDArray[np.bool_]) -> Share:
    """A share of images with its interval."""
    return Share.of(proportion(hits))


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """The second minus the first, on the same images."""
    return Paired.of(compare_paired(first, second).to_json())
