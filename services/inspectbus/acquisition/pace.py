"""Pace: when the next frame is due."""

from __future__ import annotations


class Pace:
    """A schedule of equal steps. It follows the clock and not the work between two frames, so it never drifts."""

    def __init__(self, fps: float) -> None:
        self._period_s = 1 / fps if fps else 0.0
        self._due_s = float("-inf")

    def delay_s(self, now_s: float) -> float:
        """Seconds to wait from now_s (monotonic) for the next frame, which is then taken. 0 when it is due or late."""
        if now_s > self._due_s + self._period_s:
            # The first frame, or the line held us up for more than a period: begin the schedule here. A camera does
            # not send in a burst what it could not send in time.
            self._due_s = now_s
        wait_s = max(0.0, self._due_s - now_s)
        self._due_s += self._period_s
        return wait_s
