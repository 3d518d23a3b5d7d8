"""What runs in one process that corrupts images, and the pool of these processes.

The parent sends a `Batch` and gets its images back, or one line that says why not. When the pipe closes, the
parent is gone and the process ends.
"""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import numpy as np

from temper.client.child import start_child
from temper.client.corruptions.library import corrupt_image
from temper.client.errors import ClientError
from temper.client.scores import Int64Array, UInt8Array

_MAX_PROCESSES = 8
# The processes are as many as the cores: threads inside them would only wait for one another.
_ENVIRONMENT = {"OPENCV_FOR_THREADS_NUM": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images to corrupt alike."""

    images: UInt8Array
    """uint8 [n, H, W, 3]"""
    indices: Int64Array
    """int64 [n], their indices in the data set"""
    kind: str
    severity: int
    seed: int


class Corrupters:
    """A pool of processes that corrupt images; a context manager that leaves none behind."""

    def __init__(self, num_processes: int | None) -> None:
        """Start nothing yet; None takes one process for each core, at most 8."""
        self._num = num_processes or min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)
        self._all: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._idle: queue.SimpleQueue[tuple[subprocess.Popen[bytes], Connection]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(self._num)

    @property
    def num_processes(self) -> int:
        """How many batches are corrupted at once."""
        return self._num

    def __enter__(self) -> Self:
        """Start the processes; each imports the library while the first batches wait."""
        for _ in range(self._num):
            child = start_child("temper.client.corruptions.worker", _ENVIRONMENT)
            self._all.append(child)
            self._idle.put(child)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process, then the threads, which see that at once."""
        self.kill()
        self._threads.shutdown(cancel_futures=True)
        for _, pipe in self._all:
            pipe.close()

    def kill(self) -> None:
        """End every process."""
        for process, _ in self._all:
            process.kill()
            process.wait()

    async def corrupt(self, batch: Batch) -> UInt8Array:
        """Return the corrupted images, uint8 [n, H, W, 3].

        Raises:
            ClientError: the library is not installed or failed, or a process died.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, batch)

    def _ask(self, batch: Batch) -> UInt8Array:
        child = process, pipe = self._idle.get()
        try:
            pipe.send(batch)
            answer: UInt8Array | str = pipe.recv()
        except (EOFError, OSError):
            status = process.wait()
            raise ClientError(
                f"a process that corrupts images ended (exit status {status}); is the machine out of memory?"
            ) from None
        finally:
            self._idle.put(child)
        if isinstance(answer, str):
            raise ClientError(answer)
        return answer


def main(descriptor: int) -> None:
    """Corrupt the batches that come through the pipe `descriptor` until it closes."""
    connection = Connection(descriptor)
    try:
        while True:
            connection.send(_answer(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _answer(batch: Batch) -> UInt8Array | str:
    try:
        return np.stack(
            [
                corrupt_image(image, index, batch.kind, batch.severity, batch.seed)
                for image, index in zip(batch.images, batch.indices.tolist(), strict=True)
            ]
        )
    except ClientError as error:
        return str(error)
    except Exception as error:  # whatever a library that is not ours throws
        return f"{batch.kind} at severity {batch.severity}: {type(error).__name__}: {error}"
