"""The keeper: a thread for what a bus does later or may wait for, so that no settling thread and no loop has to.

later(delay_s, chore) ─> heap ─> chore, one at a time
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import structlog

log = structlog.get_logger(__name__)


class Keeper:
    """Thread-safe. Chores left at the end are not done: what they would have settled comes back by itself."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._chores: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._thread.start()

    def later(self, delay_s: float, chore: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._chores, (time.monotonic() + delay_s, next(self._order), chore))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    def _keep(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._chores or self._chores[0][0] > time.monotonic()):
                    self._changed.wait(self._chores[0][0] - time.monotonic() if self._chores else None)
                if self._closed:
                    return
                chore = heapq.heappop(self._chores)[2]
            try:
                chore()
            except Exception:  # one message's trouble must not end the thread that all others need
                log.exception("a chore of the bus failed")


def when_all(futures: Sequence[Future[None]], then: Callable[[BaseException | None], None]) -> None:
    """Calls `then` once, when the last future is done, with the first failure found or None."""
    if not futures:
        then(None)
        return
    left = len(futures)
    lock = threading.Lock()

    def one_done(_: Future[None]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            then(next((failure for future in futures if (failure := _failure(future)) is not None), None))

    for future in futures:
        future.add_done_callback(one_done)


def _failure(future: Future[None]) -> BaseException | None:
    return None if future.cancelled() else future.exception()
