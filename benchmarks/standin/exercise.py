"""Drives the plugin's runner on the stand-in in this process, for compute-sanitizer to look at.

Every kind of batch: from the host, from shared memory and from the GPU, mixed, prepared, padded and not, after a
refused one; with TensorRT's runner and with TensorRT-RTX's.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import standin
from benchmarks.gpu.context import Context
from benchmarks.gpu.engine import open_runner, publish_engine
from benchmarks.gpu.networks import NUM_CLASSES, make_images
from benchmarks.gpu.shared_memory import handed_over

_SIZE, _BATCHES = 64, (1, 8, 32)


def main() -> int:
    """Run it; 1 when an answer is wrong."""
    import torch

    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["TEMPER_CACHE_DIR"] = folder
        context = Context(
            out=work,
            work=work,
            carried=work,
            deadline=time.monotonic() + 600,
            batches=_BATCHES,
            image_size=_SIZE,
        )
        published = publish_engine(context, standin.NAME, standin.NAME, "null")
        images = make_images(_BATCHES[-1] + 1, _SIZE)
        on_gpu = torch.from_numpy(images).cuda()
        torch.cuda.synchronize()
        with handed_over(images) as shared:
            for engine in ("tensorrt", "tensorrt-rtx"):
                runner = open_runner(published, standin.NAME, context, engine=engine)
                from runners.dlpack import DeviceTensor  # the plugin's, on the path since `open_runner`

                for host in (images, shared):
                    wrong += count_wrong(
                        runner, host, lambda start, stop: DeviceTensor(on_gpu[start:stop].__dlpack__())
                    )
                runner.close()
    print(f"wrong answers: {wrong}")
    return 1 if wrong else 0


def count_wrong(runner: Any, images: npt.NDArray[np.uint8], on_gpu: Callable[[int, int], Any]) -> int:
    """How many batches a runner answers wrongly, one that it takes and should refuse among them.

    Args:
        runner: The plugin's.
        images: uint8 [N, H, W, 3], one more than the runner takes.
        on_gpu: Gives the images from a number to another where they lie on the GPU.
    """
    from runners import RunnerError

    wrong = 0
    for count in (len(images) - 1, 1, 7, 8, 20, 31, 2):
        try:
            runner.infer([images])
            wrong += 1
        except RunnerError:
            pass  # as it should
        half = count // 2
        expected = standin.expected_logits(images[:count], NUM_CLASSES).view(np.uint32)
        mixed = [[images[:half], on_gpu(half, count)]] if half else []
        for batches in ([images[:count]], [on_gpu(0, count)], *mixed):
            # At once: the answers lie in a buffer that the next batch overwrites.
            answer = np.concatenate(runner.infer(batches))
            wrong += not np.array_equal(answer.view(np.uint32), expected)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
