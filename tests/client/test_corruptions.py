"""Accuracy on corrupted images: the library's draws, the measurement through the seam, the comparison of two."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.corruptions import (
    CorruptionResult,
    CorruptionsConfig,
    compare_corruptions,
    evaluate_corrupted,
)
from temper.client.corruptions.config import KINDS
from temper.client.corruptions.library import corrupt_image, load_library
from temper.client.corruptions.result import Vectors
from temper.client.corruptions.worker import Batch, Corrupters
from temper.client.errors import ClientError, ServerUnavailable
from temper.client.stats import bootstrap_mean

pytestmark = pytest.mark.slow
Digits = Any  # the fixture's class in conftest.py
Images = npt.NDArray[np.uint8]
CONFIG = CorruptionsConfig(
    kinds=("impulse_noise", "contrast"), severities=(5, 1), num_images=40, batch_size=16, num_processes=1
)


def enlarged(digits: Digits) -> Images:
    """The digits at 32x32, as small as the library takes."""
    images: Images = digits.images.repeat(2, axis=1).repeat(2, axis=2)
    return images


class Seam:
    """The digits' endpoint for 32x32, which fails after some requests or has no score for some images, if told."""

    def __init__(self, digits: Digits, *, fail_after: int | None = None, broken: int = 0) -> None:
        """Answers everything, unless told otherwise."""
        self._endpoint = digits.endpoint(fail_after=fail_after)
        self._broken = broken
        self.batch_sizes = self._endpoint.batch_sizes
        self.most_in_flight = 0
        self._in_flight = 0

    async def infer(self, images: Images) -> npt.NDArray[np.float32]:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        scores: npt.NDArray[np.float32] = await self._endpoint.infer(images[:, ::2, ::2])
        await asyncio.sleep(0.001)
        self._in_flight -= 1
        scores[: self._broken] = np.nan
        return scores


async def run(digits: Digits, seam: Seam, config: CorruptionsConfig = CONFIG, **others: Any) -> CorruptionResult:
    return await evaluate_corrupted(seam.infer, enlarged(digits), digits.labels, config, **others)


def test_every_kind_and_severity_is_drawn_by_seed_and_image_alone() -> None:
    row, column = np.mgrid[:32, :32, :3][:2]
    first, second = ((128 + 90 * np.sin(row / 5) * np.cos(column / size)).astype(np.uint8) for size in (4, 7))
    for kind in KINDS:
        changes = []
        for severity in (1, 5):
            np.random.seed(severity)
            before = str(np.random.get_state())
            corrupted = corrupt_image(first, 0, kind, severity, 7)
            assert str(np.random.get_state()) == before
            corrupt_image(second, 1, kind, severity, 7)
            assert np.array_equal(corrupt_image(first, 0, kind, severity, 7), corrupted), kind
            assert corrupted.dtype == np.uint8 and corrupted.shape == first.shape
            changes.append(float(np.abs(corrupted.astype(int) - first).mean()))
        assert 0 < changes[0] < changes[1], kind
    for kind in ("gaussian_noise", "impulse_noise", "glass_blur"):  # numpy's generator, a new one, numba's
        drawn = {corrupt_image(first, index, kind, 3, seed).tobytes() for index, seed in ((0, 7), (1, 7), (0, 8))}
        assert len(drawn) == 3, kind


async def test_result_does_not_depend_on_batches_and_interruptions(digits: Digits, tmp_path: Path) -> None:
    seam, seen = Seam(digits), list[tuple[int, int]]()
    whole = await run(digits, seam, progress=lambda *at: seen.append(at))
    vectors = whole.vectors
    assert vectors.correct.shape == (2, 2, 40) and seen[0] == (0, 160) and seen[-1] == (160, 160)
    assert seam.most_in_flight <= CONFIG.concurrency and max(seam.batch_sizes) == 16
    images = enlarged(digits)[whole.indices]
    for row, kind in enumerate(CONFIG.kinds):
        for column, severity in enumerate(CONFIG.severities):
            corrupted = [
                corrupt_image(image, index, kind, severity, 0)
                for image, index in zip(images, whole.indices.tolist(), strict=True)
            ]
            scores = digits.endpoint().scores(np.stack(corrupted)[:, ::2, ::2])
            assert np.array_equal(
                scores.argmax(axis=1) == digits.labels[whole.indices], vectors.correct[row, column]
            )
    cells = {(cell["kind"], cell["severity"]): cell["value"] for cell in whole.cells()}
    strong, weak = (sum(cells[kind, severity] for kind in CONFIG.kinds) for severity in CONFIG.severities)
    assert strong < weak
    assert whole.accuracy["value"] == pytest.approx(np.mean(list(cells.values())))

    changed = CorruptionsConfig(**{**vars(CONFIG), "batch_size": 7, "concurrency": 1})
    with pytest.raises(
        ServerUnavailable, match="corruptions: [1-3] of 4 kinds and severities were finished; run it"
    ):
        await run(digits, Seam(digits, fail_after=6 + 15), changed, checkpoints=tmp_path)
    rest, said = Seam(digits), list[str]()
    resumed = await run(digits, rest, checkpoints=tmp_path, say=said.append)
    assert sum(rest.batch_sizes) < 40 + 160 and re.search(
        "going on from .*: [1-3] kinds and severities are", said[0]
    )
    assert np.array_equal(resumed.vectors.correct, vectors.correct) and resumed.vectors.inputs == vectors.inputs
    assert list(tmp_path.iterdir()) == []
    vectors.save(tmp_path / "saved")
    assert compare_corruptions(Vectors.load(tmp_path / "saved"), resumed.vectors).mce == {
        "value": 100.0,
        "low": 100.0,
        "high": 100.0,
    }


async def test_answers_without_a_score_are_wrong_and_counted(digits: Digits) -> None:
    config = CorruptionsConfig(kinds=("brightness",), severities=(1,), num_images=20, batch_size=10)
    result = await run(digits, Seam(digits, broken=2), config)
    assert not result.vectors.correct[0, 0, [0, 1, 10, 11]].any() and result.vectors.correct.any()
    assert result.errors == {"nonfinite_output": 4 + 4}


async def test_process_that_dies_ends_the_measurement_in_one_line(digits: Digits) -> None:
    images = enlarged(digits)[:1]
    batch = Batch(images=images, indices=np.arange(1), kind="fog", severity=1, seed=0)
    with Corrupters(1) as corrupters:
        corrupters.kill()
        with pytest.raises(ClientError, match="a process that corrupts images ended .exit status -9.; is the"):
            await corrupters.corrupt(batch)


async def test_images_that_are_too_small_are_refused(digits: Digits) -> None:
    with pytest.raises(ValueError, match="images: got 16x16 pixels, expected at least 32 on each side"):
        await evaluate_corrupted(digits.endpoint().infer, digits.images, digits.labels, CONFIG)


def test_missing_library_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(
        ClientError, match=r"^corruptions: .* cannot be imported .*; install .* 'temper\[corruptions\]'$"
    ):
        load_library()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kinds", ("fogg",), "kinds: got fogg, expected some of gaussian_noise, shot_noise, .*, jpeg_compression"),
        ("kinds", (), "kinds: got none, expected some of"),
        ("kinds", ("fog", "snow", "fog"), "kinds: got fog twice"),
        ("severities", (1, 6), "severities: got 6, expected some of 1, 2, 3, 4, 5"),
        ("num_images", 0, "num_images: got 0, expected at least 1"),
        ("batch_size", 0, "batch_size: got 0"),
        ("num_processes", 0, "num_processes: got 0, expected 1 to 64"),
        ("seed", -1, "seed: got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CorruptionsConfig(**{field: value})  # type: ignore[arg-type]


def vectors(wrong: list[list[list[int]]], clean_wrong: list[int], **others: Any) -> Vectors:
    """Of four images, two kinds and two severities: which images are wrong, by kind and severity."""
    correct = np.ones((2, 2, 4), dtype=np.bool_)
    for row, columns in enumerate(wrong):
        for column, indices in enumerate(columns):
            correct[row, column, indices] = False
    clean = np.ones(4, dtype=np.bool_)
    clean[clean_wrong] = False
    named: dict[str, Any] = {"kinds": ("fog", "snow"), "severities": (1, 5), "inputs": "a"}
    return Vectors(correct=correct, clean=clean, **{**named, **others})


def test_mean_corruption_error_by_hand() -> None:
    baseline = vectors(
        [[[0], [0, 1, 2]], [[0], [0]]], [0]
    )  # 4 and 2 errors, of these 2 and 0 beyond the clean one
    variant = vectors([[[0, 1], [0, 1, 2, 3]], [[], [0]]], [])  # 6 and 1 errors, no clean one
    compared = compare_corruptions(baseline, variant)
    assert compared.corruption_errors == {"fog": 150.0, "snow": 50.0}
    assert compared.mce is not None and compared.mce["value"] == pytest.approx(100)
    assert compared.mce["low"] < 100 < compared.mce["high"]
    # Beyond the clean errors: 6 of fog against 2; snow adds none to the baseline's, and does not count.
    assert compared.relative_mce is not None and compared.relative_mce["value"] == pytest.approx(300)
    assert compared.difference["value"] == pytest.approx(-1 / 16)
    assert compared.difference["low"] <= -1 / 16 <= compared.difference["high"]


def test_kind_without_an_error_of_the_baseline_does_not_count() -> None:
    compared = compare_corruptions(vectors([[[0], [0]], [[], []]], []), vectors([[[0], []], [[1], [1]]], []))
    assert compared.corruption_errors == {"fog": 50.0, "snow": None}
    assert compared.mce is not None and compared.mce["value"] == 50
    flawless = vectors([[[], []], [[], []]], [])
    assert (
        compare_corruptions(flawless, flawless).mce is compare_corruptions(flawless, flawless).relative_mce is None
    )


def test_what_was_not_measured_alike_is_not_compared(tmp_path: Path) -> None:
    one = vectors([[[], []], [[], []]], [])
    for others, message in (
        (
            {"inputs": "b"},
            "the baseline was measured on other images, labels, another seed or with other versions",
        ),
        (
            {"kinds": ("fog", "frost")},
            "kinds: the baseline has fog, snow, expected fog, frost; measure both alike",
        ),
        ({"severities": (1, 4)}, "severities: the baseline has 1, 5, expected 1, 4; measure both alike"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_corruptions(one, vectors([[[], []], [[], []]], [], **others))
    with pytest.raises(ValueError, match="corruptions.npz: no such file, expected a folder that `temper corrupt"):
        Vectors.load(tmp_path)
    (tmp_path / "corruptions.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="corruptions.npz: is no corruptions.npz of `temper corrupt --save`"):
        Vectors.load(tmp_path)


def test_interval_of_a_mean_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap_mean(rng.normal(3.0, 1.0, 60)) for _ in range(200)]
    held = Counter(estimate["low"] <= 3.0 <= estimate["high"] for estimate in found)
    assert 180 <= held[True] <= 198
