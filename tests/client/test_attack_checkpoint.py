from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.errors import ServerUnavailable
from temper.client.robustness import AttackConfig, attack_endpoint
from temper.client.robustness.base import ATTACKS
from temper.client.robustness.checkpoint import Checkpoint

Digits = Any  # the fixture's class in conftest.py


def config(name: str = "square", **changes: Any) -> AttackConfig:
    made: AttackConfig = ATTACKS.get(name).config(**{"epsilon": 40, "max_queries": 60, "batch_size": 8, **changes})
    return made


@pytest.mark.parametrize("name", ["square", "hop-skip-jump", "noise", "art-square"])
@pytest.mark.slow
async def test_interrupted_attack_resumes_to_the_same_result(digits: Digits, tmp_path: Path, name: str) -> None:
    whole = await attack_endpoint(digits.endpoint().infer, digits.images, digits.labels, config(name))
    path = tmp_path / "runs" / "attack.jsonl"
    breaking = digits.endpoint(fail_after=1050 if name == "art-square" else 300)
    with pytest.raises(ServerUnavailable, match="were finished; run it again to go on from .*attack.jsonl"):
        await attack_endpoint(breaking.infer, digits.images, digits.labels, config(name), checkpoint=path)
    done = len(path.read_text().splitlines()) - 1
    assert 0 < done < 146
    path.write_bytes(path.read_bytes() + b'{"index": 5, "survi')  # killed while it wrote
    endpoint = digits.endpoint()
    # The rest may run with other batches: they are no part of what is measured.
    rest = await attack_endpoint(
        endpoint.infer, digits.images, digits.labels, config(name, batch_size=11), checkpoint=path
    )
    assert endpoint.num_images < 160 + whole.num_queries
    assert np.array_equal(rest.survived, whole.survived) and np.array_equal(rest.queries, whole.queries)
    assert rest.curve == whole.curve and rest.num_queries == whole.num_queries
    assert np.array_equal(rest.distances, whole.distances) and rest.distance == whole.distance
    assert [example.index for example in rest.gallery] == [example.index for example in whole.gallery]
    for one, other in zip(rest.gallery, whole.gallery, strict=True):
        assert np.array_equal(one.adversarial, other.adversarial)
        assert (one.served_label, one.num_queries) == (other.served_label, other.num_queries)


async def test_stopped_attack_says_how_many_images_were_finished(digits: Digits) -> None:
    endpoint, said = digits.endpoint(), list[str]()

    async def infer(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if len(endpoint.batch_sizes) > 300:
            raise asyncio.CancelledError  # as Ctrl-C does
        scores: npt.NDArray[np.float32] = await endpoint.infer(images)
        return scores

    with pytest.raises(asyncio.CancelledError):
        await attack_endpoint(infer, digits.images, digits.labels, config(), say=said.append)
    assert re.fullmatch(r"square: [1-9]\d* of 160 images were finished", said[-1])


async def test_finished_attack_costs_only_the_clean_images_when_run_again(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "attack.jsonl"
    first = await attack_endpoint(digits.endpoint().infer, digits.images, digits.labels, config(), checkpoint=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len(lines) == first.correct.sum()
    assert {entry["index"] for entry in lines if entry["survived"]} == set(first.indices[first.survived])
    before = path.read_bytes()
    path.write_bytes(before + b'{"index": 5, "survi')
    endpoint = digits.endpoint()
    seen: list[tuple[int, int]] = []
    again = await attack_endpoint(
        endpoint.infer,
        digits.images,
        digits.labels,
        config(),
        checkpoint=path,
        progress=lambda *at: seen.append(at),
    )
    assert endpoint.num_images == 160
    assert again.num_queries == first.num_queries and np.array_equal(again.survived, first.survived)
    assert path.read_bytes() == before
    assert again.queries_per_s == 0.0 and seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("changes", "endpoint", "differing"),
    [({"epsilon": 8}, "a", "epsilon"), ({"seed": 2, "name": "noise"}, "a", "name, seed"), ({}, "b", "endpoint")],
)
async def test_checkpoint_of_another_attack_is_refused(
    digits: Digits, tmp_path: Path, changes: dict[str, Any], endpoint: str, differing: str
) -> None:
    path = tmp_path / "attack.jsonl"
    data = (digits.images[:10], digits.labels[:10])
    await attack_endpoint(digits.endpoint().infer, *data, config(), checkpoint=path, endpoint="a")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"belongs to another attack .differs in {differing}.; delete it"):
        await attack_endpoint(
            digits.endpoint().infer, *data, config(**changes), checkpoint=path, endpoint=endpoint
        )
    assert path.read_bytes() == before


async def test_checkpoint_of_other_images_is_refused(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "attack.jsonl"
    await attack_endpoint(
        digits.endpoint().infer, digits.images[:10], digits.labels[:10], config(), checkpoint=path
    )
    with pytest.raises(ValueError, match="differs in answers, digest"):
        await attack_endpoint(
            digits.endpoint().infer, digits.images[10:20], digits.labels[10:20], config(), checkpoint=path
        )


async def test_checkpoint_of_another_model_of_the_same_name_is_not_gone_on_from(
    digits: Digits, tmp_path: Path
) -> None:
    """Another build is served at the same address, as the same version of the same model."""
    data, path = (digits.images, digits.labels), tmp_path / "attack.jsonl"
    kept: list[dict[str, Any]] = [{"checkpoint": path}, {"checkpoints": tmp_path / "runs"}]
    for where in kept:
        with pytest.raises(ServerUnavailable, match="run it again to go on"):
            await attack_endpoint(
                digits.endpoint(fail_after=300).infer, *data, config(), **where, endpoint="a:1:here"
            )
    other = replace(digits, weights=np.roll(digits.weights, 3, axis=0))
    whole = await attack_endpoint(other.endpoint().infer, *data, config())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="belongs to another attack .differs in answers.; delete it"):
        await attack_endpoint(other.endpoint().infer, *data, config(), **kept[0], endpoint="a:1:here")
    assert path.read_bytes() == before
    lines: list[str] = []
    result = await attack_endpoint(
        other.endpoint().infer, *data, config(), **kept[1], endpoint="a:1:here", say=lines.append
    )
    assert lines == [] and np.array_equal(result.queries, whole.queries) and result.curve == whole.curve


async def test_attack_keeps_its_own_checkpoint_until_it_is_done(digits: Digits, tmp_path: Path) -> None:
    data = (digits.images, digits.labels)
    kept: dict[str, Any] = {"checkpoints": tmp_path / "runs" / "attacks", "endpoint": "a"}
    with pytest.raises(ServerUnavailable, match=r"run it again to go on from .*/[0-9a-f]{16}/finished.jsonl\)$"):
        await attack_endpoint(digits.endpoint(fail_after=300).infer, *data, config(), **kept)
    (file,) = kept["checkpoints"].rglob("*.jsonl")
    before = file.read_bytes()
    # Whatever else decides the outcome has a file of its own.
    lines: list[str] = []
    others: list[tuple[Any, Any, dict[str, Any]]] = [
        (data, config(seed=1), {}),
        (data, config(epsilon=39), {}),
        (data, config(), {"endpoint": "b"}),
        ((digits.images[1:], digits.labels[1:]), config(), {}),
        ((np.concatenate([digits.images[:-1], digits.images[:1]]), digits.labels), config(), {}),
    ]
    for (images, labels), settings, changes in others:
        with pytest.raises(ServerUnavailable, match=": [0-9]+ of 1[56][09] images were finished"):
            endpoint = digits.endpoint(fail_after=40)  # after the 20 of the clean images
            await attack_endpoint(endpoint.infer, images, labels, settings, **(kept | changes), say=lines.append)
    assert lines == []
    assert len(list(kept["checkpoints"].rglob("*.jsonl"))) == 1 + len(others)
    assert file.read_bytes() == before
    result = await attack_endpoint(digits.endpoint().infer, *data, config(), **kept, say=lines.append)
    finished = len(before.splitlines()) - 1
    assert lines == [f"going on from {file}: {finished} images are finished"] and finished > 0
    assert not file.parent.exists()
    whole = await attack_endpoint(digits.endpoint().infer, *data, config())
    assert np.array_equal(result.survived, whole.survived) and np.array_equal(result.queries, whole.queries)


async def test_image_whose_answer_was_no_number_stays_broken_in_the_checkpoint(
    digits: Digits, tmp_path: Path
) -> None:
    endpoint, path = digits.endpoint(), tmp_path / "attack.jsonl"
    data = (digits.images[:20], digits.labels[:20])

    async def infer(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = await endpoint.infer(images)
        if len(endpoint.batch_sizes) == 5:  # after the three of the clean images
            scores[:] = np.inf
        return scores

    settings = config(concurrency=1)
    first = await attack_endpoint(infer, *data, settings, checkpoint=path)
    again = await attack_endpoint(digits.endpoint().infer, *data, settings, checkpoint=path)
    assert first.errors == again.errors == {"nonfinite_output": endpoint.batch_sizes[4]}
    assert np.array_equal(first.survived, again.survived) and first.curve == again.curve


async def test_file_that_another_attack_writes_is_refused(digits: Digits, tmp_path: Path) -> None:
    path, data = tmp_path / "attack.jsonl", (digits.images[:10], digits.labels[:10])
    header = {"any": "attack"}
    with (
        Checkpoint(path, header),
        pytest.raises(ValueError, match="attack.jsonl: another attack is writing it; w"),
    ):
        await attack_endpoint(digits.endpoint().infer, *data, config(), checkpoint=path)
    assert json.loads(path.read_text()) == header


async def test_folder_that_cannot_be_written_costs_the_checkpoint_and_not_the_attack(
    digits: Digits, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("a file")
    data, lines = (digits.images[:10], digits.labels[:10]), list[str]()
    folder = tmp_path / "runs" / "attacks"
    await attack_endpoint(digits.endpoint().infer, *data, config(), checkpoints=folder, say=lines.append)
    assert lines == [f"{folder}: cannot be written: Not a directory; an attack that is interrupted starts anew"]
    with pytest.raises(ValueError, match="attacks: cannot be written: File exists"):
        await attack_endpoint(digits.endpoint().infer, *data, config(), checkpoint=folder)


async def test_file_that_is_no_checkpoint_is_refused_and_left_alone(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a shopping list\n")
    with pytest.raises(ValueError, match="notes.txt: not an attack's checkpoint .*; delete it to start anew"):
        await attack_endpoint(
            digits.endpoint().infer, digits.images[:10], digits.labels[:10], config(), checkpoint=path
        )
    assert path.read_text() == "a shopping list\n"
