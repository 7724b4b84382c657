"""Calls that lead to one another, made one after the other: none goes deeper, however long the chain.

a turn ends ─> another flow's begins ─> its engine fails at once ─> that turn ends ─> ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

Argument = TypeVar("Argument")

# By thread, and not thread-local: a thread of an engine's own is new to Python with each call that it makes.
_due: dict[int, deque[tuple[Callable[..., object], object]]] = {}


def follow(call: Callable[[Argument], object], argument: Argument) -> None:
    """Makes the call now; or, where this thread is inside of one already, after that and those that follow it.

    What a call raises is logged and keeps nobody from the next. With no lock held.
    """
    thread = get_ident()
    if (due := _due.get(thread)) is not None:
        due.append((call, argument))
        return
    due = _due[thread] = deque(((call, argument),))
    try:
        while due:
            call, argument = due.popleft()  # type: ignore[assignment]
            try:
                call(argument)
            except Exception:  # whosever fault it is: others wait for their turns behind it
                log.exception("a step of the batcher failed")
    finally:
        del _due[thread]
