"""The batcher with an engine that calls back: who starts it, in which order, and what if it never tells."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import weakref
from concurrent.futures import Future

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from inspectbus.bus import Lane
from inspectbus.errors import Internal, ModelNotReady, TooLate
from inspectbus.imaging import Image
from inspectbus.inference.batcher import Batcher, Scored
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.inference.streams import Flow, Streams
from inspectbus.runtime.watchdog import Watchdog
from tests.doubles.engines import PATIENCE_S, CallingEngine

SIDE = 4


def image(level: int) -> Image:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def make(
    engine: CallingEngine,
    *,
    size: int = 4,
    wait_s: float = 0.0,
    drain_s: float = PATIENCE_S,
    limit: int = 1000,
    watchdog: Watchdog | None = None,
    flow: Flow | None = None,
) -> Batcher:
    return Batcher(
        engine,
        SIDE,
        SIDE,
        BatcherMetrics(CollectorRegistry(), size),
        watchdog or Watchdog(60.0),
        max_batch_size=size,
        max_batch_wait_s=wait_s,
        queue_limit=limit,
        drain_s=drain_s,
        flow=flow,
    )


def level_of(future: Future[Scored]) -> int:
    return round(future.result(0).score * 255)


def test_whoever_brings_an_image_to_an_idle_stream_starts_it_and_no_other_thread_is_woken() -> None:
    engine = CallingEngine()
    with make(engine) as batcher:
        call = batcher.call(image(7))
        assert engine.threads == [threading.get_ident()]
        engine.tell()
        assert level_of(call) == 7
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("inference")]
        assert threads == ["inference-batcher-timer"]


def test_the_next_batch_is_started_before_anybody_is_told_of_the_last() -> None:
    engine = CallingEngine()
    with make(engine, size=2) as batcher:
        under_way: list[int] = []
        calls = [batcher.call(image(level)) for level in range(5)]
        for call in calls:
            call.add_done_callback(lambda _: under_way.append(len(engine.started)))
        for _ in range(3):
            engine.tell()
        assert [level_of(call) for call in calls] == [0, 1, 2, 3, 4]
    assert engine.batches == [[0], [1, 2], [3, 4]]
    assert under_way == [1, 1, 1, 0, 0]


def test_a_batch_that_fails_is_tried_image_by_image_in_the_turn_it_has() -> None:
    engine = CallingEngine()
    engine.poison = {2}
    streams = Streams(1)
    with make(engine, flow=streams.flow()) as batcher, make(other := CallingEngine(), flow=streams.flow()) as beside:
        calls = batcher.call_all([image(level) for level in (1, 2, 3)])
        waiting = beside.call(image(9))
        for _ in range(4):
            assert other.started == []
            engine.tell()
        assert [level_of(calls[0]), level_of(calls[2])] == [1, 3]
        with pytest.raises(Internal, match="cannot be computed"):
            calls[1].result(0)
        other.tell()
        assert level_of(waiting) == 9
    assert engine.batches == [[1, 2, 3], [1], [2], [3]]


@pytest.mark.parametrize("size", [1, 512])
def test_an_engine_that_answers_before_start_returns_goes_through_thousands_and_no_deeper(size: int) -> None:
    # given more images than Python's stack could hold calls, each of which fails, and a batch of them image by image
    engine = CallingEngine()
    engine.poison = set(range(256))
    count = 2 * sys.getrecursionlimit()
    with make(engine, size=size, limit=2 * count) as batcher:
        calls = [batcher.call(image(n % 200)) for n in range(count)]
        engine.inline = True
        # when the first is told
        engine.tell()
        # then all are, on this thread
        assert all(isinstance(call.exception(0), Internal) for call in calls)
        engine.poison = set()
        assert level_of(batcher.call(image(5))) == 5


def test_an_engine_that_breaks_its_promise_and_raises_costs_its_images_and_no_turn() -> None:
    class Raising(CallingEngine):
        def start(self, images: object, done: object) -> None:
            raise MemoryError("no memory to begin")

    with make(Raising()) as batcher:
        for level in range(3):
            with pytest.raises(Internal, match="no memory to begin"):
                batcher.call(image(level)).result(0)


def test_whoever_is_told_may_call_again_at_once() -> None:
    engine = CallingEngine(inline=True)
    with make(engine, size=1) as batcher:
        left = 2 * sys.getrecursionlimit()
        last: list[Future[Scored]] = []

        def again(_: Future[Scored]) -> None:
            nonlocal left
            left -= 1
            call = batcher.call(image(left % 200))
            if left:
                call.add_done_callback(again)
            else:
                last.append(call)

        engine.inline = False
        batcher.call(image(1)).add_done_callback(again)
        engine.inline = True
        engine.tell()
        assert level_of(last[0]) == 0


def test_an_answer_that_hurts_whoever_hears_it_keeps_nobody_from_theirs(caplog: pytest.LogCaptureFixture) -> None:
    engine = CallingEngine()
    with make(engine) as batcher, caplog.at_level(logging.CRITICAL, "concurrent.futures"):
        calls = batcher.call_all([image(1), image(2)])
        calls[0].add_done_callback(lambda call: 1 / 0)
        engine.tell()
        assert [level_of(call) for call in calls] == [1, 2]
        call = batcher.call(image(3))
        engine.tell()
        assert level_of(call) == 3


def test_closing_with_an_engine_that_never_tells_ends_in_time_and_fails_those_who_wait() -> None:
    engine = CallingEngine()
    with make(engine, size=1, drain_s=0.1) as batcher:
        stuck, behind = batcher.call(image(1)), batcher.call(image(2))
    with pytest.raises(ModelNotReady):
        behind.result(0)
    assert not stuck.done()
    # when it does so at last
    engine.tell()
    assert level_of(stuck) == 1
    assert engine.started == []


def test_an_engine_that_never_tells_is_a_call_that_hangs() -> None:
    hung = threading.Event()
    engine = CallingEngine(streams=2)
    with Watchdog(0.2, on_hang=hung.set) as watchdog, make(engine, size=1, watchdog=watchdog) as batcher:
        stuck = batcher.call(image(1))
        held = engine.started.pop()
        while not hung.wait(0.01):
            call = batcher.call(image(2))
            engine.tell()
            assert level_of(call) == 2
        assert not stuck.done()
        engine.started.append(held)
        engine.tell()
        assert level_of(stuck) == 1


def test_closing_waits_for_the_engine_and_until_everybody_is_told() -> None:
    engine = CallingEngine()
    told: list[int] = []
    batcher = make(engine, size=2, wait_s=1.0)
    with batcher:
        calls = [batcher.call(image(level)) for level in range(3)]
        for call in calls:
            call.add_done_callback(lambda call: told.append(level_of(call)))
        closing = threading.Thread(target=batcher.close)
        closing.start()
        # the last one would wait for company, and does not any more
        engine.tell()
        assert comes_to_start(engine)
        assert closing.is_alive()
        engine.tell()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        assert told == [0, 1, 2]


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer wakes up for what it was told, and not to look."""
    monkeypatch.setattr("inspectbus.inference.batcher.LOOK_S", 1000 * PATIENCE_S)


def comes_to_start(engine: CallingEngine) -> bool:
    until_s = time.monotonic() + PATIENCE_S
    while not engine.started and time.monotonic() < until_s:
        pass
    return bool(engine.started)


@pytest.mark.usefixtures("no_looks")
def test_a_frame_that_waits_for_company_is_begun_when_its_time_is_over_also_behind_a_batch_that_was_due() -> None:
    # given a full batch that is computed, one that waits for its turn, and the first of a third
    engine = CallingEngine()
    with make(engine, size=2, wait_s=0.2) as batcher:
        calls = [batcher.call(image(level)) for level in range(4)]
        lone = batcher.deliver(image(9), Lane.LIVE)
        engine.tell()
        engine.tell()
        # then nobody is needed to begin it
        assert comes_to_start(engine)
        engine.tell()
        assert [level_of(call) for call in (*calls, lone)] == [0, 1, 2, 3, 9]


@pytest.mark.usefixtures("no_looks")
def test_a_call_that_waits_behind_others_is_told_at_its_deadline() -> None:
    engine = CallingEngine()
    with make(engine) as batcher:
        first, far = batcher.call(image(1)), batcher.call(image(2), time.monotonic() + 2 * PATIENCE_S)
        near = batcher.call(image(3), time.monotonic() + 0.05)
        with pytest.raises(TooLate):
            near.result(PATIENCE_S)
        engine.tell()
        engine.tell()
        assert [level_of(first), level_of(far)] == [1, 2]


def test_a_shadow_is_begun_when_the_image_it_gives_way_to_is_cancelled() -> None:
    # given an idle stream, an image that waits for company, and one of a shadow
    streams = Streams(1)
    engine, second = CallingEngine(), CallingEngine()
    with (
        make(engine, wait_s=PATIENCE_S, flow=streams.flow()) as batcher,
        make(second, flow=streams.flow(shadow=True)) as shadow,
    ):
        gone = batcher.deliver(image(1), Lane.LIVE)
        judged = shadow.call(image(2))
        assert second.started == []
        assert gone.cancel()
        second.tell()
        assert level_of(judged) == 2
    assert engine.batches == []


def test_an_engine_is_asked_now_and_then_whether_it_failed_without_a_word() -> None:
    engine = CallingEngine()
    with make(engine):
        assert engine.looked.acquire(timeout=PATIENCE_S)
        assert engine.looked.acquire(timeout=PATIENCE_S)


def test_once_closed_an_engine_waits_for_no_garbage_collector() -> None:
    gc.disable()
    try:
        engine = CallingEngine()
        with make(engine) as batcher:
            call = batcher.call(image(1))
            engine.tell()
            assert level_of(call) == 1
        gone = weakref.ref(engine)
        del engine, batcher, call
        assert gone() is None
    finally:
        gc.enable()
