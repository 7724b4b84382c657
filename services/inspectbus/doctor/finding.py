"""Findings, and how checks are run: all at once, because what is away takes its time to be noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue

from inspectbus.errors import InspectBusError

LIMIT_S = 10.0
"""For all checks together: they run beside each other."""


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It works, and will not for ever."""
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One sentence about one thing."""

    about: str
    state: State
    says: str
    """What is, and where something is wrong, what to do."""


@dataclass(frozen=True)
class Check:
    """What is looked at, and how. Raising an InspectBusError is a finding too: that it fails."""

    about: str
    look: Callable[[], list[Finding]]


def examine(checks: Sequence[Check], limit_s: float = LIMIT_S) -> list[Finding]:
    """Findings in the checks' order. A check that is not over in time has failed; its thread is left to itself."""
    done: SimpleQueue[tuple[int, list[Finding]]] = SimpleQueue()
    for number, check in enumerate(checks):
        threading.Thread(
            target=lambda number=number, check=check: done.put((number, _looked(check))),
            name=f"doctor-{check.about}",
            daemon=True,
        ).start()
    found: dict[int, list[Finding]] = {}
    until_s = time.monotonic() + limit_s
    while len(found) < len(checks):
        try:
            number, findings = done.get(timeout=max(0.0, until_s - time.monotonic()))
        except Empty:
            break
        found[number] = findings
    late = f"gave no answer within {limit_s:.0f} s: is the network cut, or the machine overloaded?"
    return [
        finding
        for number, check in enumerate(checks)
        for finding in found.get(number, [Finding(check.about, State.FAIL, late)])
    ]


def _looked(check: Check) -> list[Finding]:
    try:
        return check.look()
    except InspectBusError as error:
        return [Finding(check.about, State.FAIL, error.message)]
    except OSError as error:
        return [Finding(check.about, State.FAIL, f"{error.strerror or error}")]
    except Exception as error:  # a library's fault must not hide what the other checks found
        return [Finding(check.about, State.FAIL, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}")]
