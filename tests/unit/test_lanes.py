"""Does the live lane go first, and the backlog never starve?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inspectbus.bus import Lane
from inspectbus.bus.contract import BACKLOG_SHARE
from inspectbus.bus.lanes import Lanes


def test_live_items_go_first_and_each_lane_keeps_its_order() -> None:
    lanes: Lanes[str] = Lanes()
    for name in ("b1", "l1", "b2", "l2"):
        lanes.put(name, Lane.LIVE if name[0] == "l" else Lane.BACKLOG)
    assert [lanes.next() for _ in range(4)] == ["l1", "l2", "b1", "b2"]


def test_an_item_that_comes_back_goes_first_in_its_lane() -> None:
    lanes: Lanes[str] = Lanes()
    lanes.put("second", Lane.LIVE)
    lanes.put("first", Lane.LIVE, first=True)
    assert [lanes.next(), lanes.next()] == ["first", "second"]


@given(st.lists(st.sampled_from(Lane), max_size=200))
def test_the_backlog_has_its_share_while_it_waits_and_nothing_is_lost(order: list[Lane]) -> None:
    lanes: Lanes[tuple[int, Lane]] = Lanes()
    for number, lane in enumerate(order):
        lanes.put((number, lane), lane)
    taken, live_in_a_row = [], 0
    while len(lanes):
        backlog_waits = bool(lanes[Lane.BACKLOG])
        number, lane = lanes.next()
        live_in_a_row = live_in_a_row + 1 if lane is Lane.LIVE else 0
        assert not backlog_waits or live_in_a_row < BACKLOG_SHARE
        taken.append(number)
    assert sorted(taken) == list(range(len(order)))


def test_what_is_cleared_is_given() -> None:
    lanes: Lanes[int] = Lanes()
    lanes.put(1, Lane.BACKLOG)
    lanes.put(2, Lane.LIVE)
    assert sorted(lanes.clear()) == [1, 2]
    assert not len(lanes)
