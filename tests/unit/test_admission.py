"""Admission: what a batch lasts is learnt from runs, and an answer is promised for when it comes."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectbus.inference.admission import MEMORY, Ahead, Pace, answered_in_s


def pace_of(base_s: float, each_s: float) -> Pace:
    pace = Pace()
    for count in (1, 4, 8):
        pace.observe(count, base_s + each_s * count)
    return pace


def test_the_pace_is_numpys_line_of_least_squares_through_the_last_runs() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 33, 60)
    seconds = 0.004 + 0.002 * counts + rng.normal(0, 0.001, 60)
    pace = Pace()
    for count, each in zip(counts.tolist(), seconds.tolist(), strict=True):
        pace.observe(count, each)
    weights = np.exp(-np.arange(59, -1, -1) / MEMORY)
    slope, intercept = np.polyfit(counts, seconds, 1, w=np.sqrt(weights))
    assert pace.each_s == pytest.approx(slope)
    assert pace.base_s == pytest.approx(intercept)
    assert pace.batch_s(10) == pytest.approx(intercept + 10 * slope)


def test_runs_of_one_size_say_that_time_grows_with_size_and_others_teach_better() -> None:
    pace = Pace()
    assert not pace.known
    for _ in range(5):
        pace.observe(2, 0.010)
    assert pace.known
    assert pace.batch_s(4) == pytest.approx(0.020)
    for _ in range(100):
        pace.observe(2, 0.010)
        pace.observe(8, 0.010)
    assert pace.batch_s(4) == pytest.approx(0.010)
    assert pace.each_s == 0


@given(runs=st.lists(st.tuples(st.integers(1, 64), st.floats(1e-5, 10)), min_size=1, max_size=30))
def test_however_runs_differ_neither_part_is_negative(runs: list[tuple[int, float]]) -> None:
    pace = Pace()
    for count, seconds in runs:
        pace.observe(count, seconds)
    assert pace.each_s >= 0
    assert pace.base_s >= -1e-9
    assert pace.batch_s(1) <= max(seconds for _, seconds in runs) * (1 + 1e-9)


def test_a_machine_that_got_slower_is_believed_within_a_few_runs() -> None:
    pace = pace_of(0.0, 0.001)
    for _ in range(3 * MEMORY):
        pace.observe(8, 0.080)
    assert pace.batch_s(8) == pytest.approx(0.080, rel=0.05)


@settings(max_examples=200)
@given(
    waiting=st.integers(0, 200),
    count=st.integers(1, 40),
    size=st.integers(1, 16),
    streams=st.integers(1, 4),
    base_s=st.floats(0, 0.01),
    each_s=st.floats(0.001, 0.01),
    busy=st.lists(st.floats(0, 0.05), min_size=4, max_size=4),
)
def test_an_answer_comes_when_it_was_predicted_within_two_batches(
    waiting: int, count: int, size: int, streams: int, base_s: float, each_s: float, busy: list[float]
) -> None:
    """Against the streams themselves, played through batch by batch."""
    free_at = [each_s + left for left in busy[:streams]]
    predicted_s = answered_in_s(
        pace_of(base_s, each_s), Ahead(sum(free_at), waiting), count, size=size, streams=streams
    )
    heapq.heapify(free_at)
    left, last_s = waiting + count, 0.0
    while left:
        taken = min(left, size, math.ceil(left / streams))
        ends_s = heapq.heappop(free_at) + base_s + each_s * taken
        left, last_s = left - taken, max(last_s, ends_s)
        heapq.heappush(free_at, ends_s)
    batch_s = base_s + each_s * size
    assert abs(predicted_s - last_s) <= 2 * batch_s + 0.05 + streams * base_s


def test_others_whose_turns_lie_between_make_the_wait_longer_and_not_the_batch_itself() -> None:
    pace = pace_of(0.001, 0.001)
    alone = answered_in_s(pace, Ahead(0, 80), 8, size=8, streams=1)
    between = answered_in_s(pace, Ahead(0, 80, slowed=2), 8, size=8, streams=1)
    assert alone == pytest.approx(11 * 0.009)
    assert between == pytest.approx(21 * 0.009)
