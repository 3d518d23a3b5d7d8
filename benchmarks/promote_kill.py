"""What `kill -9` at a random moment of a promotion or a rollback leaves: one of the two versions, whole.

A process promotes and rolls back without end, a model that takes image files too, and is killed at a random
moment. After each kill every entry is verified, config.pbtxt must name one of the two versions, and the next
promotion and rollback must work and leave one history. Every so often a real tritonserver loads what the kill left
and answers. A run adds to the counts in the results file, so that a long one can be done in parts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import measured_before, write_results
from temper.builder.publish.switch import read_history, versions_of
from temper.builder.publish.versions import served_version, work_root
from temper.client import Client
from temper.serve.promote import promote, rollback
from temper.serve.server import TritonServer
from temper.serve.verify import verify_repository

if TYPE_CHECKING:
    from benchmarks.sample import Sample

_MODEL = "digits"
_COMPANIONS = ("digits_jpeg_decode", "digits_jpeg")
_VERSIONS = (1, 2)
_BETWEEN = "between two switches"
# What is hard to load is asked for more often.
_IN_ONE_EVERY = 4
# Longer than a promotion and a rollback take, so that a kill may fall anywhere in either.
_LONGEST_S = 0.5
_LOOP = """
import sys
from pathlib import Path
from temper.serve.promote import promote, rollback
from temper.builder.publish.versions import served_version

repository, model = Path(sys.argv[1]), sys.argv[2]
rounds = 0
while True:
    rounds += 1
    if rounds == 3:  # what is imported is imported
        print("begun", flush=True)
    if served_version(repository / model) == 1:
        promote(repository, model)
    else:
        rollback(repository, model)
"""


def main() -> None:
    """Kill, look, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--serve-every", type=int, default=20)
    options = parser.parse_args()
    counts = Counter[str](measured_before("promote_kill"))
    begun = counts["kills"]
    draw = random.Random(begun)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        sample = publish_two(repository)
        for number in range(begun + 1, begun + options.kills + 1):
            where = kill(repository, draw.uniform(0, _LONGEST_S))
            counts[where] += 1
            counts["kills"] += 1
            counts[f"version {look(repository)} served"] += 1
            in_one = where != _BETWEEN and counts["kills"] - counts[_BETWEEN]
            if number % options.serve_every == 0 or (in_one and in_one % _IN_ONE_EVERY == 0):
                counts["loaded by a server, which answered"] += ask(repository, sample)
                counts["of these after a kill in a switch"] += where != _BETWEEN
            go_on(repository)
    write_results("promote_kill", {"measured": dict(counts)})
    for name, count in counts.items():
        print(f"{name}: {count}")


def publish_two(repository: Path) -> Sample:
    """Publishes two versions that may be shipped, with what takes image files for them; the first is served."""
    from benchmarks.sample import make_sample
    from temper.builder.publish.ensemble import publish_jpeg
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    sample = make_sample()
    engine = repository.with_name("model.onnx")
    sample.export(engine)
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    config = TritonConfig(
        name=_MODEL, image_size=32, num_classes=10, max_batch=8, backend=backend, in_ensemble=True
    )
    for version in _VERSIONS:
        config = replace(config, max_batch=8 * version)
        card = {"recipe": "benchmarks", "number": version}
        published = publish(repository, config, engine_file=engine, labels=sample.class_names, card=card)
        publish_jpeg(repository, config, labels=sample.class_names, card=card)
        sums = hashlib.sha256((published.path / "SHA256SUMS").read_bytes()).hexdigest()
        candidate = {"model": _MODEL, "version": version, "sums_sha256": sums}
        verdict = {"format": 1, "answer": "SHIP", "candidate": candidate}
        (published.path / "verdict.json").write_text(json.dumps(verdict))
    return sample


def kill(repository: Path, after_s: float) -> str:
    """Kills a process that promotes and rolls back, and says where it was."""
    words = [sys.executable, "-c", _LOOP, str(repository), _MODEL]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.kill()
    assert process.returncode == -9, f"it ended by itself: {process.returncode}"
    intent = work_root(repository) / "switch.json"
    if not intent.exists():
        return _BETWEEN
    wanted = json.loads(intent.read_bytes())["event"]["after"]
    return f"in one, {'behind' if served_version(repository / _MODEL) == wanted else 'before'} its decisive rename"


def look(repository: Path) -> int:
    """Returns the version that a kill left served, when everything is whole.

    Raises:
        AssertionError: It is none of the two, or not whole, or the history says something else.
    """
    assert [one.reason for one in verify_repository(repository)] == [None] * (1 + len(_COMPANIONS))
    version = served_version(repository / _MODEL)
    assert version in _VERSIONS, version
    events = read_history(repository, _MODEL)
    assert not events or events[-1].after == version, (events[-1], version)
    assert versions_of(repository, _MODEL) == list(_VERSIONS)
    return version


def go_on(repository: Path) -> None:
    """Promotes and rolls back once more, and looks.

    Raises:
        AssertionError: A companion was left behind.
    """
    if served_version(repository / _MODEL) == 1:
        promote(repository, _MODEL)
    rollback(repository, _MODEL)
    served = [served_version(repository / name) for name in (_MODEL, *_COMPANIONS)]
    assert served == [1] * len(served), served
    assert look(repository) == 1


def ask(repository: Path, sample: Sample) -> int:
    """Asks a real server of what is there.

    Raises:
        AssertionError: It answers with another version.
    """
    with TritonServer(repository) as server, Client(server.grpc_url) as client:
        info, twin = client.model_info(_MODEL), client.model_info(_COMPANIONS[-1])
        answers = client.infer(_MODEL, sample.images[:8])
    assert int(info.version) == int(twin.version) == served_version(repository / _MODEL)
    assert np.isfinite(answers).all()
    return 1


if __name__ == "__main__":
    main()
