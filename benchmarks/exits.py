"""How many of thousands of `temper query` print their answers and never end: gRPC can hang an interpreter's exit.

The commands run against one server. What has not ended within a limit that only a hang reaches has its threads'
stacks printed and is killed. A run adds to the counts of its client in the results file, so that a long one can be
done in parts; `--client PATH` runs the command of another checkout.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, measured_before, publish_sample, write_results
from temper.serve.server import TritonServer

_MODEL = "digits"
_WRITE_EVERY = 50
_CODE = "import sys; sys.path.insert(0, {path!r}); from temper.cli.main import main; main()"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=3000)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a command hangs")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long, and keep the counts"
    )
    parser.add_argument("--client", type=Path, default=ROOT, help="checkout whose `temper query` is run")
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    rows = measured_before("exits")
    row = rows.setdefault(_commit(options.client), {"commands": 0, "hung": 0, "failed": 0, "stacks": []})
    with tempfile.TemporaryDirectory() as folder:
        images = _publish(Path(folder))
        with TritonServer(Path(folder) / "models") as server, ThreadPoolExecutor(options.at_once) as pool:
            command = [sys.executable, "-P", "-c", _CODE.format(path=str(options.client.resolve()))]
            command += ["query", str(images), "--model", _MODEL, "--url", server.grpc_url, "--json"]
            for run in pool.map(lambda _: _run(command, options.limit, end), range(options.commands)):
                if run is None:
                    continue
                row["commands"] += 1
                row["hung"] += run["hung"]
                row["failed"] += run["failed"]
                row["stacks"] += [run["stack"]] if run["stack"] else []
                if row["commands"] % _WRITE_EVERY == 0:
                    write_results("exits", {"measured": rows})
                    print(f"{row['commands']} commands, {row['hung']} hung", file=sys.stderr, flush=True)
    write_results("exits", {"measured": rows})
    for client, one in rows.items():
        print(f"client {client}: {one['hung']} of {one['commands']} never ended, {one['failed']} failed")


def _publish(folder: Path) -> Path:
    """Publish a small model that reads digits, and return a folder of images for it."""
    from PIL import Image

    sample = publish_sample(folder, {_MODEL: {}})
    images = folder / "images"
    images.mkdir()
    for number in range(20):
        Image.fromarray(sample.images[number]).save(images / f"{number}.png")
    return images


def _run(command: list[str], limit_s: float, end: float) -> dict[str, Any] | None:
    """Run one command; None when there is no time left for it."""
    if time.monotonic() > end:
        return None
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        _, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # its fault handler prints every thread's stack
        try:
            _, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
        return {"hung": 1, "failed": 0, "stack": errors[-6000:]}
    return {
        "hung": 0,
        "failed": int(process.returncode != 0),
        "stack": errors[-600:] if process.returncode else "",
    }


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
