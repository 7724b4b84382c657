"""Work that gives way: a version is loaded beside one that judges, on the same processor.

thread that loads ─ lowered ─> the threads that libraries start from it inherit that ─ done ─> all are raised again

A lowered thread can only be raised by a process that may (CAP_SYS_NICE, or a high enough `ulimit -e`), and an engine
whose threads stayed behind everybody else's would be slow for good. So where it cannot be undone, nothing is lowered.
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
STEP = 10
"""Niceness: a tenth of the processor where somebody else wants all of it. Not less, because a thread that holds
Python's lock and is given no processor holds up everybody."""
LOWEST = 19


@contextmanager
def giving_way() -> Iterator[None]:
    """The calling thread, and all that are started from it within, have a lower priority until it is left.

    Does nothing where priorities are not the threads' own (elsewhere than on Linux), or could not be raised again.
    """
    if not _can_be_undone():
        yield
        return
    thread = threading.get_native_id()
    usual = os.getpriority(os.PRIO_PROCESS, thread)
    lowered = min(LOWEST, usual + STEP)
    os.setpriority(os.PRIO_PROCESS, thread, lowered)
    try:
        yield
    finally:
        for task in TASKS.iterdir():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                if os.getpriority(os.PRIO_PROCESS, int(task.name)) == lowered:
                    os.setpriority(os.PRIO_PROCESS, int(task.name), usual)


def _can_be_undone() -> bool:
    """Tried on a thread that nobody needs."""
    undone = False

    def attempt() -> None:
        nonlocal undone
        own = threading.get_native_id()
        usual = os.getpriority(os.PRIO_PROCESS, own)
        if usual == LOWEST:
            return
        os.setpriority(os.PRIO_PROCESS, own, usual + 1)
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, own, usual)
            undone = True

    if sys.platform == "linux" and TASKS.is_dir():
        thread = threading.Thread(target=attempt, name="priority-attempt", daemon=True)
        thread.start()
        thread.join(timeout=1.0)
    return undone
