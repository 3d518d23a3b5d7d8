"""What a defence makes of pixels, and what it leaves to chance."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from temper.backends.temper_defence.defences import bit_depth, defend, jpeg, random_resize, read_defences

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3)).astype(np.uint8)


@pytest.mark.parametrize("quality", [10, 75, 95])
def test_jpeg_is_what_pillow_writes_and_reads(quality: int) -> None:
    file = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(file, "JPEG", quality=quality)
    found = jpeg(IMAGES[0], [], quality=quality)
    np.testing.assert_array_equal(found, np.asarray(Image.open(file)))
    assert found.dtype == np.uint8 and not np.array_equal(found, IMAGES[0])


@pytest.mark.parametrize(
    ("bits", "given", "expected"),
    [
        (1, [0, 127, 128, 255], [0, 0, 255, 255]),
        (2, [0, 42, 43, 127, 128, 213, 255], [0, 0, 85, 85, 170, 255, 255]),
        (7, [0, 1, 2, 254, 255], [0, 0, 2, 255, 255]),
    ],
)
def test_values_go_to_the_nearest_level(bits: int, given: list[int], expected: list[int]) -> None:
    image = np.array(given, np.uint8).reshape(1, -1, 1)
    assert bit_depth(image, [], bits=bits).ravel().tolist() == expected
    assert len(np.unique(bit_depth(np.arange(256, dtype=np.uint8)[None, :, None], [], bits=bits))) == 2**bits


@pytest.mark.parametrize(
    ("draws", "size", "place"),
    [
        ([0.0, 0.0, 0.0], (10, 12), (0, 0)),
        ([0.0, 0.999, 0.999], (10, 12), (10, 12)),
        ([0.5, 0.5, 0.0], (15, 18), (3, 0)),
        ([1.0, 0.9, 0.9], (20, 24), (0, 0)),
    ],
)
def test_image_is_made_smaller_and_put_on_black(
    draws: list[float], size: tuple[int, int], place: tuple[int, int]
) -> None:
    found = random_resize(IMAGES[0], draws, smallest=0.5)
    assert found.shape == IMAGES[0].shape and found.dtype == np.uint8
    window = tuple(slice(at, at + side) for at, side in zip(place, size, strict=True))
    expected = Image.fromarray(IMAGES[0]).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[window], np.asarray(expected))
    found[window] = 0
    assert not found.any()


def test_every_image_of_every_request_has_draws_of_its_own() -> None:
    defences = read_defences('[{"random_resize": {"smallest": 0.5}}]')
    same = np.repeat(IMAGES[:1], 6, axis=0)
    generator = np.random.default_rng(1)
    first, second = (defend(same, defences, generator) for _ in range(2))
    assert len({bytes(image) for image in (*first, *second)}) == 12
    # What stands beside an image does not reach it.
    alone = defend(IMAGES[:1], defences, np.random.default_rng(1))
    np.testing.assert_array_equal(alone[0], first[0])


def test_defences_follow_one_another() -> None:
    defences = read_defences('[{"bit_depth": {"bits": 2}}, {"jpeg": {"quality": 30}}]')
    expected = [jpeg(bit_depth(image, [], bits=2), [], quality=30) for image in IMAGES]
    np.testing.assert_array_equal(defend(IMAGES, defences, np.random.default_rng()), expected)


@pytest.mark.parametrize("text", ["", "{}x", '["jpeg"]', '[{"blur": {}}]', json.dumps([{"jpeg": {}}, 3])])
def test_what_is_no_defence_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^defend: got .*, expected a list of jpeg, bit_depth, random_resize"):
        read_defences(text)


def test_settings_of_the_recipe_are_those_of_the_backend() -> None:
    from temper.builder.publish.defence import (
        BitDepthConfig,
        Defence,
        JpegConfig,
        RandomResizeConfig,
        describe_defences,
        render_defences,
    )

    chosen: Any = [
        Defence(jpeg=JpegConfig(quality=40)),
        Defence(bit_depth=BitDepthConfig(bits=3)),
        Defence(random_resize=RandomResizeConfig(smallest=0.7)),
    ]
    assert describe_defences(chosen) == "jpeg (quality 40), bit_depth (bits 3), random_resize (smallest 0.7)"
    found = defend(IMAGES, read_defences(render_defences(chosen)), np.random.default_rng(0))
    generator = np.random.default_rng(0)
    draws = [[generator.random(3).tolist() for _ in chosen][2] for _ in IMAGES]
    for image, behind, draw in zip(IMAGES, found, draws, strict=True):
        expected = random_resize(bit_depth(jpeg(image, [], quality=40), [], bits=3), draw, smallest=0.7)
        np.testing.assert_array_equal(behind, expected)
