"""What single measurements give, as report.json holds it: shares, load runs, attacks, and comparisons of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self


@dataclass(frozen=True, kw_only=True)
class Record:
    """The base of all that report.json consists of."""

    __pydantic_config__: ClassVar[dict[str, bool]] = {"use_attribute_docstrings": True, "allow_inf_nan": False}

    @classmethod
    def of(cls, figures: Mapping[str, Any], **others: Any) -> Self:
        """Makes one of a stage's figures, JSON objects on one level; those without a field here are left out.

        Args:
            figures: The figures, by name.
            others: Fields that come on top of them.
        """
        return cls(**{name: figures[name] for name in cls.__dataclass_fields__ if name in figures} | others)


@dataclass(frozen=True, kw_only=True)
class Share(Record):
    """A share of images with its 95 % interval (Wilson)."""

    value: float
    """The share, 0 to 1."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    num_images: int
    """Images counted."""


@dataclass(frozen=True, kw_only=True)
class Accuracy(Share):
    """The share of the test images that the served model answers right."""

    errors: dict[str, int]
    """Images whose answer was no score, by kind; each counts as wrong."""
    retries: dict[str, int]
    """Requests that were sent again, by the kind of error that made it necessary."""


@dataclass(frozen=True, kw_only=True)
class ClassShare(Share):
    """The share among the images of one class."""

    label: str
    """The class's name."""


@dataclass(frozen=True, kw_only=True)
class Paired(Record):
    """Two variants, or one before and after a step, judged on the same images; second minus first."""

    difference: float
    """Of the shares, -1 to 1."""
    low: float
    """Lower end of the difference's 95 % interval."""
    high: float
    """Upper end of the difference's 95 % interval."""
    p_value: float
    """Exact two-sided McNemar test of "no difference"."""
    num_images: int
    """Images judged by both."""
    num_only_first: int
    """Images that only the first gets right."""
    num_only_second: int
    """Images that only the second gets right."""


@dataclass(frozen=True, kw_only=True)
class Latency(Record):
    """Latencies of the answered requests of a load run, in ms."""

    p50: float
    """The median."""
    p90: float
    """The 90th percentile."""
    p99: float
    """The 99th percentile."""
    p999: float
    """The 99.9th percentile."""
    mean: float
    """The mean."""
    max: float
    """The longest."""


@dataclass(frozen=True, kw_only=True)
class ServerTimes(Record):
    """Triton's own means over a load run's window."""

    queue_ms: float
    """Waiting in the queue, per request."""
    compute_input_ms: float
    """Preparing the input, per request."""
    compute_infer_ms: float
    """Running the model, per request."""
    compute_output_ms: float
    """Preparing the output, per request."""
    batch_size: float
    """Images per execution."""


@dataclass(frozen=True, kw_only=True)
class LoadRun(Record):
    """One load run; everything but the throughput is about requests, not images."""

    mode: Literal["closed", "open"]
    """`closed`: a fixed number of requests in flight; `open`: Poisson arrivals."""
    model: str
    """The model's name."""
    version: str
    """The version that was asked."""
    concurrency: int | None
    """Requests in flight; null in the open loop."""
    rate_rps: float | None
    """Mean arrival rate in requests per second; null in the closed loop."""
    batch_size: int
    """Images per request."""
    throughput_ips: float
    """Images answered per second of the measured window."""
    completed: int
    """Requests answered."""
    errors: dict[str, int]
    """Requests that failed, by kind."""
    reasons: dict[str, str] = field(default_factory=dict)
    """What was said of the first of each kind, where something was."""
    shed: int
    """Requests that the server refused because of its load."""
    lost: int
    """Requests that were sent, or may have been, and whose answer never came."""
    latency_ms: Latency | None
    """From the call (closed loop) or the scheduled time (open loop) to the answer; null without an answer."""
    longest_s: float
    """The longest that any answer took, in seconds; 0 when there was none."""
    server: ServerTimes | None
    """Triton's own times; null when the server could not be asked."""
    duration_s: float
    """Length of the measured window in seconds."""
    num_processes: int
    """Processes that made the load."""
    late_share: float | None
    """Open loop: share of requests sent more than 1 ms after their scheduled time."""
    send_lag_p99_ms: float | None
    """Open loop: 99th percentile of how long after its scheduled time a request was sent."""
    interrupted: str | None
    """Why the run was cut short, in one line; null when it was not."""
    stopped_by_user: bool = False
    """Whether Ctrl-C cut it short."""
    shed_share: float
    """Share of the requests that were shed, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Record):
    """Robust accuracy when an image may cost so many queries."""

    num_queries: int
    """Queries per image."""
    accuracy: float
    """The share of images still right, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class QueriesToSuccess(Record):
    """Queries until an image was fooled, over the fooled ones."""

    median: float
    """The median."""
    mean: float
    """The mean."""


@dataclass(frozen=True, kw_only=True)
class Distance(Record):
    """How near the nearest misclassified image was that was sent for each, in the budget's norm, units of 1/255.

    No attack goes on once an image is fooled within the budget, so what lies deep inside of it is not looked for.
    """

    median: float
    """The median."""
    mean: float
    """The mean."""
    num_images: int
    """Images for which a misclassified one was sent, within the budget or not."""


@dataclass(frozen=True, kw_only=True)
class Picture(Record):
    """One image that fooled the model; its files are named relative to the report's folder."""

    index: int
    """Its index among the test images."""
    label: str
    """The true class."""
    answer: str
    """The class that the server answered."""
    num_queries: int
    """Queries until then."""
    original: str
    """PNG: the image before the attack."""
    adversarial: str
    """PNG: exactly what the server misjudged."""
    difference: str
    """PNG: the difference of the two, amplified."""

    @property
    def files(self) -> dict[str, str]:
        """The files by what they show."""
        return {"original": self.original, "adversarial": self.adversarial, "difference": self.difference}


@dataclass(frozen=True, kw_only=True)
class Confusion(Record):
    """Images of one class that an attack made the model take for another."""

    label: str
    """The true class."""
    answer: str
    """The class that the server answered."""
    num_images: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Attack(Record):
    """One attack on one variant."""

    attack: str
    """The attack's name in the recipe."""
    norm: str
    """The budget's norm."""
    epsilon: float
    """The budget in units of 1/255."""
    max_queries: int
    """Queries that an image may cost."""
    seed: int
    """Decides the images and every random draw."""
    clean_accuracy: Share
    """Without attack, on the same images."""
    per_class: tuple[ClassShare, ...]
    """Robust accuracy by class."""
    pairs: tuple[Confusion, ...] = ()
    """The most frequent confusions, at most 10."""
    num_queries: int
    """Queries of the attack in all."""
    errors: dict[str, int]
    """Images whose answer was no score, by kind; none of them is robust."""
    retries: dict[str, int]
    """Requests that were sent again, by the kind of error that made it necessary."""
    stuck: float = 0.0
    """Share of the queries that left the attack nothing to follow: equal scores, or a gradient that was zero."""
    queries_to_success: QueriesToSuccess | None
    """Null when no image was fooled."""
    distance: Distance | None = None
    """Null when nothing that was sent was misclassified, or by an older version that did not keep it."""
    queries_per_s: float
    """Queries per second."""
    duration_s: float
    """Seconds of the attack."""
    curve: tuple[CurvePoint, ...]
    """Robust accuracy over the queries."""
    gallery: tuple[Picture, ...]
    """Some of the images that fooled the model."""
    accuracy: float
    """Robust accuracy: the share of images right before and after the attack, 0 to 1."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end of its 95 % interval."""
    num_images: int
    """Images attacked."""

    @property
    def key(self) -> tuple[str, str, float]:
        """What tells it from the variant's other attacks: name, norm, epsilon."""
        return self.attack, self.norm, self.epsilon

    @property
    def share(self) -> Share:
        """The robust accuracy with its interval."""
        return Share(value=self.accuracy, low=self.low, high=self.high, num_images=self.num_images)


@dataclass(frozen=True, kw_only=True)
class Differential(Attack):
    """An attack that hunts for what a reference still gets right; no other image is fooled by it.

    What it leaves is no robustness: only what both get right without attack is attacked, and counts as right.
    """

    reference: str
    """The variant that it compares with."""
    success: Share
    """Of those images, the share for which one was found that the reference gets right and this variant wrong."""
    reference_queries: int
    """How often the reference was asked, in all."""


@dataclass(frozen=True, kw_only=True)
class PairedAttack(Paired):
    """One attack on two variants, on the same images."""

    attack: str
    """The attack's name in the recipe."""
    norm: str
    """The budget's norm."""
    epsilon: float
    """The budget in units of 1/255."""
    masked: str | None = None
    """Why the attack saw only a mask of one of them, so that the difference says nothing; null when it did not."""

    @property
    def key(self) -> tuple[str, str, float]:
        """Name, norm and epsilon."""
        return self.attack, self.norm, self.epsilon


@dataclass(frozen=True, kw_only=True)
class Mask(Record):
    """An attack that found less than there was: gradients or scores are masked."""

    attack: str
    """The attack's name in the recipe."""
    norm: str
    """The budget's norm."""
    epsilon: float
    """The budget in units of 1/255."""
    evidence: str
    """What shows it, in words with figures."""

    @property
    def key(self) -> tuple[str, str, float]:
        """What tells the attack from the variant's others."""
        return self.attack, self.norm, self.epsilon


@dataclass(frozen=True, kw_only=True)
class WorstCase(Share):
    """The share of images right before and after every attack within a budget."""

    norm: str
    """The budget's norm."""
    epsilon: float
    """The budget in units of 1/255."""
    attacks: tuple[str, ...]
    """The attacks behind it, those with a smaller budget among them."""
    per_class: tuple[ClassShare, ...]
    """The same by class."""
    pairs: tuple[Confusion, ...] = ()
    """The most frequent confusions under all of these attacks, at most 10; an image counts once in each."""
    doubt: str | None
    """Why a stronger attack may leave much less; null when nothing speaks for it."""

    @property
    def budget(self) -> tuple[str, float]:
        """Norm and epsilon."""
        return self.norm, self.epsilon


@dataclass(frozen=True, kw_only=True)
class PairedWorstCase(Paired):
    """The worst cases of two variants, on the same images."""

    norm: str
    """The budget's norm."""
    epsilon: float
    """The budget in units of 1/255."""
    doubt: str | None
    """Why the difference is no answer; null when it is."""

    @property
    def budget(self) -> tuple[str, float]:
        """Norm and epsilon."""
        return self.norm, self.epsilon


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """A figure with its 95 % interval: by resampling the images, or from how much each of them moves it."""

    value: float
    """The figure."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


@dataclass(frozen=True, kw_only=True)
class CorruptedShare(Share):
    """The share of the images of one kind and severity of corruption that are answered right."""

    kind: str
    """One of the 15 kinds of ImageNet-C."""
    severity: int
    """1 to 5."""


@dataclass(frozen=True, kw_only=True)
class Corruptions(Record):
    """Accuracy on corrupted images."""

    seed: int
    """Decides the images and every random draw."""
    clean_accuracy: Share
    """On the same images, not corrupted."""
    accuracy: Estimate
    """Mean over kinds and severities."""
    cells: tuple[CorruptedShare, ...]
    """By kind, and in each by severity."""
    errors: dict[str, int]
    """Answers that were no score, by kind; each counts as wrong."""
    retries: dict[str, int]
    """Requests that were sent again, by the kind of error that made it necessary."""
    images_per_s: float
    """Corrupted images answered per second."""
    duration_s: float
    """Seconds that it took."""

    @property
    def num_images(self) -> int:
        """Corrupted images answered."""
        return sum(cell.num_images for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class PairedCorruptions(Record):
    """A variant against the first one, on the same corrupted images."""

    mce: Estimate | None
    """Mean corruption error in %: 100 is the first variant's, above is worse; null where that one errs nowhere."""
    relative_mce: Estimate | None
    """The same of the errors that corruption adds to those on clean images; null where it adds none."""
    difference: Estimate
    """Of the mean accuracies on corrupted images, -1 to 1."""
    corruption_errors: dict[str, float | None]
    """By kind, in %; null where the first variant errs nowhere, so that the kind is left out of `mce`."""
    num_images: int
    """Images, each of them in every kind and severity."""
