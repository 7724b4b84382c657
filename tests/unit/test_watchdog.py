"""Does a call that hangs end the process, and no other call?"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inspectbus.runtime.watchdog import HUNG, Watchdog

SERVICES = Path(__file__).parents[2] / "services"


def test_a_call_beyond_the_limit_is_told_once() -> None:
    told = threading.Event()
    with Watchdog(0.1, told.set) as watchdog, watchdog.watching("a frame"):
        assert told.wait(5)


def test_calls_within_the_limit_are_left_alone() -> None:
    told = threading.Event()
    with Watchdog(30.0, told.set) as watchdog:
        for _ in range(100):
            with watchdog.watching("a frame"):
                pass
        assert not told.wait(0.05)


def test_a_step_that_began_on_a_thread_which_is_gone_is_watched_until_another_ends_it() -> None:
    told = threading.Event()
    with Watchdog(0.1, told.set) as watchdog:
        began: list[int] = []
        beginning = threading.Thread(target=lambda: began.append(watchdog.began("a pass")))
        beginning.start()
        beginning.join(5)
        assert told.wait(5)
    told.clear()
    with Watchdog(30.0, told.set) as watchdog:
        watchdog.ended(watchdog.began("a pass"))
        assert not told.wait(0.05)


@pytest.mark.parametrize(
    "hang",
    [
        "threading.Event().wait()",
        # A library that never gives the interpreter's lock back: PyDLL calls keep it.
        "ctypes.PyDLL(None).sleep(60)",
    ],
)
def test_a_process_whose_call_hangs_ends_and_says_where(hang: str) -> None:
    code = (
        "import ctypes, threading\n"
        "from inspectbus.runtime.watchdog import Watchdog\n"
        "with Watchdog(0.5) as watchdog:\n"
        "    with watchdog.watching('first'):\n"
        "        threading.Event().wait(0.2)\n"
        "    with watchdog.watching('second'):\n"
        "        threading.Event().wait(0.2)\n"
        f"        {hang}\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(SERVICES)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert run.returncode in (HUNG, 1), run.stderr
    assert "File" in run.stderr, "the stacks tell what hung"
