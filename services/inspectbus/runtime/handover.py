"""What other threads have for a loop's tasks, brought across: all that comes before the loop gets round to it costs one
wake-up, which is a call of the kernel for which a thread lets Python's lock go.

engine's threads ── bring(call, argument) ──> deque ── one wake-up ──> the loop makes the calls, in their order
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


class Handover:
    """To the loop on which it is made. What is brought is bounded by those who asked for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._brought: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._told = False

    def bring(self, call: Callable[[Any], object], argument: Any) -> None:
        """From any thread: has the loop call it. Once the loop has closed nobody waits, and nothing is done."""
        self._brought.append((call, argument))
        # Without a lock: told twice it looks twice. It is never told too late, for it unsets this before it looks.
        if not self._told:
            self._told = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._take)

    async def result(self, future: Future[Result]) -> Result:
        """Of a future that another thread sets. Raises what it raises; cancels nothing."""
        if not future.done():
            waiter = self._loop.create_future()
            future.add_done_callback(lambda _: self.bring(_wake, waiter))
            await waiter
        return future.result()

    def _take(self) -> None:
        self._told = False
        while self._brought:
            call, argument = self._brought.popleft()
            call(argument)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
