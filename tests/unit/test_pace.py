"""A station's schedule follows the clock."""

from __future__ import annotations

import pytest

from inspectbus.acquisition.pace import Pace


def test_the_first_frame_is_due_at_once_and_the_others_in_equal_steps() -> None:
    pace = Pace(10)

    delays = [pace.delay_s(now_s=100.0) for _ in range(4)]

    assert delays == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_work_between_frames_makes_no_drift() -> None:
    pace = Pace(10)
    now_s = 100.0
    taken = []

    for _ in range(1000):
        now_s += pace.delay_s(now_s)
        taken.append(now_s)
        now_s += 0.07  # reading and publishing

    assert taken[-1] == pytest.approx(100.0 + 999 * 0.1)


def test_a_camera_that_was_held_up_does_not_send_a_burst() -> None:
    pace = Pace(10)
    pace.delay_s(100.0)

    assert pace.delay_s(105.0) == 0.0
    assert pace.delay_s(105.0) == pytest.approx(0.1)


def test_a_frame_a_little_late_does_not_move_the_schedule() -> None:
    pace = Pace(10)
    pace.delay_s(100.0)

    assert pace.delay_s(100.15) == 0.0
    assert pace.delay_s(100.16) == pytest.approx(0.04)


def test_zero_frames_per_second_never_waits() -> None:
    pace = Pace(0)

    assert [pace.delay_s(now_s) for now_s in (0.0, 0.0, 5.0, 5.1)] == [0.0] * 4
