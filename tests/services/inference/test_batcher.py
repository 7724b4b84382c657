"""The batcher: who is computed when, and that everybody is answered exactly once."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from inspectbus.bus import Lane
from inspectbus.bus.contract import BACKLOG_SHARE
from inspectbus.errors import BadField, Internal, ModelNotReady, QueueFull, TooLate
from inspectbus.imaging import Image
from inspectbus.inference.batcher import Batcher, Scored
from inspectbus.inference.engine import Engine, Images, Output
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.runtime.watchdog import Watchdog
from tests.doubles.engines import PATIENCE_S, BrightnessEngine, PoolEngine

SIDE = 4

Open = Callable[..., Batcher]


def image(level: int) -> Image:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def make(
    engine: Engine,
    *,
    size: int = 4,
    wait_s: float = 0.0,
    limit: int = 1000,
    drain_s: float = PATIENCE_S,
    registry: CollectorRegistry | None = None,
    watchdog: Watchdog | None = None,
) -> Batcher:
    return Batcher(
        engine,
        SIDE,
        SIDE,
        BatcherMetrics(registry or CollectorRegistry(), size),
        watchdog or Watchdog(60.0),
        max_batch_size=size,
        max_batch_wait_s=wait_s,
        queue_limit=limit,
        drain_s=drain_s,
    )


def level_of(future: Future[Scored]) -> int:
    return round(future.result(PATIENCE_S).score * 255)


@pytest.fixture
def engine() -> Iterator[BrightnessEngine]:
    engine = BrightnessEngine()
    yield engine
    engine.release()


@pytest.fixture
def opened(engine: BrightnessEngine) -> Iterator[Open]:
    """Opens batchers on `engine`; on leaving, the engine is released before they drain."""
    with ExitStack() as house:

        def open_one(**how: Any) -> Batcher:
            batcher = house.enter_context(make(engine, **how))
            house.callback(engine.release)
            return batcher

        yield open_one


def busy(batcher: Batcher, engine: BrightnessEngine) -> Future[Scored]:
    """Holds each stream of the engine inside a batch of one, so that what follows gathers. Gives the last one's."""
    engine.hold()
    for _ in range(engine.streams):
        last = batcher.call(image(255))
        engine.wait_entered()
    return last


def test_an_idle_engine_takes_a_lone_frame_at_once(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened(size=4)
    assert level_of(batcher.call(image(7))) == 7
    assert engine.batches == [[7]]


def test_frames_that_gathered_while_the_engine_was_busy_are_one_batch_of_at_most_the_largest_size(
    engine: BrightnessEngine, opened: Open
) -> None:
    batcher = opened(size=4)
    busy(batcher, engine)
    gathered = [batcher.call(image(level)) for level in range(6)]
    engine.release()
    assert [level_of(future) for future in gathered] == list(range(6))
    assert engine.batches == [[255], [0, 1, 2, 3], [4, 5]]


def test_with_a_wait_frames_that_come_apart_share_a_batch_as_soon_as_it_is_full(
    engine: BrightnessEngine, opened: Open
) -> None:
    batcher = opened(size=2, wait_s=PATIENCE_S * 2)
    first = batcher.call(image(1))
    assert not engine.entered.acquire(timeout=0.05), "the first frame did not wait for company"
    second = batcher.call(image(2))
    assert (level_of(first), level_of(second)) == (1, 2)
    assert engine.batches == [[1, 2]]


def test_with_a_wait_a_frame_nobody_joins_goes_alone_when_its_wait_is_over(
    engine: BrightnessEngine, opened: Open
) -> None:
    batcher = opened(size=2, wait_s=0.1)
    begun = time.monotonic()
    assert level_of(batcher.call(image(1))) == 1
    assert 0.09 <= time.monotonic() - begun < PATIENCE_S / 2


def test_the_wait_counts_from_a_frames_own_arrival_and_not_from_when_the_engine_became_idle(
    engine: BrightnessEngine, opened: Open
) -> None:
    # given a frame that has waited longer than its wait behind a busy engine
    wait_s = 0.3
    batcher = opened(size=2, wait_s=wait_s)
    engine.hold()
    pair = [batcher.call(image(255)), batcher.call(image(254))]  # a full batch, so it goes at once
    engine.wait_entered()
    waited = batcher.call(image(1))
    assert not engine.entered.acquire(timeout=wait_s), "a second batch was begun while the first was held"
    # when the engine becomes idle
    engine.release()
    idle_at = time.monotonic()
    # then it goes now, without a second wait
    assert level_of(waited) == 1
    assert time.monotonic() - idle_at < wait_s
    assert all(future.done() for future in pair)


def test_a_call_beyond_the_limit_is_refused_and_the_bus_is_not(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened(size=2, limit=3)
    busy(batcher, engine)
    taken = [batcher.call(image(level)) for level in range(3)]
    with pytest.raises(QueueFull):
        batcher.call(image(9))
    delivered = batcher.deliver(image(10), Lane.LIVE)
    engine.release()
    assert [level_of(future) for future in (*taken, delivered)] == [0, 1, 2, 10]
    assert all(9 not in batch for batch in engine.batches)


def test_images_that_are_called_together_have_a_place_each_or_none_and_are_one_batch(
    engine: BrightnessEngine, opened: Open
) -> None:
    batcher = opened(size=4, limit=3)
    assert [level_of(future) for future in batcher.call_all([image(1), image(2), image(3)])] == [1, 2, 3]
    engine.wait_entered()
    busy(batcher, engine)
    batcher.call(image(4))
    with pytest.raises(QueueFull, match="1 images wait for the engine, of 3 that may; there is no room for 3 more"):
        batcher.call_all([image(5), image(6), image(7)])
    assert batcher.waiting == 1
    fitting = batcher.call_all([image(8), image(9)])
    engine.release()
    assert [level_of(future) for future in fitting] == [8, 9]
    assert engine.batches == [[1, 2, 3], [255], [4, 8, 9]]


def test_one_image_of_another_size_takes_those_it_came_with_along(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened()
    with pytest.raises(BadField, match="5x4"):
        batcher.call_all([image(1), np.zeros((SIDE + 1, SIDE, 3), np.uint8)])
    assert level_of(batcher.call(image(2))) == 2
    assert engine.batches == [[2]]


def test_a_cancelled_call_gives_its_place_back_at_once_and_is_not_computed(
    engine: BrightnessEngine, opened: Open
) -> None:
    batcher = opened(size=2, limit=1)
    busy(batcher, engine)
    gone = batcher.call(image(1))
    assert gone.cancel()
    assert batcher.waiting == 0
    other = batcher.call(image(2))  # would be refused if the place were still taken
    engine.release()
    assert level_of(other) == 2
    assert gone.cancelled()
    assert engine.batches == [[255], [2]]


def test_a_frame_in_the_engines_hands_cannot_be_cancelled_any_more(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened()
    first = busy(batcher, engine)
    assert not first.cancel()
    engine.release()
    assert level_of(first) == 255


def test_a_call_whose_deadline_has_passed_before_its_turn_is_not_computed(
    engine: BrightnessEngine, opened: Open
) -> None:
    batcher = opened(size=4)
    busy(batcher, engine)
    late = batcher.call(image(1), deadline_s=time.monotonic() - 0.001)
    in_time = batcher.call(image(2), deadline_s=time.monotonic() + PATIENCE_S)
    engine.release()
    assert level_of(in_time) == 2
    with pytest.raises(TooLate):
        late.result(PATIENCE_S)
    assert engine.batches == [[255], [2]]


def test_live_frames_come_first_and_the_backlog_keeps_its_share(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened(size=1)
    busy(batcher, engine)
    backlog = [batcher.deliver(image(200 + n), Lane.BACKLOG) for n in range(4)]
    live = [batcher.deliver(image(n), Lane.LIVE) for n in range(20)]
    engine.release()
    wait([*backlog, *live], PATIENCE_S)
    order = [batch[0] for batch in engine.batches][1:]
    # The first frame counted too: every eighth from it on is the backlog's, the rest live while there is any.
    while_both_wait = order[:22]
    assert [level for level in order if level < 200] == list(range(20))
    assert [place + 2 for place, level in enumerate(while_both_wait) if level >= 200] == [
        BACKLOG_SHARE,
        2 * BACKLOG_SHARE,
    ]
    assert [level for level in order if level >= 200] == [200, 201, 202, 203]


def test_of_full_batches_every_eighth_is_the_backlogs_while_both_wait(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened(size=4)
    busy(batcher, engine)
    backlog = [batcher.deliver(image(200 + n), Lane.BACKLOG) for n in range(8)]
    live = [batcher.deliver(image(n), Lane.LIVE) for n in range(60)]
    engine.release()
    wait([*backlog, *live], PATIENCE_S)
    turns = [place for place, batch in enumerate(engine.batches, 1) if min(batch) >= 200 and len(batch) > 1]
    assert turns == [BACKLOG_SHARE, 2 * BACKLOG_SHARE]
    assert all(len(batch) == 4 for batch in engine.batches[1:])


def test_an_idle_engine_takes_backlog_though_it_is_not_its_turn(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened()
    assert level_of(batcher.deliver(image(3), Lane.BACKLOG)) == 3


def test_one_image_the_engine_cannot_compute_takes_no_other_down(engine: BrightnessEngine, opened: Open) -> None:
    engine.poison = {13}
    batcher = opened(size=4)
    busy(batcher, engine)
    futures = {level: batcher.call(image(level)) for level in (11, 12, 13, 14)}
    engine.release()
    assert [level_of(futures[level]) for level in (11, 12, 14)] == [11, 12, 14]
    with pytest.raises(Internal, match="this image cannot be computed"):
        futures[13].result(PATIENCE_S)
    assert level_of(batcher.call(image(20))) == 20, "the batcher did not go on"


def test_an_engine_that_forgets_a_score_is_an_error_and_no_mixed_up_answer() -> None:
    class Forgetful(BrightnessEngine):
        def infer(self, images: Images) -> Output:
            return Output(super().infer(images).scores[1:])

    with make(Forgetful()) as batcher, pytest.raises(Internal, match="shape"):
        batcher.call(image(1)).result(PATIENCE_S)


class Explaining(BrightnessEngine):
    """Its heatmaps show the images' first channel; `missing` of them are left out."""

    missing = 0

    def infer(self, images: Images) -> Output:
        heatmaps = images[self.missing :, :, :, 0].astype(np.float32)
        return Output(super().infer(images).scores, heatmaps)


def test_every_image_of_a_batch_gets_its_own_heatmap_and_none_where_there_are_none() -> None:
    engine = Explaining()
    with make(engine) as batcher:
        busy(batcher, engine)
        futures = {level: batcher.call(image(level)) for level in (11, 12, 13)}
        engine.release()
        for level, future in futures.items():
            heatmap = future.result(PATIENCE_S).heatmap
            assert heatmap is not None
            assert heatmap.tolist() == [[float(level)] * SIDE] * SIDE
    with make(BrightnessEngine()) as batcher:
        assert batcher.call(image(1)).result(PATIENCE_S).heatmap is None


def test_an_engine_that_forgets_a_heatmap_is_an_error() -> None:
    engine = Explaining()
    engine.missing = 1
    with make(engine) as batcher, pytest.raises(Internal, match="heatmaps of shape"):
        batcher.call(image(1)).result(PATIENCE_S)


def test_pixels_of_another_kind_are_refused_by_name_and_take_no_place(opened: Open) -> None:
    batcher = opened()
    with pytest.raises(BadField, match="float32; the model takes uint8"):
        batcher.call_all([image(1), np.zeros((SIDE, SIDE, 3), np.float32)])
    assert batcher.waiting == 0


def test_images_without_memory_to_lie_in_fail_alone(
    engine: BrightnessEngine, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 4  # what a batcher of one stream begins with, and one

    def allocated() -> Images:
        nonlocal left
        left -= 1
        if left < 0:
            raise MemoryError
        return np.empty((2, SIDE, SIDE, 3), np.uint8)

    monkeypatch.setattr("inspectbus.inference.batcher.memory_for", lambda device, shape: allocated)
    batcher = opened(size=2)
    first = busy(batcher, engine)
    kept = batcher.call_all([image(level) for level in range(5)])
    with pytest.raises(MemoryError):
        batcher.call_all([image(8), image(9)])
    assert batcher.waiting == 5
    engine.release()
    assert [level_of(future) for future in (first, *kept, batcher.call(image(7)))] == [255, *range(5), 7]
    assert not any(8 in batch or 9 in batch for batch in engine.batches)


def test_a_call_with_more_images_than_a_batch_has_begins_with_the_first(
    engine: BrightnessEngine, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = opened(size=2)
    copied = np.copyto

    def copy(place: Image, pixels: Image) -> None:
        if pixels[0, 0, 0] == 3:
            engine.wait_entered()
        copied(place, pixels)

    monkeypatch.setattr("inspectbus.inference.batcher.np.copyto", copy)
    assert [level_of(future) for future in batcher.call_all([image(level) for level in range(5)])] == list(range(5))


def test_pixels_of_another_size_are_refused_by_name(opened: Open) -> None:
    with pytest.raises(BadField, match="5x4") as refused:
        opened().call(np.zeros((5, 4, 3), np.uint8))
    assert refused.value.field == "pixels"


def test_pixels_are_copied_when_they_come_and_are_their_senders_again(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened()
    busy(batcher, engine)
    pixels = image(1)
    seen = weakref.ref(pixels)
    gc.disable()
    try:
        called, delivered = batcher.call(pixels), batcher.deliver(pixels, Lane.BACKLOG)
        pixels[...] = 9
        del pixels
        assert seen() is None
    finally:
        gc.enable()
    engine.release()
    assert (level_of(called), level_of(delivered)) == (1, 1)


def test_what_comes_while_a_batch_is_computed_does_not_touch_it(engine: BrightnessEngine, opened: Open) -> None:
    batcher = opened(size=2)
    first = busy(batcher, engine)
    gathered = [batcher.call(image(level)) for level in range(10)]
    engine.release()  # only now it reads
    assert [level_of(future) for future in (first, *gathered)] == [255, *range(10)]


def test_the_memory_is_bounded_by_what_may_wait_however_callers_come_and_go(
    engine: BrightnessEngine, opened: Open
) -> None:
    registry = CollectorRegistry()
    batcher = opened(size=4, limit=8, registry=registry)
    busy(batcher, engine)
    kept: list[Future[Scored]] = []
    for level in range(200):
        try:
            future = batcher.call(image(level))
        except QueueFull:
            kept.pop(0).cancel()
        else:
            kept.append(future)
            if level % 4:
                kept.pop().cancel()
    # Eight that wait take two slots; one is computed, one begun, and there is one for the backlog.
    slot_bytes = registry.get_sample_value("inspectbus_inference_slot_bytes")
    assert slot_bytes is not None
    assert slot_bytes <= 5 * 4 * SIDE * SIDE * 3
    engine.release()
    wait(kept, PATIENCE_S)
    batcher.close()
    assert registry.get_sample_value("inspectbus_inference_slot_bytes") == 0


def test_streams_compute_side_by_side_and_no_more_than_the_engine_has() -> None:
    engine = BrightnessEngine(streams=3)
    engine.hold()
    with make(engine) as batcher:
        calls = [batcher.call(image(level)) for level in range(3)]
        for _ in calls:
            engine.wait_entered()  # each lone frame found an idle stream while the others were held
        behind = [batcher.call(image(level)) for level in range(3, 40)]
        engine.release()
        assert [level_of(future) for future in (*calls, *behind)] == list(range(40))
    assert sorted(engine.batches[:3]) == [[0], [1], [2]]
    assert engine.at_once <= 3


def test_frames_that_come_together_are_split_over_the_free_streams() -> None:
    engine = BrightnessEngine(streams=2)
    engine.hold()
    with make(engine, size=8) as batcher:
        calls = batcher.call_all([image(level) for level in range(8)])
        for _ in range(2):
            engine.wait_entered()
        engine.release()
        assert [level_of(future) for future in calls] == list(range(8))
    assert sorted(engine.batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_stream_that_is_free_first_leaves_the_others_their_share_of_what_waits() -> None:
    engine = OneByOne(streams=2)
    with make(engine, size=8) as batcher:
        busy(batcher, engine)
        gathered = [batcher.call(image(level)) for level in range(7)]
        engine.release_one()
        engine.wait_entered()
        # Of eight that are there, the other stream's included, four are its share.
        assert batcher.waiting == 3
        engine.release()
        assert [level_of(future) for future in gathered] == list(range(7))
    assert engine.batches[2] == [0, 1, 2, 3]


class OneByOne(BrightnessEngine):
    """While it is held, `release_one` lets one batch go."""

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        self._passes = threading.Semaphore(0)

    def release_one(self) -> None:
        self._passes.release()

    def release(self) -> None:
        self._passes.release(100)

    def infer(self, images: Images) -> Output:
        self._gate.set()
        output = super().infer(images)
        assert self._passes.acquire(timeout=PATIENCE_S), "the test never let the batch go"
        return output


@pytest.mark.parametrize("streams", [1, 2])
def test_an_engine_on_cuda_gets_batches_of_few_sizes_and_nobody_gets_a_score_of_what_fills_them_up(
    streams: int,
) -> None:
    engine = BrightnessEngine(streams)
    engine.device = "cuda: as it were"
    engine.poison = {6}
    with make(engine, size=8) as batcher:
        busy(batcher, engine)
        gathered = {level: batcher.call(image(level)) for level in range(13)}
        engine.release()
        assert [level_of(gathered[level]) for level in range(13) if level != 6] == [*range(6), *range(7, 13)]
        with pytest.raises(Internal, match="cannot be computed"):
            gathered[6].result(PATIENCE_S)
    assert {len(batch) for batch in engine.batches} <= {1, 2, 4, 8}
    assert len(engine.batches) > len(set(map(len, engine.batches)))


def test_a_stream_that_hangs_is_seen_while_the_other_goes_on() -> None:
    hung = threading.Event()
    engine = HangsOnce()
    with Watchdog(0.2, on_hang=hung.set) as watchdog, make(engine, size=1, watchdog=watchdog) as batcher:
        stuck = batcher.call(image(13))
        engine.wait_entered()
        while not hung.wait(0.01):
            assert level_of(batcher.call(image(1))) == 1
        assert not stuck.done()
        engine.release()
        assert level_of(stuck) == 13


class HangsOnce(BrightnessEngine):
    """Of two streams; an image of level 13 keeps one until `release`."""

    def __init__(self) -> None:
        super().__init__(streams=2)
        self._hang = threading.Event()

    def release(self) -> None:
        self._hang.set()

    def infer(self, images: Images) -> Output:
        output = super().infer(images)
        if images[0, 0, 0, 0] == 13:
            assert self._hang.wait(PATIENCE_S)
        return output


def test_closing_computes_what_waits_and_takes_nothing_more(engine: BrightnessEngine) -> None:
    batcher = make(engine, size=2, wait_s=PATIENCE_S * 2)
    with batcher:
        waiting = [batcher.call(image(n)) for n in range(3)]  # the third would wait for company for long
    assert [level_of(future) for future in waiting] == [0, 1, 2]
    with pytest.raises(ModelNotReady):
        batcher.call(image(9))
    assert not any(thread.name.startswith("inference-batcher") for thread in threading.enumerate())


@pytest.mark.parametrize("streams", [1, 3])
def test_closing_behind_a_stuck_engine_ends_in_time_and_answers_those_who_wait(streams: int) -> None:
    engine = BrightnessEngine(streams)
    batcher = make(engine, size=1, drain_s=0.2)
    with batcher:
        stuck = busy(batcher, engine)
        behind = batcher.call(image(1))
    with pytest.raises(ModelNotReady):
        behind.result(0)
    engine.release()
    assert level_of(stuck) == 255


def test_what_was_done_is_counted(engine: BrightnessEngine) -> None:
    registry = CollectorRegistry()
    metrics = BatcherMetrics(registry, 4)
    with Batcher(
        engine,
        SIDE,
        SIDE,
        metrics,
        Watchdog(60.0),
        max_batch_size=4,
        max_batch_wait_s=0,
        queue_limit=3,
        drain_s=PATIENCE_S,
    ) as batcher:
        busy(batcher, engine)
        kept = [batcher.call(image(n)) for n in range(2)]
        batcher.call(image(9)).cancel()
        kept.append(batcher.deliver(image(3), Lane.BACKLOG))
        with pytest.raises(QueueFull):
            batcher.call(image(5))
        assert registry.get_sample_value("inspectbus_inference_waiting", {"lane": "live"}) == 2
        engine.release()
        wait(kept, PATIENCE_S)
    assert {size: count for size, count in metrics.sizes.items() if count} == {1: 2, 2: 1}
    assert registry.get_sample_value("inspectbus_inference_batch_size_count") == 3
    assert registry.get_sample_value("inspectbus_inference_batch_size_sum") == 4
    assert registry.get_sample_value("inspectbus_inference_batch_size_bucket", {"le": "1.0"}) == 2
    assert registry.get_sample_value("inspectbus_inference_compute_seconds_count") == 3
    for lane, count in (("live", 3), ("backlog", 1)):
        assert registry.get_sample_value("inspectbus_inference_queue_seconds_count", {"lane": lane}) == count
        assert registry.get_sample_value("inspectbus_inference_waiting", {"lane": lane}) == 0
    for reason in ("queue_full", "cancelled"):
        labels = {"reason": reason, "lane": "live"}
        assert registry.get_sample_value("inspectbus_inference_dropped_total", labels) == 1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 5),
    wait_s=st.sampled_from([0.0, 0.002]),
    limit=st.integers(1, 12),
    poison=st.sets(st.integers(0, 39), max_size=3),
    streams=st.integers(1, 3),
    calls_back=st.booleans(),
)
def test_however_they_arrive_every_frame_is_answered_exactly_once(
    seed: int, size: int, wait_s: float, limit: int, poison: set[int], streams: int, calls_back: bool
) -> None:
    # some images fail while they are computed, and of an engine that calls back some before they are begun
    calling = PoolEngine(streams, frozenset(level for level in poison if level % 2))
    engine: BrightnessEngine = calling if calls_back else BrightnessEngine(streams)
    engine.poison = poison
    answers: dict[int, list[str]] = {level: [] for level in range(40)}
    futures: list[Future[Scored]] = []

    def note(level: int, future: Future[Scored]) -> None:
        try:
            score = future.result(0).score
            answers[level].append("score" if round(score * 255) == level else "somebody else's score")
        except CancelledError:
            answers[level].append("cancelled")
        except Internal:
            answers[level].append("engine error" if level in poison else "somebody else's error")
        except TooLate:
            answers[level].append("too late")

    def arrive(levels: list[int], dice: random.Random) -> None:
        for level in levels:
            way = dice.choice(["call", "cancelled call", "late call", "hasty call", "live", "backlog"])
            try:
                if way == "live" or way == "backlog":
                    future = batcher.deliver(image(level), Lane(way))
                else:
                    patience_s = {"late call": 0.0, "hasty call": 0.002}.get(way, PATIENCE_S)
                    future = batcher.call(image(level), time.monotonic() + patience_s)
            except QueueFull:
                answers[level].append("refused")
                continue
            futures.append(future)
            future.add_done_callback(lambda done, level=level: note(level, done))  # type: ignore[misc]
            if way == "cancelled call":
                future.cancel()

    with make(engine, size=size, wait_s=wait_s, limit=limit) as batcher:
        senders = [
            threading.Thread(target=arrive, args=(list(range(n, 40, 3)), random.Random(seed + n))) for n in range(3)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(PATIENCE_S)
    calling.close()
    assert wait(futures, PATIENCE_S).not_done == set()
    assert all(len(heard) == 1 and "somebody" not in heard[0] for heard in answers.values()), answers
    assert max((len(batch) for batch in engine.batches), default=0) <= size
    assert engine.at_once <= streams
