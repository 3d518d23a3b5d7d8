"""Query monitoring: counts images that belong to a long run of near-identical ones, as Triton metrics.

An attack that can only ask the endpoint needs hundreds of such images; fingerprints.py says how they are told. It
watches and refuses nothing, and whatever goes wrong in it, serving goes on. What it can and cannot see is written
down in model_repository/README.md.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import artifact
from fingerprints import FingerprintStore

# Runs are found for so many images at once, as a call for one costs nearly as much, and the network has filled the
# caches with something else between two calls; or, with fewer, when a request comes so long after the last time.
_TOGETHER = 512
_REPORT_S = 1.0
_NAME_CHARACTERS = 80
# What Triton's own metrics say, under their names.
WATCHED = ("temper_watched_queries_total", "Images that the query monitor has seen")
FLAGGED = ("temper_flagged_queries_total", "Images in a run of near-identical ones that is long (watch_queries)")
LONGEST = ("temper_longest_run_queries", "Images in the longest run of near-identical ones that is remembered")


class QueryMonitor:
    """Watches one instance of a model.

    Every instance has a store of its own. The metrics of two must not have the same labels: Triton removes one for
    all of them when the first of its owners goes (core, src/metric_family.cc), so the process is a label.

    Args:
        long_run: From this length on a run of near-identical images is long.
        image_bytes: Height x width x channels of every image.
        labels: Of the metrics: the model and its version.
        metric_family: Triton's class.
        log: Writes a line into the server's log.
    """

    def __init__(
        self,
        *,
        long_run: int,
        image_bytes: int,
        labels: Mapping[str, str],
        metric_family: Any,
        log: Callable[[str], None],
    ) -> None:
        """Register the metrics; without them there is nothing to watch for."""
        self._log = log
        self._about = f"model {labels['model']}: the query monitor"
        self._store: FingerprintStore | None = None
        self._long_run = long_run
        self._clients: list[str] = []
        self._last = time.monotonic()
        try:
            kinds = (metric_family.COUNTER, metric_family.COUNTER, metric_family.GAUGE)
            # A family must outlive its metrics.
            self._families = [
                metric_family(name=name, description=about, kind=kind)
                for (name, about), kind in zip((WATCHED, FLAGGED, LONGEST), kinds, strict=True)
            ]
            own = {**labels, "process": str(os.getpid())}
            self._watched, self._flagged, self._longest = (family.Metric(labels=own) for family in self._families)
            self._store = FingerprintStore(image_bytes, long_run=long_run)
        except Exception as error:
            self._give_up(error)

    def watch(self, requests: Sequence[Any], batches: Sequence[Any]) -> None:
        """Take in the images of some requests; never raises.

        Args:
            requests: Triton's.
            batches: Their images, uint8 [n_i, H, W, 3]. Those on a GPU are not watched.
        """
        if self._store is None:
            return
        try:
            for request, images in zip(requests, batches, strict=True):
                if isinstance(images, np.ndarray):
                    client = _client(request)
                    self._store.take(images, hash(client))
                    self._clients += [client] * len(images)
            if self._store.num_taken >= _TOGETHER or time.monotonic() - self._last >= _REPORT_S:
                self._report(self._store)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Report what is left, and take the metrics away."""
        try:
            if self._store is not None:
                self._report(self._store)
            # Its metrics first, each before its family.
            self._store = self._watched = self._flagged = self._longest = None
            self._families = []
        except Exception as error:
            self._give_up(error)

    def _report(self, store: FingerprintStore) -> None:
        watched, clients = store.add(), self._clients
        self._clients, self._last = [], time.monotonic()
        if len(watched.runs):
            self._longest.set(store.longest)
            flagged = np.count_nonzero(watched.runs >= self._long_run)
            if flagged:
                self._flagged.increment(int(flagged))
            # The last, so that who reads these images as watched reads what was found of them.
            self._watched.increment(len(watched.runs))
        if len(watched.reached):
            # One line with one name, however many they are: who sends images must not fill the log.
            first, *more = watched.reached.tolist()
            others = f", and in {len(more)} more runs" if more else ""
            name = ascii(clients[first][:_NAME_CHARACTERS])
            self._log(f"{self._about} counts {self._long_run} near-identical images from client {name}{others}")

    def _give_up(self, error: Exception) -> None:
        self._store = None
        self._log(f"{self._about} is off, and the model is served without it: {error!r}")


def long_run_from(parameters: Mapping[str, str]) -> int | None:
    """What config.pbtxt says: from which length on a run is long; None when nothing is to be watched.

    Raises:
        ArtifactError: It says something else.
    """
    given = parameters.get("watch_queries", "")
    if not given:
        return None
    if not given.isascii() or not given.isdecimal() or int(given) < 2:
        raise artifact.ArtifactError(
            f"watch_queries: got {given!r}, expected a number of images from 2; set it in the recipe's [serving] "
            "and publish again"
        )
    return int(given)


def _client(request: Any) -> str:
    """Who sent a request, as its parameter `client` says; everybody is one without it."""
    parameters = request.parameters()
    if not parameters or parameters == "{}":
        return ""
    name = json.loads(parameters).get("client", "")
    return name if isinstance(name, str) else str(name)
