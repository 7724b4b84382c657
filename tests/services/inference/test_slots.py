"""Slots: every image lies where its batch is read, however frames come and go, and their memory has a bound."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectbus.bus import Lane
from inspectbus.inference.engine import Images
from inspectbus.inference.slots import Run, SlotQueue, batch_sizes, memory_for

SIZE = 4


@dataclass(eq=False)
class Frame:
    level: int


def memory() -> Images:
    return np.zeros((SIZE, 2, 2, 3), np.uint8)


@pytest.fixture
def queue() -> SlotQueue[Frame]:
    return SlotQueue(memory, ready=1)


def put(queue: SlotQueue[Frame], level: int, lane: Lane = Lane.LIVE) -> Frame:
    frame = Frame(level)
    queue.seat(frame, lane)[...] = level
    queue.filled(frame)
    return frame


def take(queue: SlotQueue[Frame], most: int = SIZE) -> Run[Frame]:
    run = queue.take(most, lambda _: True)
    assert run is not None
    run.closed_up()
    return run


def read(run: Run[Frame]) -> list[int]:
    """The levels that an engine sees."""
    levels: list[int] = run.slot.images[run.start : run.start + len(run.items), 0, 0, 0].tolist()
    assert levels == [frame.level for frame in run.items]
    return levels


def test_images_are_read_where_they_were_written(queue: SlotQueue[Frame]) -> None:
    frames = [Frame(level) for level in range(3)]
    places = [queue.seat(frame, Lane.LIVE) for frame in frames]
    for frame, place in zip(frames, places, strict=True):
        place[...] = frame.level
        queue.filled(frame)
    run = take(queue)
    assert read(run) == [0, 1, 2]
    assert run.moves == []
    assert all(np.shares_memory(place, run.slot.images) for place in places)


def test_who_comes_while_a_slot_is_computed_fills_the_next_and_a_slot_that_is_done_is_used_again(
    queue: SlotQueue[Frame],
) -> None:
    put(queue, 1)
    first = take(queue)
    put(queue, 2)
    second = take(queue)
    assert second.slot is not first.slot
    queue.done(first)
    put(queue, 3)
    assert take(queue).slot is first.slot
    assert queue.slots == 2


def test_a_slot_is_computed_in_parts_which_do_not_overlap(queue: SlotQueue[Frame]) -> None:
    for level in range(4):
        put(queue, level)
    first, second = take(queue, 2), take(queue, 2)
    assert first.slot is second.slot
    assert (read(first), read(second)) == ([0, 1], [2, 3])


def test_who_leaves_makes_room_for_the_next_and_a_gap_is_closed_from_the_end(queue: SlotQueue[Frame]) -> None:
    first, second, *_ = [put(queue, level) for level in range(4)]
    assert queue.leave(first)
    assert not queue.leave(first)
    put(queue, 7)
    assert queue.slots == 1
    queue.leave(second)
    assert read(take(queue)) == [7, 3, 2]


def test_one_that_is_still_being_written_is_not_taken_and_not_written_over(queue: SlotQueue[Frame]) -> None:
    gone, slow = put(queue, 0), Frame(1)
    place = queue.seat(slow, Lane.LIVE)
    for level in (2, 3):
        put(queue, level)
    queue.leave(gone)
    assert read(take(queue)) == [2, 3]
    assert len(queue) == 1
    assert list(queue.ready()) == []
    place[...] = 1
    queue.filled(slow)
    assert read(take(queue)) == [1]


def test_nobody_joins_a_batch_of_the_other_lane(queue: SlotQueue[Frame]) -> None:
    put(queue, 1, Lane.BACKLOG)
    put(queue, 2, Lane.LIVE)
    put(queue, 3, Lane.BACKLOG)
    assert [read(take(queue)), read(take(queue))] == [[2], [1, 3]]


def test_one_that_was_being_written_when_the_queue_was_cleared_is_nobody(queue: SlotQueue[Frame]) -> None:
    waiting, slow = put(queue, 0), Frame(1)
    queue.seat(slow, Lane.LIVE)
    assert queue.clear() == [waiting, slow]
    queue.filled(slow)
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.take(SIZE, lambda _: True)


def test_a_queue_that_is_cleared_keeps_no_memory() -> None:
    made: list[weakref.ref[Images]] = []

    def noted() -> Images:
        images = memory()
        made.append(weakref.ref(images))
        return images

    queue: SlotQueue[Frame] = SlotQueue(noted, ready=2)
    for level in range(3 * SIZE):
        put(queue, level)
    gc.disable()
    try:
        queue.done(take(queue))
        queue.clear()
        assert len(made) == 3
        assert not any(images() is not None for images in made)
    finally:
        gc.enable()


WAYS = st.one_of(
    st.tuples(st.sampled_from(["live", "backlog", "slow live", "slow backlog"]), st.just(0)),
    st.tuples(st.sampled_from(["fill", "leave", "done"]), st.integers(0, 20)),
    st.tuples(st.just("take"), st.integers(1, SIZE)),
)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(WAYS, max_size=80), odd=st.booleans())
def test_however_they_come_and_go_each_image_is_taken_once_and_there_are_no_more_slots_than_promised(
    steps: list[tuple[str, int]], odd: bool
) -> None:
    queue: SlotQueue[Frame] = SlotQueue(memory, ready=0)
    filling: list[Frame] = []
    waiting: list[Frame] = []
    runs: list[Run[Frame]] = []
    most = dict.fromkeys(Lane, 0)
    most_runs = most_filling = number = 0
    for way, which in steps:
        if way.endswith(("live", "backlog")):
            number += 1
            frame = Frame(number)
            lane = Lane(way.removeprefix("slow "))
            queue.seat(frame, lane)[...] = number
            filling.append(frame)
            most[lane] = max(most[lane], queue.count(lane))
            if not way.startswith("slow"):
                queue.filled(frame)
                waiting.append(filling.pop())
        elif way == "fill" and filling:
            queue.filled(frame := filling.pop(which % len(filling)))
            waiting.append(frame)
        elif way == "leave" and waiting:
            assert queue.leave(waiting.pop(which % len(waiting)))
        elif way == "done" and runs:
            queue.done(runs.pop(which % len(runs)))
        elif way == "take" and waiting:
            unwanted = {frame for frame in waiting if odd and frame.level % 3 == 0}
            run = queue.take(which, lambda frame: frame not in unwanted)  # noqa: B023
            still = set(queue.ready()) | set(run.items if run is not None else ())
            assert all(frame in unwanted for frame in waiting if frame not in still)
            waiting = [frame for frame in waiting if frame in still]
            if run is not None:
                run.closed_up()
                assert 1 <= len(read(run)) <= which
                for frame in run.items:
                    waiting.remove(frame)
                runs.append(run)
        assert sorted(frame.level for frame in queue.ready()) == sorted(frame.level for frame in waiting)
        assert len(queue) == len(waiting) + len(filling)
        for run in runs:
            read(run)
        most_runs, most_filling = max(most_runs, len(runs)), max(most_filling, len(filling))
        lanes = sum(math.ceil(each / SIZE) + 1 for each in most.values())
        assert queue.slots <= lanes + most_runs + len(Lane) + most_filling


def test_an_engine_on_cuda_gets_batches_of_few_sizes_and_one_on_a_processor_of_any() -> None:
    assert batch_sizes("cpu", 24) == ()
    assert batch_sizes("cuda: NVIDIA H100", 24) == (1, 2, 4, 8, 16, 24)
    assert batch_sizes("cuda", 1) == (1,)


def test_memory_is_of_the_shape_that_was_asked_for_and_pinned_where_torch_sees_cuda() -> None:
    shape = (3, 4, 5, 3)
    for device in ("cpu", "cuda: some"):
        images = memory_for(device, shape)()
        images[...] = 7
        assert images.shape == shape
        assert images.dtype == np.uint8
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here, so no memory is pinned")
    assert torch.from_numpy(memory_for("cuda", shape)()).is_pinned()
    assert not torch.from_numpy(memory_for("cpu", shape)()).is_pinned()
