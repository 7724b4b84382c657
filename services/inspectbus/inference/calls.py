"""A synchronous call and its images: how long its caller waits, and that nothing is computed when nobody does.

futures of the batcher ─> every answer, in order
      └── one fails, the caller hangs up or its deadline passes: the others give their places back
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from inspectbus.errors import TooLate
from inspectbus.inference.batcher import Scored
from inspectbus.runtime.handover import Handover

LONGEST_DEADLINE_S = 24 * 3600
"""One of centuries is how a call says that it has none."""


def patience_of(context: Any, otherwise_s: float) -> float:
    """Seconds until the call's deadline; `otherwise_s` where it brings none."""
    left: float | None = context.time_remaining()
    return left if left is not None and left < LONGEST_DEADLINE_S else otherwise_s


async def answers(asked: Sequence[Future[Scored]], handover: Handover, patience_s: float) -> list[Scored]:
    """What the engine said of every image, or of none. Raises the first error among them, TooLate past the patience."""
    try:
        async with asyncio.timeout(patience_s):
            return [await handover.result(future) for future in asked]
    except (TimeoutError, CancelledError):
        raise TooLate("the call ended before its images were judged") from None
    finally:
        let_go(asked)


def let_go(asked: Sequence[Future[Scored]]) -> None:
    """Nobody waits for them any more."""
    for future in asked:
        future.cancel()
