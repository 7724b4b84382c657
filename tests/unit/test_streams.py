"""Whose turn it is at the engines' streams: who was given least, and shadows only when nobody else has images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from inspectbus.inference.streams import Flow, Streams, Turn

PATIENCE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begun(flow: Flow) -> Turn:
    turn = flow.begin()
    assert turn is not None
    return turn


def waits(pool: ThreadPoolExecutor, flow: Flow) -> Future[Turn | None]:
    """Asks for a turn on another thread, which waits for it."""
    asked = flow.waiting
    future = pool.submit(flow.begin)
    until_s = time.monotonic() + PATIENCE_S
    while flow.waiting == asked:
        assert not future.done(), "it had its turn at once"
        assert time.monotonic() < until_s
    return future


def turn_of(asked: Future[Turn | None]) -> Turn:
    turn = asked.result(PATIENCE_S)
    assert turn is not None
    return turn


def test_one_flow_alone_has_every_stream_and_no_more(pool: ThreadPoolExecutor) -> None:
    flow = Streams(2).flow()
    first, _ = begun(flow), begun(flow)
    third = waits(pool, flow)
    first.end()
    assert third.result(PATIENCE_S) is not None


def test_flows_share_the_time_and_not_the_turns(pool: ThreadPoolExecutor, clock: Clock) -> None:
    # given two flows that always have somebody who asks, whose runs last 9 s and 1 s
    streams = Streams(1, clock)
    slow, fast = streams.flow(), streams.flow()
    costs_s = {slow: 9.0, fast: 1.0}
    runs: list[Flow] = []
    turn = begun(slow)
    coming = {flow: waits(pool, flow) for flow in costs_s}
    while len(runs) < 100:
        runs.append(turn.flow)
        clock.now_s += costs_s[turn.flow]
        turn.end()
        turn = next_done(list(coming.values()))
        coming[turn.flow] = waits(pool, turn.flow)
    # then neither is ahead of the other by more than two runs of the slow one
    assert abs(runs.count(slow) * 9 - runs.count(fast)) <= 2 * 9
    # the one whose turn it is leaves, and so do those who wait
    turn.end()
    for flow in costs_s:
        flow.close()


def test_who_was_idle_has_saved_nothing_up(pool: ThreadPoolExecutor, clock: Clock) -> None:
    streams = Streams(1, clock)
    busy, idle = streams.flow(), streams.flow()
    turn = begun(busy)
    for _ in range(100):
        coming = waits(pool, busy)
        clock.now_s += 1
        turn.end()
        turn = turn_of(coming)
    # when the other comes back, it goes first once, and then by turns
    for _ in range(6):
        came, coming = waits(pool, idle), waits(pool, busy)
        clock.now_s += 1
        turn.end()
        other = turn_of(came)
        assert not coming.done()
        clock.now_s += 1
        other.end()
        turn = turn_of(coming)


def test_a_shadow_has_its_turn_only_when_nobody_else_has_images(pool: ThreadPoolExecutor, clock: Clock) -> None:
    streams = Streams(1, clock)
    production, shadow = streams.flow(), streams.flow(shadow=True)
    turn = begun(production)
    late = waits(pool, shadow)
    others = [waits(pool, production) for _ in range(3)]
    while others:
        turn.end()
        turn = next_done(others)
        assert not late.done()
    turn.end()
    assert late.result(PATIENCE_S) is not None


def next_done(futures: list[Future[Turn | None]]) -> Turn:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        for future in futures:
            if future.done():
                futures.remove(future)
                turn = future.result()
                assert turn is not None
                return turn
    raise AssertionError("nobody had a turn")


def test_a_shadow_lets_an_image_go_first_whose_thread_has_not_asked_yet(pool: ThreadPoolExecutor) -> None:
    streams = Streams(1)
    production, shadow = streams.flow(), streams.flow(shadow=True)
    images = ["one"]
    production.is_for(images)
    late = waits(pool, shadow)
    turn = begun(production)
    images.clear()
    assert not late.done()
    turn.end()
    assert late.result(PATIENCE_S) is not None


def test_shadows_leave_one_of_several_streams_alone(pool: ThreadPoolExecutor) -> None:
    streams = Streams(2)
    production, shadow = streams.flow(), streams.flow(shadow=True)
    first = begun(shadow)
    second = waits(pool, shadow)
    begun(production).end()
    assert not second.done()
    first.end()
    assert second.result(PATIENCE_S) is not None


def test_an_engine_has_no_more_runs_than_it_has_streams_though_others_would_have_room(pool: ThreadPoolExecutor) -> None:
    streams = Streams(2)
    narrow, other = streams.flow(), streams.flow()
    assert narrow.limited_to(1) == 1
    first = begun(narrow)
    second = waits(pool, narrow)
    begun(other).end()
    assert not second.done()
    first.end()
    turn_of(second).end()


def test_runs_that_wait_in_the_engines_are_nothing_for_shadows(pool: ThreadPoolExecutor) -> None:
    streams = Streams(2, ahead=1)
    production, shadow = streams.flow(), streams.flow(shadow=True)
    assert (production.limited_to(2), shadow.limited_to(2)) == (3, 1)
    first = begun(shadow)
    second = waits(pool, shadow)
    turns = [begun(production), begun(production)]
    waiting = waits(pool, production)
    turns[0].end()
    turn_of(waiting).end()
    turns[1].end()
    assert not second.done()
    first.end()
    turn_of(second).end()


def test_a_turn_that_nothing_was_computed_in_costs_nothing(clock: Clock) -> None:
    flow = Streams(1, clock).flow()
    turn = begun(flow)
    clock.now_s += 5
    turn.end()
    turn = begun(flow)
    clock.now_s += 5
    turn.end(used=False)
    assert flow.computed_s == 5
    assert flow.at_s == 5


@pytest.mark.parametrize("shadow", [False, True])
def test_who_waits_for_a_flow_that_is_closed_goes_home(pool: ThreadPoolExecutor, shadow: bool) -> None:
    streams = Streams(1)
    turn = begun(streams.flow())
    leaving, staying = streams.flow(shadow=shadow), streams.flow()
    gone, waiting = waits(pool, leaving), waits(pool, staying)
    leaving.close()
    assert gone.result(PATIENCE_S) is None
    assert leaving.begin() is None
    turn.end()
    assert waiting.result(PATIENCE_S) is not None


def test_a_crowd_is_those_who_have_images_now() -> None:
    streams = Streams(1)
    one, other, shadow = streams.flow(), streams.flow(), streams.flow(shadow=True)
    begun(shadow).end()
    assert (one.crowd, streams.crowd) == (1, 0)
    turn = begun(other)
    assert streams.crowd == 1
    turn.end()
