from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.errors import ServerUnavailable
from client.robustness import AttackConfig, attack_endpoint

Digits = Any  # the fixture's class in conftest.py


def config(name: str = "square", **changes: Any) -> AttackConfig:
    return AttackConfig(**{"name": name, "epsilon": 40, "max_queries": 60, "batch_size": 8, **changes})


@pytest.mark.parametrize("name", ["square", "noise", "art-square"])
async def test_interrupted_attack_resumes_to_the_same_result(digits: Digits, tmp_path: Path, name: str) -> None:
    whole = await attack_endpoint(digits.endpoint().infer, digits.images, digits.labels, config(name))
    path = tmp_path / "runs" / "attack.jsonl"
    breaking = digits.endpoint(fail_after=1050 if name == "art-square" else 300)
    with pytest.raises(ServerUnavailable, match="were finished; run it again to go on from its checkpoint"):
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
    assert [example.index for example in rest.gallery] == [example.index for example in whole.gallery]
    for one, other in zip(rest.gallery, whole.gallery, strict=True):
        assert np.array_equal(one.adversarial, other.adversarial)
        assert (one.served_label, one.num_queries) == (other.served_label, other.num_queries)


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
    with pytest.raises(ValueError, match="differs in digest"):
        await attack_endpoint(
            digits.endpoint().infer, digits.images[10:20], digits.labels[10:20], config(), checkpoint=path
        )


async def test_file_that_is_no_checkpoint_is_refused_and_left_alone(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a shopping list\n")
    with pytest.raises(ValueError, match="notes.txt: not an attack's checkpoint .*; delete it to start anew"):
        await attack_endpoint(
            digits.endpoint().infer, digits.images[:10], digits.labels[:10], config(), checkpoint=path
        )
    assert path.read_text() == "a shopping list\n"
