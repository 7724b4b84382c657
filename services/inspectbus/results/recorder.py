"""The recorder: what has arrived becomes one transaction, and only then is it acknowledged.

    bus ─ take ─> inbox (bounded by the subscription's prefetch) ─> batch ─> ledger.record ─> delivery.done() each
                                                                     └─ database full or away: hold it, try again

A full disk is nobody's fault on the line, so its decisions must not use up the bus's attempts and end among the dead
letters: the batch stays in hand, unacknowledged, until there is room. Meanwhile the bus hands over no more than its
prefetch and pushes back on its senders.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import structlog

from inspectbus.api.v1.decision_pb2 import Decision, Verdict
from inspectbus.bus import Delivery
from inspectbus.errors import BusClosed, StorageAway, StorageFull
from inspectbus.results.ledger import Ledger, Outcome
from inspectbus.results.metrics import LedgerMetrics

log = structlog.get_logger(__name__)

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0
"""The pause doubles between these: soon enough after a lock, rare enough on a full disk."""


class _Item(NamedTuple):
    delivery: Delivery
    decision: Decision


class Recorder:
    """One thread between the bus and the ledger. Entering starts it; leaving gives back what is not recorded."""

    def __init__(
        self, ledger: Ledger, metrics: LedgerMetrics, *, max_batch_size: int, on_commit: Callable[[], None]
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._on_commit = on_commit
        self._inbox: deque[_Item] = deque()  # never holds more than the subscription may leave unsettled
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="results-recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def take(self, delivery: Delivery, decision: Decision) -> None:
        """Settles the delivery later: done when its decision is committed."""
        with self._changed:
            self._inbox.append(_Item(delivery, decision))
            self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._record(batch)
        for item in self._inbox:
            item.delivery.retry(BusClosed("results stopped before the decision was recorded"))

    def _next_batch(self) -> list[_Item]:
        """Waits for a first decision, then takes what already waits: never for company. Empty when told to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._stopped)
            if self._stopped:
                return []
            return [self._inbox.popleft() for _ in range(min(len(self._inbox), self._max_batch_size))]

    def _record(self, batch: list[_Item]) -> None:
        decisions = [item.decision for item in batch]
        begun = time.monotonic()
        fault: Exception | None = None
        outcomes: list[Outcome] | None = None
        try:
            outcomes = self._commit(decisions)
        except Exception as error:  # one decision's fault must cost neither its neighbours nor this thread
            fault = error
        if fault is not None and len(batch) > 1:
            for item in batch:
                self._record([item])
            return
        if outcomes is None:
            if fault is not None:
                log.error("could not record a decision", frame_id=decisions[0].frame_id, error=repr(fault))
            for item in batch:
                item.delivery.retry(fault or BusClosed("results stopped while the database took no decisions"))
            return
        # Before the acknowledgements, so that whoever has his finds it counted.
        self._metrics.committed(decisions, outcomes, time.monotonic() - begun)
        self._on_commit()
        for item in batch:
            item.delivery.done()
        for decision, outcome in zip(decisions, outcomes, strict=True):
            if outcome is Outcome.CONFLICT:
                log.warning(
                    "a differing decision came after the first",
                    frame_id=decision.frame_id,
                    verdict=Verdict.Name(decision.verdict),
                    model_version=decision.model_version,
                )

    def _commit(self, decisions: list[Decision]) -> list[Outcome] | None:
        """Records the batch, however long the database takes nothing. None when told to stop before it did."""
        pause_s = FIRST_RETRY_S
        while True:
            try:
                outcomes = self._ledger.record(decisions)
            except (StorageFull, StorageAway) as error:
                self._metrics.blocked.set(1)
                log.error("the ledger is blocked, decisions are held", held=len(decisions), error=error.message)
            else:
                if pause_s > FIRST_RETRY_S:
                    self._metrics.blocked.set(0)
                    log.info("the ledger takes decisions again")
                return outcomes
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped, timeout=pause_s):
                    return None
            pause_s = min(2 * pause_s, LAST_RETRY_S)
