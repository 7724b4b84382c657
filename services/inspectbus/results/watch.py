"""The watch: every reader gets every record in the order of cursors, at its own pace, from the ledger.

    recorder commits ─> wake ─┐
    another replica committed ┴─(poll)─> each watcher reads pages after its own cursor ─> its stream

Nothing is kept per watcher but its cursor: a slow one holds a thread and no memory, and reads on where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from inspectbus.api.v1.results_pb2 import Record
from inspectbus.errors import QueueFull
from inspectbus.results.ledger import Ledger
from inspectbus.results.rows import Where

PAGE = 200
"""Records per reading: some 100 kB in memory."""
BREATH_S = 0.05
"""Least time between two readings of one watcher at the tip, so that fifty watchers cannot make a fast line's every
batch fifty queries."""
_GOODBYE_S = 0.5
"""How long a stream may take to notice the end before its call is cancelled: its client may have stopped reading."""


class Watch:
    """Thread-safe. Leaving ends every stream."""

    def __init__(self, ledger: Ledger, *, max_watchers: int, poll_s: float) -> None:
        self._ledger = ledger
        self._max_watchers = max_watchers
        self._poll_s = poll_s
        self._changed = threading.Condition()
        self._commits = 0
        self._closed = False
        self._hang_ups: dict[object, Callable[[], object]] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._hang_ups, timeout=_GOODBYE_S)
            stalled = list(self._hang_ups.values())
        for hang_up in stalled:
            hang_up()

    def wake(self) -> None:
        """Something was committed, or a caller has gone: watchers look again now instead of at their next poll."""
        with self._changed:
            self._commits += 1
            self._changed.notify_all()

    def records(
        self,
        where: Where,
        after: int | None,
        *,
        begins_after: Callable[[int], object],
        wanted: Callable[[], bool],
        hang_up: Callable[[], object],
    ) -> Iterator[Record]:
        """Every record after the cursor, or recorded from now on, as it comes, while `wanted` and until the watch ends.

        `begins_after` is told the cursor before anything else happens. `hang_up` is called when the watch ends while a
        record is not taken. Raises QueueFull beyond `max_watchers`.
        """
        me = object()
        with self._changed:
            if len(self._hang_ups) >= self._max_watchers:
                raise QueueFull(f"{self._max_watchers} watchers are served already")
            self._hang_ups[me] = hang_up
        try:
            cursor = self._ledger.last_cursor() if after is None else after
            begins_after(cursor)
            while wanted() and not self._closed:
                begun, seen = time.monotonic(), self._commits
                records, cursor = self._ledger.news(where, cursor, PAGE)
                for record in records:
                    if self._closed:
                        return
                    yield record
                if len(records) < PAGE:
                    self._await_news(seen, begun + BREATH_S)
        finally:
            with self._changed:
                del self._hang_ups[me]
                self._changed.notify_all()

    def _await_news(self, seen: int, not_before: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._commits != seen, timeout=self._poll_s)
            self._changed.wait_for(lambda: self._closed, timeout=max(0.0, not_before - time.monotonic()))
