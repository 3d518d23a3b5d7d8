"""What a build hands on: each published variant, the stages that made it, and its graph after every step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.contract import TEST_IMAGES_FILE, TEST_LABELS_FILE

if TYPE_CHECKING:
    from temper.builder.publish.entry import Published
    from temper.builder.store.artifacts import Artifact


@dataclass(frozen=True)
class StageReport:
    """What one stage of a variant did."""

    name: str
    """`data`, `weights`, a step of the compression, `export` or `engine`."""
    figures: dict[str, Any]
    """Its figures, as JSON."""
    reused: bool
    """True when nothing ran."""

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The variant as it was after one step: what the measurement of the steps runs."""

    step: str
    """The step, `float32` for the network before any."""
    graph: Artifact
    """Holds model.onnx."""
    flops: int
    """Two per multiply-add of the convolutions and linear layers, for one image."""
    num_parameters: int
    """Weights, biases and normalisations of the PyTorch network."""


@dataclass(frozen=True)
class Built:
    """One published variant, with what the workflow and the report need."""

    variant: str
    """The variant's name in the recipe."""
    model: str
    """Its model in the repository."""
    version: int
    """The version that was published."""
    engine: str
    """The kind of engine that runs it."""
    engine_reason: str
    """Why that one."""
    size_bytes: int
    """Size of the engine file, of all members' together for an ensemble."""
    path: Path
    """The version's folder in the repository."""
    reused: bool
    """True when the newest version already was exactly this."""
    served: int
    """The version that is served; another one makes this one a candidate."""
    data: Artifact
    """The images: test_images.npy, test_labels.npy, calibration_images.npy, labels.txt."""
    digest: str
    """Stands for everything that made this variant."""
    stages: list[StageReport] = field(default_factory=list)
    """Every stage, in order."""
    snapshots: list[Snapshot] = field(default_factory=list)
    """The graph before any step, then after each."""
    weight_bits: int | None = None
    """Bits that its int8 weights use, 7 or 8, of an ensemble the most of its members'; None when not int8."""
    jpeg: Published | None = None
    """The model that takes image files for it; None where the recipe wants none."""
    weights: Artifact | None = None
    """The finetuned network; None for an ensemble."""

    @property
    def test_images(self) -> Path:
        """uint8 [N, H, W, 3]; open it with `mmap_mode="r"`."""
        return self.data.path / TEST_IMAGES_FILE

    @property
    def test_labels(self) -> Path:
        """int64 [N]."""
        return self.data.path / TEST_LABELS_FILE
