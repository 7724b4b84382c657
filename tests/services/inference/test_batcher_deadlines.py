"""Calls with a deadline: refused at once when it cannot be met, dropped when it passes, and never for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from inspectbus.bus import Lane
from inspectbus.errors import QueueFull, TooLate
from inspectbus.imaging import Image
from inspectbus.inference.admission import MARGIN
from inspectbus.inference.batcher import Batcher, Scored
from inspectbus.inference.engine import Images, Output
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.runtime.watchdog import Watchdog
from tests.doubles.engines import PATIENCE_S, BrightnessEngine

SIDE = 4
SIZE = 8
BASE_S, EACH_S = 0.002, 0.004
"""Of a pass, on a clock of the test's own."""
BATCH_S = BASE_S + SIZE * EACH_S
CAPACITY = SIZE / BATCH_S
"""Images a second."""


class ScriptedEngine(BrightnessEngine):
    """Its passes last as told on its own clock, and `meanwhile` happens during each. Can be held, too."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.dice = random.Random(1)
        self.jitter = 0.0
        self.stall_s = 0.0
        """Of the next pass alone."""
        self.meanwhile: Callable[[float], None] = lambda until_s: None

    def clock(self) -> float:
        return self.now_s

    def infer(self, images: Images) -> Output:
        spread = 1 + self.jitter * self.dice.uniform(-1, 1)
        ends_s = self.now_s + (BASE_S + EACH_S * len(images)) * spread + self.stall_s
        self.stall_s = 0.0
        output = super().infer(images)
        self.meanwhile(ends_s)
        self.now_s = ends_s
        return output


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    engine.release()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def batcher(engine: ScriptedEngine, registry: CollectorRegistry) -> Iterator[Batcher]:
    with make(engine, registry) as batcher:
        yield batcher
        engine.release()


def make(engine: ScriptedEngine, registry: CollectorRegistry, limit: int = 64, wait_s: float = 0.0) -> Batcher:
    return Batcher(
        engine,
        SIDE,
        SIDE,
        BatcherMetrics(registry, SIZE),
        Watchdog(60.0),
        max_batch_size=SIZE,
        max_batch_wait_s=wait_s,
        queue_limit=limit,
        drain_s=PATIENCE_S,
        clock=engine.clock,
    )


def image(level: int) -> Image:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def learn(batcher: Batcher) -> None:
    """Runs of several sizes, so that the pace is known."""
    for count in (1, SIZE, 1, SIZE):
        for future in batcher.call_all([image(0)] * count):
            future.result(PATIENCE_S)


def busy(batcher: Batcher, engine: ScriptedEngine, lane: Lane = Lane.LIVE) -> None:
    while engine.entered.acquire(blocking=False):
        pass
    engine.hold()
    batcher.deliver(image(255), lane)
    engine.wait_entered()


def dropped(registry: CollectorRegistry, reason: str, lane: str = "live") -> float:
    labels = {"reason": reason, "lane": lane}
    return registry.get_sample_value("inspectbus_inference_dropped_total", labels) or 0.0


def test_a_call_that_cannot_meet_its_deadline_is_refused_at_once_and_told_when_to_come_again(
    engine: ScriptedEngine, batcher: Batcher, registry: CollectorRegistry
) -> None:
    learn(batcher)
    busy(batcher, engine)
    queued = batcher.call_all([image(1)] * 16)
    # One is computed, two batches wait, and its own comes then: some 0.08 s, and the margin.
    needed_s = MARGIN * (BASE_S + EACH_S + 2 * BATCH_S + BASE_S + EACH_S)
    with pytest.raises(QueueFull, match=r"16 images wait .* try again in") as refused:
        batcher.call(image(2), engine.clock() + 0.08)
    assert refused.value.retry_s == pytest.approx(needed_s - 0.08, rel=0.3)
    in_time = batcher.call(image(3), engine.clock() + 0.2)
    assert batcher.waiting == 17
    assert dropped(registry, "no_time") == 1
    engine.release()
    assert all(future.result(PATIENCE_S) for future in (*queued, in_time))
    assert not any(2 in batch for batch in engine.batches)


def test_a_refusal_for_want_of_room_tells_when_there_is_some(
    engine: ScriptedEngine, registry: CollectorRegistry
) -> None:
    with make(engine, registry, limit=16) as batcher:
        learn(batcher)
        busy(batcher, engine)
        batcher.call_all([image(1)] * 16)
        with pytest.raises(QueueFull, match="of 16 that may") as refused:
            batcher.call_all([image(2)] * 8)
        assert refused.value.retry_s == pytest.approx(BATCH_S)
        engine.release()


def test_a_frame_from_the_bus_is_judged_however_long_it_takes(engine: ScriptedEngine, batcher: Batcher) -> None:
    learn(batcher)
    busy(batcher, engine)
    frames = [batcher.deliver(image(level), lane) for level in range(100) for lane in (Lane.LIVE, Lane.BACKLOG)]
    with pytest.raises(QueueFull):
        batcher.call(image(2), engine.clock() + 0.08)
    engine.release()
    assert [round(future.result(PATIENCE_S).score * 255) for future in frames] == [n // 2 for n in range(200)]


def test_an_idle_engine_tries_even_when_it_was_slow_so_that_one_slow_run_refuses_nobody_for_ever(
    engine: ScriptedEngine, batcher: Batcher
) -> None:
    engine.stall_s = 60.0
    batcher.call(image(1)).result(PATIENCE_S)
    for _ in range(3):
        assert batcher.call(image(2), engine.clock() + 0.05).result(PATIENCE_S)


def test_nobody_waits_for_company_beyond_the_moment_to_be_in_time(
    engine: ScriptedEngine, registry: CollectorRegistry
) -> None:
    with make(engine, registry, wait_s=1000.0) as batcher:
        # Nothing is known of the engine: it goes at once.
        batcher.call(image(1), engine.clock() + 100).result(PATIENCE_S)
        for future in batcher.call_all([image(2)] * SIZE):
            future.result(PATIENCE_S)
        # It must go now, to be in time.
        deadline_s = engine.clock() + 1.2 * (BASE_S + EACH_S)
        batcher.call(image(3), deadline_s).result(PATIENCE_S)
        assert engine.clock() <= deadline_s
    assert [len(batch) for batch in engine.batches] == [1, SIZE, 1]


def test_a_call_whose_deadline_passes_while_the_engine_is_busy_is_told_then_and_not_at_its_turn(
    registry: CollectorRegistry,
) -> None:
    engine = ScriptedEngine()
    engine.clock = time.monotonic  # type: ignore[method-assign]
    with make(engine, registry) as batcher:
        busy(batcher, engine)
        far = batcher.call(image(3), time.monotonic() + 600)
        near = batcher.call(image(1), time.monotonic() + 0.05)
        backlog = batcher.deliver(image(2), Lane.BACKLOG)
        with pytest.raises(TooLate):
            near.result(PATIENCE_S)
        assert batcher.waiting == 2
        assert dropped(registry, "deadline") == 1
        engine.release()
        assert far.result(PATIENCE_S)
        assert backlog.result(PATIENCE_S)
    assert not any(1 in batch for batch in engine.batches)
    assert not any(thread.name == "inference-batcher-timer" for thread in threading.enumerate())


@pytest.mark.parametrize(("jitter", "least"), [(0.0, 0.95), (0.3, 0.9)])
def test_at_three_times_the_capacity_most_of_it_answers_calls_in_time(
    registry: CollectorRegistry, jitter: float, least: float
) -> None:
    # given calls that come evenly, three for each that can be computed, and nobody beside the engine's own thread
    engine = ScriptedEngine()
    engine.jitter = jitter
    patience_s, count = 0.2, 3000
    arrivals = iter([number / (3 * CAPACITY) for number in range(count)])
    in_time: list[float] = []
    late: list[float] = []
    hints_s: list[float | None] = []
    most_waiting = 0
    done = threading.Event()
    next_s: float | None = next(arrivals)

    def answered(future: Future[Scored], deadline_s: float) -> None:
        kept = future.exception() is None and engine.now_s <= deadline_s
        (in_time if kept else late).append(deadline_s)
        if next_s is None and opened.waiting == 0:
            done.set()

    def arrive(until_s: float) -> None:
        nonlocal next_s, most_waiting
        while next_s is not None and next_s <= until_s:
            engine.now_s = max(engine.now_s, next_s)
            deadline_s = next_s + patience_s
            next_s = next(arrivals, None)
            try:
                future = opened.call(image(1), deadline_s)
            except QueueFull as error:
                hints_s.append(error.retry_s)
            else:
                future.add_done_callback(partial(answered, deadline_s=deadline_s))
            most_waiting = max(most_waiting, opened.waiting)

    engine.meanwhile = arrive
    # when
    with make(engine, registry) as opened:
        arrive(0.0)
        assert done.wait(4 * PATIENCE_S)
    # then
    assert next_s is None
    assert len(in_time) + len(late) + len(hints_s) == count
    assert len(in_time) / engine.now_s >= least * CAPACITY
    assert len(late) <= 0.1 * len(in_time)
    # Refused where they asked: nobody waited for it, and nothing of them was computed.
    assert sum(len(batch) for batch in engine.batches) <= count - len(hints_s)
    assert all(hint_s is not None and 0 < hint_s < 2 * patience_s for hint_s in hints_s)
    # And what waits is what can be answered in time: the limit was never met.
    assert most_waiting <= CAPACITY * patience_s


def test_what_is_cancelled_between_its_deadline_and_the_timers_look_is_answered_once(
    engine: ScriptedEngine, batcher: Batcher, registry: CollectorRegistry
) -> None:
    busy(batcher, engine)
    call = batcher.call(image(1), engine.clock() + 1000)
    assert call.cancel()
    engine.now_s += 2000
    with pytest.raises(TooLate):
        batcher.call(image(2), engine.clock() - 1).result(PATIENCE_S)
    with pytest.raises(CancelledError):
        call.result(0)
    assert (dropped(registry, "cancelled"), dropped(registry, "deadline")) == (1, 1)
