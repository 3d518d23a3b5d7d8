"""Which features matter: a head of two layers is looked at through a linear one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from temper.builder.contract import TEST_LABELS_FILE
from temper.builder.explain.features import FeaturesWriter
from temper.builder.explain.images import TRAIN_LABELS_FILE
from temper.builder.explain.networks import TEST, TRAIN
from temper.builder.explain.selection import CORRECT_FILE, run_selection
from temper.builder.network.head import new_head

_WIDTH = 32


@pytest.mark.parametrize(("hidden", "said"), [(None, False), (8, True)])
def test_selection_of_a_head(tmp_path: Path, hidden: int | None, said: bool) -> None:
    rng, network = np.random.default_rng(0), nn.Module()
    network.fc = new_head(_WIDTH, hidden, 3)
    for name, file in ((TRAIN, TRAIN_LABELS_FILE), (TEST, TEST_LABELS_FILE)):
        labels = rng.integers(0, 3, 90)
        features = rng.normal(size=(90, _WIDTH)).astype(np.float32)
        features[:, :3] += 4 * np.eye(3)[labels]
        with FeaturesWriter(tmp_path / name, {"layer4.1": _WIDTH}, 90) as writer:
            writer.append({"layer4.1": features})
        np.save(tmp_path / file, labels)
    info = run_selection(network, tmp_path, tmp_path, tmp_path, lambda done, total: None, seed=0)
    assert ("the head has two layers: a linear one that was taught its answers" in info["note"]) is said
    assert {len(values) for values in info["importance"].values()} == {_WIDTH}
    assert (tmp_path / CORRECT_FILE).exists()
