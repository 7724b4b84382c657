"""A batch on its way through the engine: begun on one thread and ended on another; once, or image by image.

batch ─> begin ─> Starting.start ┄┄┄> done ─> every image has its answer ─> ended
           ^                            │
           └── it failed: one by one ───┘
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from opentelemetry.trace import Span

from inspectbus import spans
from inspectbus.errors import Internal
from inspectbus.inference.afterwards import follow
from inspectbus.inference.engine import Heatmap, Images, Output, Starting
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.runtime.watchdog import Watchdog

log = structlog.get_logger(__name__)


class Found(NamedTuple):
    """What the engine said of one image, and when: wall clock, seconds since the epoch."""

    score: float
    heatmap: Heatmap | None
    at_s: float


@dataclass(frozen=True)
class Passage:
    """The engine as a batcher uses it."""

    engine: Starting
    watchdog: Watchdog
    metrics: BatcherMetrics
    clock: Callable[[], float]
    sizes: tuple[int, ...]
    """Of batches, ascending; none: any."""

    def padded(self, count: int) -> int:
        """The size in which the engine is given so many images."""
        return next((size for size in self.sizes if size >= count), count)


class Pass:
    """Of one batch, from `begin` to the call of `ended`. Its answers are there then."""

    # Made for every batch; some have one image.
    __slots__ = (
        "_begun_s",
        "_contexts",
        "_count",
        "_ended",
        "_memory",
        "_passage",
        "_size",
        "_span",
        "_start",
        "_stop",
        "_watched",
        "found",
        "ran",
    )

    _begun_s: float
    _size: int
    _span: Span
    _stop: int
    _watched: int

    def __init__(
        self, passage: Passage, memory: Images, start: int, contexts: list[Context], ended: Callable[[Pass], object]
    ) -> None:
        """Of the images in `memory` from `start` on, one for each context, in which it came."""
        self._passage = passage
        self._memory = memory
        self._start = start
        self._contexts = contexts
        self._ended = ended
        self._count = len(contexts)
        """Of images in one go: all, and after a failure one."""
        self.found: list[Found | Internal] = []
        """Of each image, in order."""
        self.ran: list[tuple[int, float]] = []
        """Runs that the engine did not fail in: how many images, and seconds."""

    def begin(self) -> None:
        """With the first images that have no answer."""
        passage, count = self._passage, self._count
        at = self._start + len(self.found)
        # Whatever lies beside them makes up a size that the engine likes. At a slot's end that is before them.
        self._size = size = passage.padded(count)
        start = min(at, len(self._memory) - size)
        self._stop = at - start + count
        self._watched = passage.watchdog.began(f"a pass of {count} images through the network")
        self._span = spans.begin_batch("infer", self._contexts[len(self.found) : len(self.found) + count])
        self._begun_s = passage.clock()
        try:
            passage.engine.start(self._memory[start : start + size], self._done)
        except Exception as error:  # it promised to raise nothing; the images are answered all the same
            self._done(error)

    def _done(self, answer: Output | Exception) -> None:
        follow(self._back, answer)

    def _back(self, answer: Output | Exception) -> None:
        passage = self._passage
        compute_s = passage.clock() - self._begun_s
        passage.watchdog.ended(self._watched)
        try:
            if isinstance(answer, Exception):
                raise answer
            self._keep(answer, _heatmaps_of(answer, self._size), compute_s)
            spans.end(self._span)
        except Exception as error:  # an engine may raise anything; it concerns these images and never the next
            spans.end(self._span, error)
            self._fail(error)
        if len(self.found) < len(self._contexts):
            self.begin()
        else:
            self._ended(self)

    def _keep(self, output: Output, heatmaps: Sequence[Heatmap | None], compute_s: float) -> None:
        ours, now = slice(self._stop - self._count, self._stop), time.time()
        rows = zip(output.scores[ours].tolist(), heatmaps[ours], strict=True)
        self.found += [Found(score, heatmap, now) for score, heatmap in rows]
        self.ran.append((self._count, compute_s))

    def _fail(self, error: Exception) -> None:
        self._passage.metrics.engine_errors.inc()
        if self._count > 1:
            log.warning("the engine failed on a batch, trying its images one by one", error=repr(error))
            self._count = 1
            return
        context = self._contexts[len(self.found)]
        context.run(log.error, "the engine failed on an image", error=repr(error))
        self.found.append(Internal(f"the engine failed on this image: {type(error).__name__}: {error}"[:500]))


def _heatmaps_of(output: Output, count: int) -> Sequence[Heatmap | None]:
    """Of each image. Raises Internal when there are not as many scores, or heatmaps, as images."""
    scores, heatmaps = output
    if scores.shape != (count,):
        raise Internal(f"the engine gave scores of shape {scores.shape} for {count} images")
    if heatmaps is None:
        return [None] * count
    if heatmaps.ndim != 3 or len(heatmaps) != count:
        raise Internal(f"the engine gave heatmaps of shape {heatmaps.shape} for {count} images")
    return list(heatmaps)
