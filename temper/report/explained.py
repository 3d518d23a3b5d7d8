"""explain.json, typed: what a network's layers know, what a compression did to them, and which layer is to blame.

As `model.py` for the report: JSON is what `dataclasses.asdict` makes of these, `schema/explain.json` describes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from temper.report.measured import Estimate, Paired, Record, Share

FORMAT: Literal[1] = 1
"""Raised when a key goes or changes its meaning; a further key is no other format, and needs a default."""


@dataclass(frozen=True, kw_only=True)
class LayerBlame(Record):
    """One layer of a quantised graph: what reaches it as noise, and what it costs."""

    name: str
    """Its node in the ONNX graph, as `keep_high` takes it."""
    op: str
    """Its operator."""
    quantized: bool
    """False where it computes in float already; then nothing can be put back."""
    signal_to_noise_db: float | None
    """Signal to quantisation noise of its output, in dB: 10 log10 of the activations' energy over that of
    the difference. Noise of earlier layers is part of it. Null where there is no noise at all, or no signal."""
    cosine: float | None
    """Cosine of the two outputs, the mean over the images; null without a signal."""
    share: Estimate | None
    """Share of the loss (see `Blame.loss`) that goes when this layer alone is put back to float; below 0 when it
    then grows, as errors can cancel. Over training images. Null where it is not quantised."""
    num_images: int
    """Training images that `share` was measured on."""
    clipped: float | None
    """Share of its input's values, as float32 has them, beyond the range that its scale allows."""
    range_used: float | None
    """The largest of its input's values over the range that its scale allows: far below 1, int8 is hardly used."""
    outlier: float | None
    """The largest value of the input's widest channel over the median of all channels', which share a scale."""
    outlier_channel: int | None
    """That channel."""
    num_dead: int
    """Channels of its output, after the ReLU that follows it, that were zero for every image and place."""
    num_channels: int
    """Channels of its output."""
    findings: tuple[str, ...]
    """What of that is wrong, in words; none where nothing is."""


@dataclass(frozen=True, kw_only=True)
class Mended(Record):
    """What putting some layers back to float gives."""

    keep_high: tuple[str, ...]
    """The layers, as `keep_high` in `quantize` takes them."""
    recovered: Estimate
    """Share of the loss that goes, over the images."""
    agreement: Share
    """Share of the images with float32's answer."""
    accuracy: Share
    """On the same images."""
    accuracy_change: Paired
    """Accuracy minus the compressed one's."""
    tried: bool
    """Whether it was quantised anew with `keep_high` and measured on all test images; else it is the quantised
    graph with these layers in float, on the test images of the blame."""
    latency_ms: float | None = None
    """Of one image in the engine, when it was tried: the median."""
    latency_ratio: Estimate | None = None
    """The same over the compressed one's: the median over rounds in which both were timed."""
    size_bytes: int | None = None
    """Size of its graph, when it was tried."""


@dataclass(frozen=True, kw_only=True)
class Blame(Record):
    """Which layers of a quantised variant the loss comes from."""

    variant: str
    """Its name."""
    precision: str
    """`int8` or `fp8`."""
    runs_in: str
    """What ran the compressed graph: the engine that serves it, or what stands in for it."""
    in_engine: bool
    """False when the engine's inner tensors cannot be read, and the graph's exact arithmetic was run."""
    note: str
    """Why, then; and anything else to know. Empty otherwise."""
    num_images: int
    """Test images that it was measured on."""
    num_search: int
    """Training images that the layers were ranked on, and the suggestion chosen."""
    num_activations: int
    """Of these, the images whose inner tensors were read."""
    tap_change: float
    """Root mean square of what reading the inner tensors changed in the logits, over their standard deviation: an
    engine does not fuse what it gives out."""
    loss: float
    """Mean squared difference of the logits from float32's, both less their mean over the classes, over the
    variance of float32's."""
    agreement: Share
    """Share of the images with float32's answer."""
    accuracy: Share
    """Of the compressed graph, on the same images."""
    accuracy_change: Paired
    """Accuracy minus that of its float32 counterpart."""
    layers: tuple[LayerBlame, ...]
    """In the graph's order."""
    suggestion: Mended | None
    """The fewest of the worst layers that recover nine tenths of the loss, or nearly what a quarter of all layers
    does: chosen by training images, measured on test images; or what was asked for. Null where nothing is to
    recover."""
    suggestion_note: str
    """Why there is no suggestion, or what to know of it."""
    snippet: str
    """The variant's steps with the suggestion, as a line of the recipe; empty without one."""


@dataclass(frozen=True, kw_only=True)
class Block(Record):
    """What one block's features hold: its output, averaged over the image."""

    name: str
    """`stem`, `layer1.0`, ... The last one's features are what the head reads."""
    num_features: int
    """Channels of its output."""
    num_dead: int
    """Of these, those that were the same for every image."""
    probe: Share | None
    """Accuracy on the test images of a linear classifier that was trained on the features of training images."""
    effective_rank: Estimate
    """Exponential of the entropy of the features' covariance spectrum (Roy and Vetterli, 2007)."""
    rank_limited: bool
    """True when there were too few images for the number of features, so that the rank is a lower bound."""


@dataclass(frozen=True, kw_only=True)
class NetworkView(Record):
    """One network, block by block."""

    name: str
    """A variant's name, `float32`, `before finetuning`, or `epoch N`."""
    kind: Literal["original", "initial", "variant", "snapshot"]
    """The finetuned network before any compression, the one before finetuning, a variant, or one of an epoch."""
    epoch: int | None = None
    """Epochs that a snapshot had been trained for."""
    runs_in: str
    """What gave out its blocks: the engine that serves, or what stands in for it."""
    accuracy: Share
    """Of its own answers to the test images, in process."""
    blocks: tuple[Block, ...]
    """From the stem to the last."""


@dataclass(frozen=True, kw_only=True)
class Similarity(Record):
    """Linear CKA between the blocks of two networks, on the same images."""

    first: str
    """The network of the rows."""
    second: str
    """The network of the columns."""
    rows: tuple[str, ...]
    """Blocks of the first."""
    columns: tuple[str, ...]
    """Blocks of the second."""
    num_images: int
    """Test images."""
    values: tuple[tuple[Estimate | None, ...], ...]
    """By row and column; null where a block's features are the same for every image. About 0 to 1: the unbiased
    estimate may be a little below 0."""


@dataclass(frozen=True, kw_only=True)
class CurveOfFeatures(Record):
    """Accuracy against the number of features that the head may read, chosen by one method."""

    method: str
    """How they were chosen."""
    num_features: tuple[int, ...]
    """Features kept, the fewest first."""
    accuracy: tuple[Share, ...]
    """On the test images, of a head that was trained anew on those features of the training images."""
    change: tuple[Paired, ...]
    """Accuracy minus that of a head that was trained anew on all features."""
    stability: Estimate | None
    """How much the choices on resampled images have in common, at a quarter of the features: 1 the same ones, 0 by
    chance (Nogueira, Sechidis, Brown, JMLR 18, 2018). Null for a method without a choice."""


@dataclass(frozen=True, kw_only=True)
class FeatureImportance(Record):
    """How much every feature that the head reads counts, by one method."""

    method: str
    """`activation`, `taylor`, `permutation` or `shapley`."""
    values: tuple[float, ...]
    """By feature."""


@dataclass(frozen=True, kw_only=True)
class Selection(Record):
    """Which features of the original network matter for its head."""

    num_train: int
    """Training images that they were chosen and heads trained on."""
    num_images: int
    """Test images."""
    importance: tuple[FeatureImportance, ...]
    """By method."""
    curves: tuple[CurveOfFeatures, ...]
    """By method."""
    note: str
    """What is not valid, and why; empty otherwise."""


@dataclass(frozen=True, kw_only=True)
class AttributionMaps(Record):
    """Where one network looks in one image."""

    network: str
    """The variant, or `float32` for the network before any compression."""
    answer: str
    """The class that it gives."""
    integrated_gradients: str
    """PNG file beside explain.json."""
    grad_cam: str
    """PNG file beside explain.json."""
    completeness_error: float
    """How far the sum of the integrated gradients is from the change of the class's logit, from the mean image to
    this one, over the range of this one's logits."""


@dataclass(frozen=True, kw_only=True)
class Attribution(Record):
    """One image that two variants answer differently."""

    index: int
    """The test image."""
    label: str
    """Its class."""
    image: str
    """PNG file beside explain.json."""
    maps: tuple[AttributionMaps, ...]
    """Of the two."""


@dataclass(frozen=True, kw_only=True)
class Note(Record):
    """What was left out or is not valid, and why."""

    part: str | None
    """The part that it is about; null when it is about all."""
    variant: str | None
    """The variant; null when it is about no single one."""
    words: str
    """It."""


@dataclass(frozen=True, kw_only=True)
class Explanation(Record):
    """What `temper explain` gives."""

    format: Literal[1]
    """Of this file."""
    recipe: str
    """The recipe's name."""
    created: str
    """When it began, to the minute, in UTC."""
    seconds: float
    """How long it took."""
    commit: str | None
    """Temper's commit; null when it ran from no checkout."""
    cpu: str
    """The CPU's model name."""
    versions: dict[str, str]
    """Versions of Python and of the libraries that a figure depends on."""
    config: dict[str, Any]
    """The recipe's `explain`, with its defaults."""
    graphs: dict[str, str]
    """Digests of all variants' graphs; what was found of the same ones is kept when less is asked for later."""
    variants: tuple[str, ...]
    """Those that were looked at."""
    notes: tuple[Note, ...]
    """What was left out or is not valid."""
    blames: tuple[Blame, ...]
    """Of every quantised variant."""
    networks: tuple[NetworkView, ...]
    """The original first."""
    similarities: tuple[Similarity, ...]
    """The original with itself first, then with others."""
    selection: Selection | None
    """Null when it was not asked for."""
    attributions: tuple[Attribution, ...]
    """Of images that two variants answer differently."""

    def to_json(self) -> dict[str, Any]:
        """Returns the explanation as JSON."""
        return dataclasses.asdict(self)
