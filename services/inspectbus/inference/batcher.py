"""The batcher: frames from both doors wait here, and an idle engine takes what is there at once.

    call ── can it be in time? ─> ┌ live    ┐                                         ┌ stream ┐
    bus  ── never refused ──────> └ backlog ┘ slots ─> batch, split over the streams ─┤  ...   ├─> each frame's future
                                      └── cancelled, or its deadline passes: dropped  └ stream ┘

Work-conserving: while all streams compute, frames gather; when one is idle, nothing waits for company, unless
`max_batch_wait_s` allows it, and then each frame counts from its own arrival. Pixels are copied once, when they arrive,
into the memory that the engine will read (`slots`). A call whose deadline cannot be met, by what the engine's last runs
took (`admission`), is refused at once, for it would cost others theirs; frames from the bus are all judged. Every frame
taken is answered exactly once: with its score, with the error that concerns it, or by its own cancellation.

Where several batchers share the machine, one with images waits for its turn at a stream (`streams`), and only then
takes the batch, which has grown meanwhile.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import numpy as np
import structlog

from inspectbus import spans
from inspectbus.bus import Lane
from inspectbus.bus.contract import BACKLOG_SHARE
from inspectbus.errors import BadField, Internal, ModelNotReady, QueueFull, TooLate
from inspectbus.imaging import Image
from inspectbus.inference.admission import MARGIN, Ahead, Pace, answered_in_s
from inspectbus.inference.engine import Engine, Heatmap, Images, Output
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.inference.slots import Run, Slot, SlotQueue, batch_sizes, memory_for
from inspectbus.inference.streams import Flow, Streams
from inspectbus.runtime.watchdog import Watchdog

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""How long an idle thread sleeps between looks: nothing depends on it, a lost wake-up would cost a second."""


@dataclass(frozen=True)
class Scored:
    """What the engine said of one image, and when. Wall clock, seconds since the epoch."""

    score: float
    """As the engine gave it; whoever makes a verdict of it checks that it is a number."""
    queued_at_s: float
    inferred_at_s: float
    heatmap: Heatmap | None = field(default=None, compare=False)


class _Item(Future[Scored]):
    """One image that waits, and its answer to be. Whoever has the answer may cancel it."""

    def __init__(self, lane: Lane, deadline_s: float, arrived_s: float, forget: Callable[[_Item], None]) -> None:
        """`deadline_s` is on the monotonic clock; nobody waits for an answer after it. `forget` is told of its
        cancellation."""
        super().__init__()
        self.lane = lane
        self.deadline_s = deadline_s
        self.arrived_s = arrived_s
        self.queued_at_s = time.time()
        self.context = copy_context()
        """Whose image it is: log lines and the batch's span find it here."""
        self._forget = forget

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._forget(self)
        return cancelled


class Batcher:
    """One engine, one bounded queue, and a worker for each run there may be at once, but one more than streams: while
    it hands out answers, the others compute. Use as a context; leaving computes what waits.

    Its memory is that of its slots (`SlotQueue`): with n images that may wait at most, some n plus four batches for the
    lanes' ends and one for each stream. `queue_limit` bounds n for calls, the bus's prefetch what comes beside.
    """

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
        flow: Flow | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`flow` leads to the streams that it shares with other batchers; None: it has its engine's for itself."""
        self._engine = engine
        self._flow = flow or Streams(engine.streams).flow()
        self._runs = self._flow.limited_to(engine.streams)
        self._metrics = metrics
        self._watchdog = watchdog
        self._max_batch_size = max_batch_size = min(max_batch_size, engine.best_batch or max_batch_size)
        self._max_batch_wait_s = max_batch_wait_s
        self._queue_limit = queue_limit
        self._drain_s = drain_s
        self._clock = clock
        self._shape = (height, width, 3)
        self._sizes = batch_sizes(engine.device, max_batch_size)
        self._slot_bytes = max_batch_size * math.prod(self._shape)
        make = memory_for(engine.device, (max_batch_size, *self._shape))
        # One for each run at once, and one for each lane to fill meanwhile. The queue knows nothing of us: an
        # engine that is replaced must not wait, with us, for the garbage collector.
        self._queue: SlotQueue[_Item] = SlotQueue(
            partial(_counted, make, metrics, self._slot_bytes), ready=self._runs + len(Lane)
        )
        self._flow.is_for(self._queue)
        self._pace = Pace()
        self._under_way: dict[int, tuple[float, int]] = {}
        """Of each worker that computes: since when, and how many images."""
        self._next_deadline_s = math.inf
        self._closing = False
        self._ended = False
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._sooner = threading.Condition(self._lock)
        """A deadline came that is before all others."""
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"inference-batcher-{worker}", daemon=True)
            for worker in range(max(self._runs, engine.streams + 1))
        ]
        self._timer = threading.Thread(target=self._keep_deadlines, name="inference-batcher-timer", daemon=True)

    def __enter__(self) -> Batcher:
        self._timer.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Takes nothing more, and computes what waits for at most `drain_s`; what is left then fails."""
        until_s = time.monotonic() + self._drain_s
        with self._lock:
            first = not self._closing
            self._closing = True
            self._arrived.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        with self._lock:
            waiting = self._queue.clear()
            self._ended = True
            self._sooner.notify_all()
        self._flow.close()
        self._timer.join(LOOK_S)
        for item in waiting:
            self._metrics.went(item.lane, 1)
        if first:
            self._metrics.slot_bytes.dec(self._queue.slots * self._slot_bytes)
        left = [item for item in waiting if item.set_running_or_notify_cancel()]
        _fail(left, ModelNotReady("the service stopped before this image's turn"))

    def call(self, image: Image, deadline_s: float = math.inf) -> Future[Scored]:
        """For a caller who waits. Raises QueueFull at the limit, and when the deadline (monotonic seconds) is nearer
        than an answer; it says when to come again. A stream that is idle tries in any case.

        A call that is cancelled, or whose deadline passes before its turn, is not computed: its future is cancelled, or
        fails with TooLate at its deadline.
        """
        (future,) = self.call_all([image], deadline_s)
        return future

    def call_all(self, images: Sequence[Image], deadline_s: float = math.inf) -> list[Future[Scored]]:
        """For a caller who waits for every one of them: each as by `call`, and all have a place, or none."""
        return self._put(images, Lane.LIVE, deadline_s, refusable=True)

    def deliver(self, image: Image, lane: Lane) -> Future[Scored]:
        """For the bus, whose prefetch bounds what it brings. Never refused for want of room."""
        (future,) = self._put([image], lane, math.inf, refusable=False)
        return future

    @property
    def waiting(self) -> int:
        with self._lock:
            return len(self._queue)

    @property
    def computed_s(self) -> float:
        """Seconds that it had streams."""
        return self._flow.computed_s

    # --- who comes and goes

    def _put(self, images: Sequence[Image], lane: Lane, deadline_s: float, *, refusable: bool) -> list[Future[Scored]]:
        for image in images:
            self._check(image)
        now = self._clock()
        items = [_Item(lane, deadline_s, now, self._forget) for _ in images]
        with self._lock:
            if self._closing:
                raise ModelNotReady("the service is stopping")
            if refusable:
                self._admit(len(items), deadline_s - now)
            places = self._seated(items)
        self._metrics.came(lane, len(items))
        # Of a call with many images the first batch is computed while we copy the next.
        for at in range(0, len(items), self._max_batch_size):
            chunk = slice(at, at + self._max_batch_size)
            # Not under the lock: others come, and streams take, while we copy.
            for place, image in zip(places[chunk], images[chunk], strict=True):
                np.copyto(place, image)
            with self._lock:
                for item in items[chunk]:
                    self._queue.filled(item)
                self._arrived.notify(len(items[chunk]))
                if deadline_s < self._next_deadline_s:
                    self._sooner.notify()
        return [*items]

    def _check(self, image: Image) -> None:
        # What could not be copied must not take a place first.
        if image.dtype != np.uint8:
            raise BadField(f"pixels are {image.dtype}; the model takes uint8", field="pixels")
        if image.shape != self._shape:
            height, width, channels = image.shape
            raise BadField(
                f"pixels are {height}x{width} with {channels} channels; the model takes "
                f"{self._shape[0]}x{self._shape[1]} with 3",
                field="pixels",
            )

    def _admit(self, count: int, left_s: float) -> None:
        waiting = len(self._queue)
        if (excess := waiting + count - self._queue_limit) > 0:
            self._metrics.dropped("queue_full", Lane.LIVE, count)
            raise QueueFull(
                f"{waiting} images wait for the engine, of {self._queue_limit} that may; "
                f"there is no room for {count} more, try again shortly",
                retry_s=self._pace.work_s(excess, self._max_batch_size) / self._runs if self._pace.known else None,
            )
        # An idle stream costs nobody anything. It also measures again, so that one slow run refuses no call for ever.
        idle = not waiting and len(self._under_way) < self._runs
        # One that is late already is no matter of room: it is told so.
        if idle or left_s <= 0 or left_s == math.inf or not self._pace.known:
            return
        needed_s = MARGIN * answered_in_s(
            self._pace, self._ahead(), count, size=self._max_batch_size, streams=self._runs
        )
        if needed_s > left_s:
            self._metrics.dropped("no_time", Lane.LIVE, count)
            raise QueueFull(
                f"{waiting} images wait for the engine: an answer may take {needed_s:.2f} s, and the call ends in "
                f"{left_s:.2f} s; try again in {needed_s - left_s:.2f} s",
                retry_s=needed_s - left_s,
            )

    def _ahead(self) -> Ahead:
        now = self._clock()
        remaining_s = sum(
            max(0.0, begun_s + self._pace.batch_s(count) - now) for begun_s, count in self._under_way.values()
        )
        slowed = BACKLOG_SHARE / (BACKLOG_SHARE - 1) if self._queue.count(Lane.BACKLOG) else 1.0
        return Ahead(remaining_s, self._queue.count(Lane.LIVE), slowed * self._flow.crowd)

    def _seated(self, items: list[_Item]) -> list[Image]:
        places = []
        for number, item in enumerate(items):
            try:
                places.append(self._queue.seat(item, item.lane))
            except MemoryError:
                for other in items[:number]:
                    self._queue.filled(other)
                    self._queue.leave(other)
                raise
        return places

    def _forget(self, item: _Item) -> None:
        """A cancelled call gives its place back at once, and not only when its turn comes."""
        with self._lock:
            # Who takes an item out of its place tells its future, so none is told twice.
            mine = self._queue.leave(item)
        if mine:
            self._metrics.went(item.lane, 1)
            self._metrics.dropped("cancelled", item.lane)
            item.set_running_or_notify_cancel()

    def _keep_deadlines(self) -> None:
        while True:
            with self._lock:
                if self._ended:
                    return
                now = self._clock()
                late, cancelled = self._overdue(now)
                self._next_deadline_s = min((item.deadline_s for item in self._queue.ready()), default=math.inf)
                if not (late or cancelled):
                    self._sooner.wait(min(self._next_deadline_s - now, LOOK_S))
            self._drop(late, cancelled)

    def _overdue(self, now: float) -> tuple[list[_Item], list[_Item]]:
        """Whose deadline has passed while they waited leaves: the late, and those who have just been cancelled."""
        late: list[_Item] = []
        cancelled: list[_Item] = []
        for item in [item for item in self._queue.ready() if item.deadline_s <= now]:
            (late if item.set_running_or_notify_cancel() else cancelled).append(item)
            self._queue.leave(item)
        return late, cancelled

    def _drop(self, late: list[_Item], cancelled: list[_Item]) -> None:
        for reason, items in (("deadline", late), ("cancelled", cancelled)):
            for item in items:
                self._metrics.went(item.lane, 1)
                self._metrics.dropped(reason, item.lane)
        if late:
            _fail(late, TooLate("the call's deadline passed before its turn"))

    # --- who is computed

    def _work(self, worker: int) -> None:
        while self._is_due():
            turn = self._flow.begin()
            if turn is None:
                return
            batch = None
            try:
                batch = self._next(worker)
                answers = [] if batch is None else self._judged(worker, batch)
            finally:
                turn.end(used=batch is not None)
            if batch is not None:
                _hand_out(batch.items, answers)

    def _next(self, worker: int) -> Run[_Item] | None:
        """The next batch; None when it has gone, to another stream or unanswered, before it was this one's turn."""
        with self._lock:
            batch, late, cancelled = self._taken() if self._queue.heads() else (None, [], [])
            if batch is not None:
                self._under_way[worker] = (self._clock(), len(batch.items))
        self._drop(late, cancelled)
        if batch is None:
            return None
        lane, now = batch.slot.lane, self._clock()
        self._metrics.went(lane, len(batch.items))
        self._metrics.begun(lane, [now - item.arrived_s for item in batch.items])
        return batch

    def _taken(self) -> tuple[Run[_Item] | None, list[_Item], list[_Item]]:
        """A batch, and of those before it whose deadline has passed, and who have just been cancelled."""
        late: list[_Item] = []
        cancelled: list[_Item] = []
        now = self._clock()

        def wanted(item: _Item) -> bool:
            if not item.set_running_or_notify_cancel():
                cancelled.append(item)
            elif item.deadline_s <= now:
                late.append(item)
            else:
                return True
            return False

        batch = self._queue.take(self._share(), wanted)
        # Whoever was woken for a part of this batch may have looked already, and sleep again.
        if len(self._queue):
            self._arrived.notify()
        return batch, late, cancelled

    def _is_due(self) -> bool:
        """Waits until a batch is due. False when we are closing and nothing waits."""
        with self._lock:
            while len(self._queue) or not self._closing:
                left_s = self._due_in_s()
                if left_s <= 0:
                    return True
                self._arrived.wait(left_s)
            return False

    def _due_in_s(self) -> float:
        """When to look for a batch again: 0 where one is due, LOOK_S where nobody waits."""
        patience_s = LOOK_S
        for slot in self._queue.heads():
            if self._closing or slot.full or not self._max_batch_wait_s:
                return 0.0
            patience_s = min(patience_s, self._company_until_s(slot) - self._clock())
        return patience_s

    def _company_until_s(self, slot: Slot[_Item]) -> float:
        """When the first of them has waited long enough, or must go to be in time."""
        compute_s = MARGIN * self._pace.batch_s(len(slot.waiting))
        until_s = math.inf
        for item in slot.waiting.values():
            # How early one with a deadline must go is not known before the first run.
            wait_s = self._max_batch_wait_s if self._pace.known or item.deadline_s == math.inf else 0.0
            until_s = min(until_s, item.arrived_s + wait_s, item.deadline_s - compute_s)
        return until_s

    def _share(self) -> int:
        """Images of the next batch at most: a run's share of all that there are, computed ones included.

        One that took all would leave the next to be idle with nothing until it has answered.
        """
        computed = sum(count for _, count in self._under_way.values())
        share = math.ceil((len(self._queue) + computed) / self._runs)
        return self._padded(min(share, self._max_batch_size))

    def _padded(self, count: int) -> int:
        return next((size for size in self._sizes if size >= count), count)

    def _judged(self, worker: int, batch: Run[_Item]) -> list[Scored | Internal]:
        batch.closed_up()
        try:
            return self._computed(batch, 0, len(batch.items))
        finally:
            # Before anybody is answered, who may call again at once: this stream is idle, and the memory free.
            with self._lock:
                del self._under_way[worker]
                self._queue.done(batch)

    def _computed(self, batch: Run[_Item], first: int, count: int) -> list[Scored | Internal]:
        """What the engine says of the batch's images from `first` on."""
        # Whatever lies beside them makes up a size that the engine likes. At a slot's end that is before them.
        size = self._padded(count)
        start = min(batch.start + first, self._max_batch_size - size)
        begun_s = self._clock()
        try:
            with (
                self._watchdog.watching(f"a pass of {count} images through the network"),
                spans.batch("infer", [item.context for item in batch.items[first : first + count]]),
            ):
                output = self._engine.infer(batch.slot.images[start : start + size])
            heatmaps = _checked(output, size)
        except Exception as error:  # an engine may raise anything; it concerns these images and never the next
            self._metrics.engine_errors.inc()
            if count > 1:
                log.warning("the engine failed on a batch, trying its images one by one", error=repr(error))
                return [self._computed(batch, place, 1)[0] for place in range(first, first + count)]
            batch.items[first].context.run(log.error, "the engine failed on an image", error=repr(error))
            return [Internal(f"the engine failed on this image: {type(error).__name__}: {error}"[:500])]
        compute_s = self._clock() - begun_s
        with self._lock:
            self._pace.observe(count, compute_s)
        self._metrics.ran(count, compute_s)
        now = time.time()
        ours = slice(batch.start + first - start, batch.start + first - start + count)
        rows = zip(batch.items[first : first + count], output.scores[ours].tolist(), heatmaps[ours], strict=True)
        return [Scored(score, item.queued_at_s, now, heatmap) for item, score, heatmap in rows]


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


def _counted(make: Callable[[], Images], metrics: BatcherMetrics, size: int) -> Images:
    images = make()
    metrics.slot_bytes.inc(size)
    return images


def _hand_out(items: list[_Item], answers: list[Scored | Internal]) -> None:
    for item, answer in zip(items, answers, strict=True):
        if isinstance(answer, Scored):
            item.set_result(answer)
        else:
            item.set_exception(answer)


def _fail(items: list[_Item], error: Exception) -> None:
    """Answers items that are in the engine's hands, and so can no longer be cancelled, with an error."""
    for item in items:
        item.set_exception(error)
