"""How a published model is served: what bounds its queue, and how many of its versions stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

# What is in flight at once in our own tests (16 requests), from one call of the client (8), and a few of them.
_MIN_QUEUE = 64
_FULL_BATCHES = 2
_LARGEST_QUEUE = 2**31 - 1
_LARGEST_RUN = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """What Triton is told of every variant, beside its engine. Changing it rebuilds nothing."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_queue: int | None = None
    """Requests that may wait for an instance; a further one is refused (UNAVAILABLE). Not given: two full batches
    of requests for every instance, at least 64. The members of an ensemble have no such bound, only the next."""
    queue_timeout_ms: int = 30_000
    """How long a request may wait for an instance before it is refused, in milliseconds; by default as long as the
    client waits. What a caller is promised, such as 500, sheds sooner under overload."""
    keep_versions: int = 5
    """The newest versions of a model that stay in the repository, and with them the served one and the one before
    it."""
    watch_queries: int | None = None
    """Count, in Triton's metrics, images in a run of at least so many near-identical ones from one client, as an
    attack by queries sends them; 25 is a start. Not given: nothing is watched. Only the plugin can."""
    jpeg: bool = False
    """Publish `<recipe>_<variant>_jpeg` beside every variant: it takes image files as they are and decodes them on
    the server, to the pixels that `temper query` would send. All queues are bounded by time alone then, as those
    of members of an ensemble."""

    require_verdict: bool = False
    """The plugin loads a version only when its verdict.json says SHIP and is signed by a key that the server
    trusts (`TEMPER_TRUSTED_KEYS` in its environment). Only the plugin can."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if self.max_queue is not None and not 1 <= self.max_queue <= _LARGEST_QUEUE:
            raise ValueError(f"max_queue: got {self.max_queue}, expected 1 to {_LARGEST_QUEUE} requests")
        if self.max_queue is not None and self.jpeg:
            raise ValueError(
                f"max_queue: got {self.max_queue} with jpeg = true, which bounds queues by time alone; leave it "
                "out and set queue_timeout_ms"
            )
        if not 1 <= self.queue_timeout_ms <= 3_600_000:
            raise ValueError(f"queue_timeout_ms: got {self.queue_timeout_ms}, expected 1 to 3600000 (an hour)")
        if self.keep_versions < 1:
            raise ValueError(f"keep_versions: got {self.keep_versions}, expected at least 1")
        if self.watch_queries is not None and not 2 <= self.watch_queries <= _LARGEST_RUN:
            raise ValueError(f"watch_queries: got {self.watch_queries}, expected 2 to {_LARGEST_RUN} images")

    def queue_size(self, max_batch: int, num_instances: int) -> int:
        """Returns how many requests may wait for a model with such batches and instances."""
        if self.max_queue is not None:
            return self.max_queue
        return max(_MIN_QUEUE, _FULL_BATCHES * max_batch * num_instances)
