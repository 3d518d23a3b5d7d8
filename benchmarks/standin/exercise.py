"""Drives the plugin's runner on the stand-in in this process, for compute-sanitizer to look at.

Every kind of batch: from the host and from the GPU, mixed, prepared, padded and not, after a refused one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import standin
from benchmarks.gpu.context import Context
from benchmarks.gpu.engine import open_runner, publish_engine
from benchmarks.gpu.networks import NUM_CLASSES, make_images

_SIZE, _BATCHES = 64, (1, 8, 32)


def main() -> int:
    """Run it; 1 when an answer is wrong."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        context = Context(
            out=work,
            work=work,
            carried=work,
            deadline=time.monotonic() + 600,
            batches=_BATCHES,
            image_size=_SIZE,
        )
        runner = open_runner(publish_engine(context, standin.NAME, standin.NAME, "null"), standin.NAME, context)
        from runners.dlpack import DeviceTensor  # the plugin's, on the path since `open_runner`

        images = make_images(_BATCHES[-1], _SIZE)
        on_gpu = torch.from_numpy(images).cuda()
        torch.cuda.synchronize()
        wrong = 0
        for count in (32, 1, 7, 8, 20, 31, 2):
            host = runner.infer([images[:count]])
            device = runner.infer([DeviceTensor(on_gpu[:count].__dlpack__())])
            half = count // 2
            mixed = runner.infer([images[:half], DeviceTensor(on_gpu[half:count].__dlpack__())]) if half else host
            expected = standin.expected_logits(images[:count], NUM_CLASSES).view(np.uint32)
            wrong += sum(
                not np.array_equal(np.concatenate(each).view(np.uint32), expected)
                for each in (host, device, mixed)
            )
        runner.close()
    print(f"wrong answers: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
