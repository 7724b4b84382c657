"""Whose turn it is at the engines' streams: who was given least, and shadows only when nobody else has images."""

from __future__ import annotations

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from inspectbus.inference.streams import Flow, Streams, Turn

PATIENCE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Asking:
    """A flow, and the turns that it has."""

    def __init__(self, streams: Streams, *, shadow: bool = False) -> None:
        self.flow = streams.flow(shadow=shadow)
        self.images: list[str] = []
        self.turns: list[Turn] = []
        self.flow.is_for(self.images, self.turns.append)

    def begun(self) -> Turn:
        """One that it gets at once."""
        self.flow.wish()
        return self.turns.pop()

    def wishes(self) -> None:
        """For one that it does not get now."""
        self.flow.wish()
        assert self.flow.wishes, "it had its turn at once"
        assert not self.turns


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_one_flow_alone_has_every_stream_and_no_more() -> None:
    one = Asking(Streams(2))
    first, _ = one.begun(), one.begun()
    one.wishes()
    first.end()
    assert len(one.turns) == 1


def test_a_flow_that_wishes_twice_has_one_turn_more() -> None:
    one = Asking(Streams(1))
    turn = one.begun()
    one.wishes()
    one.wishes()
    turn.end()
    one.turns.pop().end()
    assert one.turns == []


def test_flows_share_the_time_and_not_the_turns(clock: Clock) -> None:
    # given two flows that always wish for a turn, whose runs last 9 s and 1 s
    streams = Streams(1, clock)
    slow, fast = Asking(streams), Asking(streams)
    costs_s = {slow: 9.0, fast: 1.0}
    runs: list[Asking] = []
    slow.flow.wish()
    fast.wishes()
    while len(runs) < 100:
        (has_it,) = [each for each in costs_s if each.turns]
        runs.append(has_it)
        turn = has_it.turns.pop()
        has_it.wishes()
        clock.now_s += costs_s[has_it]
        turn.end()
        # then neither is ever ahead of the other by more than two runs of the slow one
        assert abs(runs.count(slow) * 9 - runs.count(fast)) <= 2 * 9


def test_who_was_idle_has_saved_nothing_up(clock: Clock) -> None:
    streams = Streams(1, clock)
    busy, idle = Asking(streams), Asking(streams)
    turn = busy.begun()
    for _ in range(100):
        busy.wishes()
        clock.now_s += 1
        turn.end()
        turn = busy.turns.pop()
    # when the other comes back, it goes first once, and then by turns
    for _ in range(6):
        idle.wishes()
        busy.wishes()
        clock.now_s += 1
        turn.end()
        other = idle.turns.pop()
        assert not busy.turns
        clock.now_s += 1
        other.end()
        turn = busy.turns.pop()


def test_a_shadow_has_its_turn_only_when_nobody_else_has_images(clock: Clock) -> None:
    streams = Streams(1, clock)
    production, shadow = Asking(streams), Asking(streams, shadow=True)
    turn = production.begun()
    shadow.wishes()
    for _ in range(3):
        production.wishes()
        turn.end()
        turn = production.turns.pop()
        assert not shadow.turns
    turn.end()
    assert len(shadow.turns) == 1


def test_a_shadow_lets_an_image_go_first_that_nobody_wishes_for_yet() -> None:
    streams = Streams(1)
    production, shadow = Asking(streams), Asking(streams, shadow=True)
    production.images.append("one")
    shadow.wishes()
    turn = production.begun()
    production.images.clear()
    production.flow.emptied()
    assert not shadow.turns
    turn.end()
    assert len(shadow.turns) == 1


def test_a_shadow_is_told_when_the_images_it_waited_for_are_cancelled() -> None:
    streams = Streams(1)
    production, shadow = Asking(streams), Asking(streams, shadow=True)
    production.images.append("one")
    shadow.wishes()
    production.images.clear()
    production.flow.emptied()
    assert len(shadow.turns) == 1


def test_a_shadow_is_told_when_a_flow_that_has_images_is_closed() -> None:
    streams = Streams(1)
    production, shadow = Asking(streams), Asking(streams, shadow=True)
    production.images.append("one")
    shadow.wishes()
    production.flow.close()
    assert len(shadow.turns) == 1


def test_shadows_leave_one_of_several_streams_alone() -> None:
    streams = Streams(2)
    production, shadow = Asking(streams), Asking(streams, shadow=True)
    first = shadow.begun()
    shadow.wishes()
    production.begun().end()
    assert not shadow.turns
    first.end()
    assert len(shadow.turns) == 1


def test_an_engine_has_no_more_runs_than_it_has_streams_though_others_would_have_room() -> None:
    streams = Streams(2)
    narrow, other = Asking(streams), Asking(streams)
    assert narrow.flow.limited_to(1) == 1
    first = narrow.begun()
    narrow.wishes()
    other.flow.wish()  # behind one that wishes, and cannot have its turn
    other.turns.pop().end()
    assert not narrow.turns
    first.end()
    narrow.turns.pop().end()


def test_runs_that_wait_in_the_engines_are_nothing_for_shadows() -> None:
    streams = Streams(2, ahead=1)
    production, shadow = Asking(streams), Asking(streams, shadow=True)
    assert (production.flow.limited_to(2), shadow.flow.limited_to(2)) == (3, 1)
    first = shadow.begun()
    shadow.wishes()
    turns = [production.begun(), production.begun()]
    production.wishes()
    turns[0].end()
    production.turns.pop().end()
    turns[1].end()
    assert not shadow.turns
    first.end()
    shadow.turns.pop().end()


def test_a_turn_that_nothing_was_computed_in_costs_nothing(clock: Clock) -> None:
    one = Asking(Streams(1, clock))
    turn = one.begun()
    clock.now_s += 5
    turn.end()
    turn = one.begun()
    clock.now_s += 5
    turn.end(used=False)
    assert one.flow.computed_s == 5
    assert one.flow.at_s == 5


@pytest.mark.parametrize("shadow", [False, True])
def test_a_flow_that_is_closed_has_no_turn_any_more(shadow: bool) -> None:
    streams = Streams(1)
    turn = Asking(streams).begun()
    leaving, staying = Asking(streams, shadow=shadow), Asking(streams)
    leaving.wishes()
    staying.wishes()
    leaving.flow.close()
    leaving.flow.wish()
    turn.end()
    staying.turns.pop().end()
    assert leaving.turns == []


def test_a_turn_that_is_on_its_way_when_its_flow_is_closed_is_lost_to_nobody() -> None:
    # given one whose turn begins just before another's, and who closes that one
    streams = Streams(2)
    owner, one, other = Asking(streams), Asking(streams), Asking(streams)
    turns = [owner.begun(), owner.begun()]

    def begin(turn: Turn) -> None:
        turns.pop().end()
        other.flow.close()
        turn.end()

    one.flow.is_for((), begin)
    one.wishes()
    other.wishes()
    # when it does
    turns.pop().end()
    # then the other had no turn, and there is room for two
    assert other.turns == []
    owner.begun()
    owner.begun()


def test_a_crowd_is_those_who_have_images_now() -> None:
    streams = Streams(1)
    one, other, shadow = Asking(streams), Asking(streams), Asking(streams, shadow=True)
    shadow.begun().end()
    assert (one.flow.crowd, streams.crowd) == (1, 0)
    turn = other.begun()
    assert streams.crowd == 1
    turn.end()


def test_turns_that_end_as_soon_as_they_begin_follow_one_another_and_go_no_deeper() -> None:
    # given two flows whose runs all fail at once, each with more than Python's stack would hold
    streams = Streams(1)
    left = {name: 2 * sys.getrecursionlimit() for name in ("one", "other")}
    flows: dict[str, Flow] = {name: streams.flow() for name in left}

    def begin(name: str, turn: Turn) -> None:
        left[name] -= 1
        if left[name]:
            flows[name].wish()
        turn.end()

    for name, flow in flows.items():
        flow.is_for((), lambda turn, name=name: begin(name, turn))  # type: ignore[misc]
    for flow in flows.values():
        flow.wish()
    assert left == {"one": 0, "other": 0}


def test_one_that_fails_when_its_turn_comes_keeps_nobody_else_from_theirs() -> None:
    streams = Streams(2)
    broken, sound = Asking(streams), Asking(streams)
    turns = [sound.begun(), sound.begun()]
    broken.flow.is_for((), lambda turn: 1 / 0)
    broken.wishes()
    sound.wishes()
    turns[0].end()
    turns[1].end()
    assert len(sound.turns) == 1


def test_however_threads_come_and_go_no_turn_is_lost_and_none_too_many_given() -> None:
    # given flows of both kinds, whose turns end on other threads
    streams = Streams(2, ahead=1)
    counting = threading.Lock()
    at_once, most, had = 0, 0, 0
    all_had = threading.Event()
    rounds, names = 300, range(4)

    with ThreadPoolExecutor(3) as ends:

        def begin(turn: Turn) -> None:
            nonlocal at_once, most
            with counting:
                at_once += 1
                most = max(most, at_once)
            ends.submit(end, turn)

        def end(turn: Turn) -> None:
            nonlocal at_once, had
            with counting:
                at_once -= 1
                had += 1
                last = had == rounds * len(names)
            left[turn.flow] -= 1
            if left[turn.flow]:
                turn.flow.wish()
            turn.end(used=random.random() < 0.9)
            if last:
                all_had.set()

        flows = [streams.flow(shadow=name == 0) for name in names]
        left = dict.fromkeys(flows, rounds)
        for flow in flows:
            flow.is_for((), begin)
        for flow in flows:
            flow.wish()
        assert all_had.wait(PATIENCE_S), left
    assert most <= 3
