"""Clocks: of the machine we stand on, and of those that answer us."""

from __future__ import annotations

from inspectbus.doctor.finding import Finding, State

WARN_S = 2.0
"""Timings of a frame's hops stop making sense."""
FAIL_S = 60.0
"""What one machine calls now is another's future: messages are parked for it, and no log can be read beside another."""


def judged(whose: str, ahead_s: float, doubt_s: float) -> Finding:
    """`ahead_s`: their clock minus ours, seconds; it may be wrong by `doubt_s` either way."""
    about = f"clock of {whose}"
    off_s = max(0.0, abs(ahead_s) - doubt_s)
    if off_s <= WARN_S:
        return Finding(about, State.OK, f"agrees with ours within {abs(ahead_s) + doubt_s:.1f} s")
    way = "ahead of" if ahead_s > 0 else "behind"
    state = State.FAIL if off_s > FAIL_S else State.WARN
    return Finding(about, state, f"is {off_s:.0f} s {way} ours: let both machines keep time by NTP")
