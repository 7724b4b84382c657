"""The batcher: frames from both doors wait here, and an idle engine takes what is there at once.

    call ── can it be in time? ─> ┌ live    ┐                                         ┌ stream ┐
    bus  ── never refused ──────> └ backlog ┘ slots ─> batch, split over the streams ─┤  ...   ├─> each frame's future
                                      └── cancelled, or its deadline passes: dropped  └ stream ┘

No thread waits for any of it. Whoever brings an image starts the engine, where a stream is idle; else the engine's own
thread, which tells of a batch, starts the next one first, and then hands out the answers.

Work-conserving: while all streams compute, frames gather; when one is idle, nothing waits for company, unless
`max_batch_wait_s` allows it, and then each frame counts from its own arrival. Pixels are copied once, when they arrive,
into the memory that the engine will read (`slots`). A call whose deadline cannot be met, by what the engine's last runs
took (`admission`), is refused at once, for it would cost others theirs; frames from the bus are all judged. Every frame
taken is answered exactly once: with its score, with the error that concerns it, or by its own cancellation.

A batcher with images wishes for its turn at a stream, which others may share (`streams`), and only then takes the
batch, which has grown meanwhile. What becomes of it in the engine is `passes`' matter.
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

from inspectbus.bus import Lane
from inspectbus.bus.contract import BACKLOG_SHARE
from inspectbus.errors import BadField, Internal, ModelNotReady, QueueFull, TooLate
from inspectbus.imaging import Image
from inspectbus.inference.admission import MARGIN, Ahead, Pace, answered_in_s
from inspectbus.inference.afterwards import follow
from inspectbus.inference.blocking import OnThreads
from inspectbus.inference.engine import Engine, Heatmap, Images, Starting
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.inference.passes import Pass, Passage
from inspectbus.inference.slots import Run, Slot, SlotQueue, batch_sizes, memory_for
from inspectbus.inference.streams import Flow, Streams, Turn
from inspectbus.runtime.watchdog import Watchdog

LOOK_S = 1.0
"""How long the timer sleeps at most: an engine is asked so often whether it has failed without a word."""


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
    """One engine, one bounded queue, and a thread that keeps deadlines; an engine that does not call back is given
    threads to block (`blocking`). Use as a context; leaving computes what waits.

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
        self._flow = flow or Streams(engine.streams).flow()
        self._runs = self._flow.limited_to(engine.streams)
        self._metrics = metrics
        self._max_batch_size = max_batch_size = min(max_batch_size, engine.best_batch or max_batch_size)
        self._max_batch_wait_s = max_batch_wait_s
        self._queue_limit = queue_limit
        self._drain_s = drain_s
        self._clock = clock
        self._shape = (height, width, 3)
        self._threads: OnThreads | None = None
        if isinstance(engine, Starting):
            starting: Starting = engine
        else:
            # One for each run at once, but one more than streams: while it hands out answers, the others compute.
            starting = self._threads = OnThreads(engine, max(self._runs, engine.streams + 1))
        sizes = batch_sizes(engine.device, max_batch_size)
        self._passage = Passage(starting, watchdog, metrics, clock, sizes)
        self._slot_bytes = max_batch_size * math.prod(self._shape)
        make = memory_for(engine.device, (max_batch_size, *self._shape))
        # One for each run at once, and one for each lane to fill meanwhile. The queue knows nothing of us: an
        # engine that is replaced must not wait, with us, for the garbage collector.
        self._queue: SlotQueue[_Item] = SlotQueue(
            partial(_counted, make, metrics, self._slot_bytes), ready=self._runs + len(Lane)
        )
        self._flow.is_for(self._queue, self._begin)
        self._wished = False
        """For a turn, which has not begun yet."""
        self._pace = Pace()
        self._under_way: dict[Turn, tuple[float, int]] = {}
        """Of each turn in which something is computed: since when, and how many images."""
        self._handing_out = 0
        """Batches whose images are being answered."""
        self._looks_s = math.inf
        """When the timer looks next."""
        self._closing = False
        self._over = False
        self._lock = threading.Lock()
        self._sooner = threading.Condition(self._lock)
        """The timer must look sooner."""
        self._quiet = threading.Condition(self._lock)
        """Whoever closes us may go on."""
        self._timer = threading.Thread(target=self._keep_time, name="inference-batcher-timer", daemon=True)

    def __enter__(self) -> Batcher:
        self._timer.start()
        if self._threads is not None:
            self._threads.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Takes nothing more, and computes what waits for at most `drain_s`; what is left then fails."""
        until_s = time.monotonic() + self._drain_s
        with self._lock:
            first = not self._closing
            self._closing = True
            wish = self._wants_turn(self._clock())
        if wish:
            self._flow.wish()
        with self._lock:
            self._quiet.wait_for(self._is_quiet, max(0.0, until_s - time.monotonic()))
            waiting = self._queue.clear()
            self._over = True
            self._sooner.notify()
        self._flow.close()
        if self._threads is not None:
            self._threads.close(until_s)
        self._timer.join(LOOK_S)
        self._passage.engine.look()
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
                wish = self._wants_turn(now)
            if wish:
                self._flow.wish()
        if deadline_s < self._looks_s:
            with self._lock:
                if len(self._queue):  # where a stream was idle it has begun, and the timer need not know
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
            self._gone()

    def _keep_time(self) -> None:
        while True:
            with self._lock:
                if self._over:
                    return
                now = self._clock()
                late, cancelled = self._overdue(now)
                wish = self._wants_turn(now)
                if not (late or cancelled or wish):
                    deadlines_s = (item.deadline_s for item in self._queue.ready())
                    due_s = math.inf if self._wished else self._due_s()
                    self._looks_s = min(due_s, now + LOOK_S, *deadlines_s)
                    self._sooner.wait(self._looks_s - now)
            if wish:
                self._flow.wish()
            self._drop(late, cancelled)
            self._passage.engine.look()

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
        if late or cancelled:
            self._gone()

    def _gone(self) -> None:
        """Images have left without a turn, for which others may have waited."""
        self._flow.emptied()
        if self._closing:
            with self._lock:
                self._quiet.notify_all()

    # --- who is computed

    def _begin(self, turn: Turn) -> None:
        """A stream is ours. There may be nothing left for it: the batch is taken only now."""
        batch, late, cancelled = None, list[_Item](), list[_Item]()
        with self._lock:
            self._wished = False
            now = self._clock()
            if self._due_s() <= now:
                batch = self._taken(now, late, cancelled)
            if batch is not None:
                self._under_way[turn] = (now, len(batch.items))
            wish = self._wants_turn(now)
        if batch is None:
            turn.end(used=False)
        else:
            self._metrics.went(batch.slot.lane, len(batch.items))
            batch.closed_up()
            contexts = [item.context for item in batch.items]
            ended = partial(self._ended, turn, batch, now)
            Pass(self._passage, batch.slot.images, batch.start, contexts, ended).begin()
        # The one stream computes already: now the next, where there is more, or others who waited for our images.
        if wish:
            self._flow.wish()
        else:
            self._flow.emptied()
        self._drop(late, cancelled)

    def _taken(self, now: float, late: list[_Item], cancelled: list[_Item]) -> Run[_Item] | None:
        """A batch. Of those before it: to the lists, whose deadline has passed, and who have just been cancelled."""

        def wanted(item: _Item) -> bool:
            if not item.set_running_or_notify_cancel():
                cancelled.append(item)
            elif item.deadline_s <= now:
                late.append(item)
            else:
                return True
            return False

        return self._queue.take(self._share(), wanted)

    def _ended(self, turn: Turn, batch: Run[_Item], begun_s: float, one: Pass) -> None:
        """On the engine's thread."""
        with self._lock:
            # Before anybody is answered, who may call again at once: this stream is idle, and the memory free.
            del self._under_way[turn]
            self._queue.done(batch)
            for count, compute_s in one.ran:
                self._pace.observe(count, compute_s)
            self._handing_out += 1
        # Whoever has the stream now starts the engine before we go on: it never waits for us to tell our callers.
        turn.end()
        follow(partial(self._hand_out, batch, begun_s), one)

    def _hand_out(self, batch: Run[_Item], begun_s: float, one: Pass) -> None:
        self._metrics.begun(batch.slot.lane, [begun_s - item.arrived_s for item in batch.items])
        for count, compute_s in one.ran:
            self._metrics.ran(count, compute_s)
        for item, found in zip(batch.items, one.found, strict=True):
            if isinstance(found, Internal):
                item.set_exception(found)
            else:
                item.set_result(Scored(found.score, item.queued_at_s, found.at_s, found.heatmap))
        with self._lock:
            self._handing_out -= 1
            if self._closing:
                self._quiet.notify_all()

    def _is_quiet(self) -> bool:
        return not (len(self._queue) or self._under_way or self._handing_out)

    def _wants_turn(self, now: float) -> bool:
        """Whether to wish for one; whoever hears so does it, without the lock. What is due later is the timer's."""
        if self._wished or (due_s := self._due_s()) == math.inf:
            return False
        if due_s <= now:
            self._wished = True
        elif due_s < self._looks_s:
            self._sooner.notify()
        return self._wished

    def _due_s(self) -> float:
        """When a batch is due, on our clock: long ago where it is, and never where nobody waits."""
        due_s = math.inf
        for slot in self._queue.heads():
            if self._closing or slot.full or not self._max_batch_wait_s:
                return -math.inf
            due_s = min(due_s, self._company_until_s(slot))
        return due_s

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
        return self._passage.padded(min(share, self._max_batch_size))


def _counted(make: Callable[[], Images], metrics: BatcherMetrics, size: int) -> Images:
    images = make()
    metrics.slot_bytes.inc(size)
    return images


def _fail(items: list[_Item], error: Exception) -> None:
    """Answers items that are in the engine's hands, and so can no longer be cancelled, with an error."""
    for item in items:
        item.set_exception(error)
