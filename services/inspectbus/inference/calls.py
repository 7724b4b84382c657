"""A synchronous call and its images: how long its caller waits, and that nothing is computed when nobody does.

futures of the batcher ─> every answer, in order
      └── one fails, the caller hangs up or its deadline passes: the others give their places back
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future

import grpc

from inspectbus.errors import TooLate
from inspectbus.inference.batcher import Scored

LONGEST_DEADLINE_S = 24 * 3600
"""gRPC reports a call without a deadline as one of centuries."""


def patience_of(context: grpc.ServicerContext, otherwise_s: float) -> float:
    """Seconds until the call's deadline; `otherwise_s` where it brings none."""
    left = context.time_remaining()
    return float(left) if left is not None and left < LONGEST_DEADLINE_S else otherwise_s


def answers(asked: Sequence[Future[Scored]], context: grpc.ServicerContext, patience_s: float) -> list[Scored]:
    """What the engine said of every image, or of none. Raises the first error among them, TooLate past the patience."""
    waiting = list(asked)

    def let_go() -> None:
        for future in waiting:
            future.cancel()

    if not context.add_callback(let_go):
        let_go()  # the caller has hung up already
    until_s = time.monotonic() + patience_s
    try:
        return [future.result(timeout=max(0.0, until_s - time.monotonic())) for future in asked]
    except (TimeoutError, CancelledError):
        raise TooLate("the call ended before its images were judged") from None
    finally:
        let_go()
        # gRPC keeps its callback until the answer has left, which a caller who reads nothing can put off: it must not
        # keep the images too.
        waiting.clear()
