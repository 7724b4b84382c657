"""The batcher: frames from both doors wait here, and an idle engine takes what is there at once.

    call ── refused when full ──> ┌ live    ┐
    bus  ── never refused ──────> └ backlog ┘ ─> batch of at most max_batch_size ─> engine ─> each frame's future

Work-conserving: while the engine computes, frames gather; when it is idle, nothing waits for company, unless
`max_batch_wait_s` allows it, and then each frame counts from its own arrival. Every frame taken is answered exactly
once: with its score, with the error that concerns it, or by its own cancellation.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import prometheus_client as prometheus
import structlog

from inspectbus import spans
from inspectbus.bus import Lane
from inspectbus.bus.lanes import Lanes
from inspectbus.errors import BadField, Internal, ModelNotReady, QueueFull, TooLate
from inspectbus.imaging import Image
from inspectbus.inference.engine import Engine, Heatmap, Output
from inspectbus.runtime.watchdog import Watchdog

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""How long the idle thread sleeps between looks: nothing depends on it, a lost wake-up would cost a second."""


@dataclass(frozen=True)
class Scored:
    """What the engine said of one image, and when. Wall clock, seconds since the epoch."""

    score: float
    """As the engine gave it; whoever makes a verdict of it checks that it is a number."""
    queued_at_s: float
    inferred_at_s: float
    heatmap: Heatmap | None = field(default=None, compare=False)


class BatcherMetrics:
    """Made once per registry; a batcher that follows another goes on counting."""

    def __init__(self, registry: prometheus.CollectorRegistry, max_batch_size: int) -> None:
        sizes = sorted({*(2**power for power in range(max_batch_size.bit_length())), max_batch_size})
        self.batch_size = prometheus.Histogram(
            "inspectbus_inference_batch_size", "Images per run of the engine.", buckets=sizes, registry=registry
        )
        self.queue_seconds = prometheus.Histogram(
            "inspectbus_inference_queue_seconds", "From arrival to the engine.", ["lane"], registry=registry
        )
        self.compute_seconds = prometheus.Histogram(
            "inspectbus_inference_compute_seconds", "One run of the engine.", registry=registry
        )
        self.waiting = prometheus.Gauge(
            "inspectbus_inference_waiting", "Images that wait for the engine.", ["lane"], registry=registry
        )
        self.dropped = prometheus.Counter(
            "inspectbus_inference_dropped", "Calls not computed, by reason.", ["reason"], registry=registry
        )
        self.engine_errors = prometheus.Counter(
            "inspectbus_inference_engine_errors", "Runs of the engine that raised.", registry=registry
        )
        self.sizes = dict.fromkeys(range(1, max_batch_size + 1), 0)
        """Runs by exact size, for GetEngine. Only the engine's thread writes, and never a new key."""


@dataclass(eq=False)
class _Item:
    """One image that waits. `deadline_s` is on the monotonic clock; nobody waits for an answer after it."""

    image: Image
    lane: Lane
    deadline_s: float
    context: Context = field(default_factory=copy_context)
    """Whose image it is: log lines and the batch's span find it here."""
    future: Future[Scored] = field(default_factory=Future)
    arrived_s: float = field(default_factory=time.monotonic)
    queued_at_s: float = field(default_factory=time.time)


class Batcher:
    """One engine, one thread, one bounded queue. Use as a context; leaving it computes what waits."""

    def __init__(
        self,
        engine: Engine,
        height: int,
        width: int,
        metrics: BatcherMetrics,
        watchdog: Watchdog,
        *,
        max_batch_size: int,
        max_batch_wait_s: float,
        queue_limit: int,
        drain_s: float,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._watchdog = watchdog
        self._max_batch_wait_s = max_batch_wait_s
        self._queue_limit = queue_limit
        self._drain_s = drain_s
        self._slot = np.empty((max_batch_size, height, width, 3), np.uint8)
        self._lanes: Lanes[_Item] = Lanes()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="inference-batcher", daemon=True)

    def __enter__(self) -> Batcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Takes nothing more, and computes what waits for at most `drain_s`; what is left then fails."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(self._drain_s)
        with self._changed:
            waiting = self._lanes.clear()
            self._show_waiting()
        left = [item for item in waiting if item.future.set_running_or_notify_cancel()]
        _fail(left, ModelNotReady("the service stopped before this image's turn"))

    def call(self, image: Image, deadline_s: float = math.inf) -> Future[Scored]:
        """For a caller who waits. Raises QueueFull at the limit.

        A call that is cancelled, or whose deadline (monotonic seconds) passes before its turn, is not computed: its
        future is cancelled, or fails with TooLate.
        """
        (future,) = self.call_all([image], deadline_s)
        return future

    def call_all(self, images: Sequence[Image], deadline_s: float = math.inf) -> list[Future[Scored]]:
        """For a caller who waits for every one of them: each as by `call`, and all have a place, or none."""
        return self._put([_Item(image, Lane.LIVE, deadline_s) for image in images], refusable=True)

    def deliver(self, image: Image, lane: Lane) -> Future[Scored]:
        """For the bus, whose prefetch bounds what it brings. Never refused for want of room."""
        (future,) = self._put([_Item(image, lane, math.inf)], refusable=False)
        return future

    @property
    def waiting(self) -> int:
        with self._changed:
            return len(self._lanes)

    def _put(self, items: list[_Item], *, refusable: bool) -> list[Future[Scored]]:
        for item in items:
            self._check(item.image)
        with self._changed:
            if self._closing:
                raise ModelNotReady("the service is stopping")
            if refusable and len(self._lanes) + len(items) > self._queue_limit:
                self._metrics.dropped.labels("queue_full").inc(len(items))
                raise QueueFull(
                    f"{len(self._lanes)} images wait for the engine, of {self._queue_limit} that may; "
                    f"there is no room for {len(items)} more, try again shortly"
                )
            for item in items:
                self._lanes.put(item, item.lane)
            self._show_waiting()
            self._changed.notify_all()
        # After the lock is left: a future that is cancelled at this very moment calls back from here.
        for item in items:
            self._watch(item)
        return [item.future for item in items]

    def _check(self, image: Image) -> None:
        if image.shape != self._slot.shape[1:]:
            height, width, channels = image.shape
            expected = f"{self._slot.shape[1]}x{self._slot.shape[2]}"
            raise BadField(
                f"pixels are {height}x{width} with {channels} channels; the model takes {expected} with 3",
                field="pixels",
            )

    def _watch(self, item: _Item) -> None:
        # Weakly: were each to hold the other, pixels that were judged long ago would wait for the garbage collector.
        waiting = weakref.ref(item)
        item.future.add_done_callback(lambda future: self._forget(waiting()) if future.cancelled() else None)

    def _forget(self, item: _Item | None) -> None:
        """A cancelled call gives its place back at once, and not only when its turn comes. None: it has come."""
        self._metrics.dropped.labels("cancelled").inc()
        if item is None:
            return
        with self._changed:
            # Who takes an item out of its lane tells its future, so none is told twice.
            mine = item in self._lanes[item.lane]
            if mine:
                self._lanes[item.lane].remove(item)
                self._show_waiting()
        if mine:
            item.future.set_running_or_notify_cancel()

    def _show_waiting(self) -> None:
        for lane in Lane:
            self._metrics.waiting.labels(lane.value).set(len(self._lanes[lane]))

    def _work(self) -> None:
        while self._wait():
            batch, late = self._take()
            self._metrics.dropped.labels("deadline").inc(len(late))
            _fail(late, TooLate("the call's deadline passed before its turn"))
            if batch:
                self._judge(batch)

    def _wait(self) -> bool:
        """Until a batch is due. False when we are closing and nothing waits any more."""
        with self._changed:
            while True:
                count = len(self._lanes)
                if self._closing:
                    return count > 0
                if not count:
                    self._changed.wait(LOOK_S)
                    continue
                oldest = min(self._lanes[lane][0].arrived_s for lane in Lane if self._lanes[lane])
                patience_s = oldest + self._max_batch_wait_s - time.monotonic()
                if count >= len(self._slot) or patience_s <= 0:
                    return True
                self._changed.wait(min(patience_s, LOOK_S))

    def _take(self) -> tuple[list[_Item], list[_Item]]:
        """The next batch, and the calls before it whose deadline has passed."""
        batch: list[_Item] = []
        late: list[_Item] = []
        now = time.monotonic()
        with self._changed:
            while len(batch) < len(self._slot) and len(self._lanes):
                item = self._lanes.next()
                if not item.future.set_running_or_notify_cancel():
                    continue
                if item.deadline_s <= now:
                    late.append(item)
                    continue
                self._metrics.queue_seconds.labels(item.lane.value).observe(now - item.arrived_s)
                batch.append(item)
            self._show_waiting()
        return batch, late

    def _judge(self, batch: list[_Item]) -> None:
        for place, item in enumerate(batch):
            np.copyto(self._slot[place], item.image)
        begun = time.perf_counter()
        try:
            with (
                self._watchdog.watching(f"a pass of {len(batch)} images through the network"),
                spans.batch("infer", [item.context for item in batch]),
            ):
                output = self._engine.infer(self._slot[: len(batch)])
            heatmaps = _checked(output, len(batch))
        except Exception as error:  # an engine may raise anything; it concerns these images and never the next
            self._metrics.engine_errors.inc()
            if len(batch) > 1:
                log.warning("the engine failed on a batch, trying its images one by one", error=repr(error))
                for item in batch:
                    self._judge([item])
                return
            batch[0].context.run(log.error, "the engine failed on an image", error=repr(error))
            _fail(batch, Internal(f"the engine failed on this image: {type(error).__name__}: {error}"[:500]))
            return
        self._metrics.compute_seconds.observe(time.perf_counter() - begun)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.sizes[len(batch)] += 1
        now = time.time()
        for item, score, heatmap in zip(batch, output.scores.tolist(), heatmaps, strict=True):
            item.future.set_result(Scored(score, item.queued_at_s, now, heatmap))


def _checked(output: Output, count: int) -> Sequence[Heatmap | None]:
    """The heatmap of each image. Raises Internal when there are not as many scores, or heatmaps, as images."""
    scores, heatmaps = output
    if scores.shape != (count,):
        raise Internal(f"the engine gave scores of shape {scores.shape} for {count} images")
    if heatmaps is None:
        return [None] * count
    if heatmaps.ndim != 3 or len(heatmaps) != count:
        raise Internal(f"the engine gave heatmaps of shape {heatmaps.shape} for {count} images")
    return list(heatmaps)


def _fail(items: list[_Item], error: Exception) -> None:
    """Answers items that are in the engine's hands, and so can no longer be cancelled, with an error."""
    for item in items:
        item.future.set_exception(error)
