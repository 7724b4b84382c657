"""Places for streams: each holds a thread of the door for as long as its caller likes, so they never get all of them.

stream opens ─> a place ─> ... ─> ends, is cancelled, or its connection breaks: the place is free
   └── none left, or its caller has its share ─> QueueFull, TooFast: told what to do
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from inspectbus.errors import QueueFull, TooFast


def places_of(rpc_threads: int) -> int:
    """Three quarters: the last is kept for calls that end by themselves."""
    return max(1, 3 * rpc_threads // 4)


class OpenStreams:
    """Thread-safe."""

    def __init__(self, rpc_threads: int) -> None:
        self._most = places_of(rpc_threads)
        self._most_of_one = max(1, self._most // 2)
        self._most_of_strangers = max(1, self._most // 8)
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()

    @contextmanager
    def place(self, caller: str, *, shared: bool) -> Iterator[None]:
        """For one stream, until left. `shared`: one caller has at most half of the places, so that others find some.

        Raises QueueFull where all are taken, TooFast where the caller has its half.
        """
        most = self._most_of_one if shared else self._most
        with self._taken(caller, most, f"{caller} has {most} streams open, and one caller may have no more"):
            yield

    @contextmanager
    def place_of_stranger(self) -> Iterator[None]:
        """For a stream of somebody unknown: all of them together have an eighth of the places. Raises as `place`."""
        most = self._most_of_strangers
        with self._taken("", most, f"callers without a name have {most} streams open, and may have no more"):
            yield

    @contextmanager
    def _taken(self, caller: str, most: int, objection: str) -> Iterator[None]:
        with self._lock:
            if self._open.total() >= self._most:
                raise QueueFull(
                    f"{self._most} streams are open, and no more may be (three quarters of rpc_threads): send more "
                    "over those that are open, make single calls, or try again when one has ended"
                )
            if self._open[caller] >= most:
                raise TooFast(f"{objection}: send more over those, make single calls, or end one first")
            self._open[caller] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[caller] -= 1
                if not self._open[caller]:
                    del self._open[caller]
