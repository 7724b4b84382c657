"""Who goes first on a processor: those who answer callers, then those who compute, and last who loads beside them.

thread that loads ─ lowered ─> the threads that libraries start from it inherit that ─ done ─> they compute
thread of ours that computes ─ `computes` ─> behind those who answer

An image is computed in milliseconds and answered in microseconds, and whoever refuses a call does it at once: where
they waited for a time slice of those who compute, that would be most of what their callers wait for. A lowered thread
can only be raised by a process that may (CAP_SYS_NICE, or a high enough `ulimit -e`), and an engine whose threads
stayed behind another's would be slow for good. So where it cannot be undone, who loads is level with who computes; and
where a machine allows no change at all, everybody is.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TASKS = Path("/proc/self/task")
"""The threads of this process."""
COMPUTES, LOADS = 5, 15
"""Niceness, beyond that of the process: each has a third, and a tenth, of what those before it have where they want all
of a processor. Not less, because a thread that holds Python's lock and is given no processor holds up everybody."""
LOWEST = 19


def computes() -> None:
    """The calling thread does nothing else from now on.

    Nothing happens where priorities are not the threads' own (elsewhere than on Linux).
    """
    if _are_of_threads():
        _set(threading.get_native_id(), _level(COMPUTES))


@contextmanager
def loading(*, beside: bool) -> Iterator[None]:
    """What is started from the calling thread within computes from then on; `beside` others that do, it and they are
    behind those until it is left. Nothing happens where priorities are not the threads' own.
    """
    if not _are_of_threads():
        yield
        return
    own, undone = threading.get_native_id(), _can_be_undone()
    usual, computing = _level(0), _level(COMPUTES)
    lowered = _level(LOADS) if beside and undone else computing
    _set(own, lowered)
    try:
        yield
    finally:
        if undone:
            _set(own, usual)
            for thread in (int(task.name) for task in TASKS.iterdir()):
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    if os.getpriority(os.PRIO_PROCESS, thread) == lowered:
                        _set(thread, computing)


def _are_of_threads() -> bool:
    return sys.platform == "linux" and TASKS.is_dir()


def _level(step: int) -> int:
    """Beyond the first thread's niceness, which is the process's."""
    return min(LOWEST, os.getpriority(os.PRIO_PROCESS, os.getpid()) + step)


def _set(thread: int, niceness: int) -> None:
    """Where that may be: who judges is not to fail for it."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _can_be_undone() -> bool:
    """Tried on a thread that nobody needs."""
    undone = False

    def attempt() -> None:
        nonlocal undone
        own = threading.get_native_id()
        usual = os.getpriority(os.PRIO_PROCESS, own)
        if usual == LOWEST:
            return
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, own, usual + 1)
            os.setpriority(os.PRIO_PROCESS, own, usual)
            undone = True

    thread = threading.Thread(target=attempt, name="priority-attempt", daemon=True)
    thread.start()
    thread.join(timeout=1.0)
    return undone
