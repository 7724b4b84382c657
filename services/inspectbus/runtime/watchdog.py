"""The watchdog: ends the process when a call hangs, because nothing less ends a call.

    with watchdog.watching("preparing frame ..."): ...      longer than the limit ─> every thread's stack, exit code 70
    watchdog.began("a pass ...") ─> watchdog.ended(...)     the same, where another thread may see the end

Whoever runs the process starts it again, and the message that hung comes back counted. A call that hangs inside a
library while it holds the interpreter's lock stops our thread too: then the C timer of `faulthandler`, which our thread
must wind up again and again, runs out.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import structlog

log = structlog.get_logger(__name__)

HUNG = 70
"""Exit code (EX_SOFTWARE): a call did not come back."""
LOOKS = 8
"""Looks per limit: a hung call is found this share of the limit late at most."""


def end_process() -> None:
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os._exit(HUNG)


class Watchdog:
    """One for each service. Entering starts its thread; leaving ends it."""

    def __init__(self, limit_s: float, on_hang: Callable[[], None] = end_process) -> None:
        self._limit_s = limit_s
        self._on_hang = on_hang
        self._lock = threading.Lock()
        self._calls: dict[int, tuple[float, str]] = {}
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._wind()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if self._on_hang is end_process:
            faulthandler.cancel_dump_traceback_later()

    def watching(self, what: str) -> AbstractContextManager[None]:
        """For calls of one step that ends by itself within milliseconds, never for a wait."""
        return _Watched(self, what)

    def began(self, what: str) -> int:
        """As `watching`, for a step that may end on another thread: its number, for `ended`, to be told once."""
        number = next(self._numbers)
        with self._lock:
            self._calls[number] = (time.monotonic(), what)
        return number

    def ended(self, number: int) -> None:
        with self._lock:
            del self._calls[number]

    def _watch(self) -> None:
        pause_s = self._limit_s / LOOKS
        while not self._stop.wait(pause_s):
            self._wind()
            with self._lock:
                oldest = min(self._calls.values(), default=None)
            if oldest is None:
                continue
            begun_s, what = oldest
            hung_s = time.monotonic() - begun_s
            if hung_s > self._limit_s:
                log.critical("a call hangs, the process ends", what=what, seconds=round(hung_s, 1))
                self._on_hang()
                return

    def _wind(self) -> None:
        """Always, also while nothing is watched: a call that holds the lock from its beginning lets us never look."""
        if self._on_hang is end_process:
            faulthandler.dump_traceback_later(self._limit_s * (1 + 1 / LOOKS), exit=True)


class _Watched:
    # Entered for every image, so it is no generator, which costs several times as much.
    __slots__ = ("_number", "_watchdog", "_what")

    def __init__(self, watchdog: Watchdog, what: str) -> None:
        self._watchdog, self._what = watchdog, what

    def __enter__(self) -> None:
        self._number = self._watchdog.began(self._what)

    def __exit__(self, *_: object) -> None:
        self._watchdog.ended(self._number)
