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
from inspectbus.errors import StorageAway, StorageFull
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
    """One thread between the bus and the ledger, from entering to leaving.

    The subscription that feeds it ends first, and with it gives back to the bus what is not recorded by then.
    """

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
            if self._record(batch) is None:
                continue
            # One decision's fault must not cost its neighbours an attempt, so each gets its own transaction.
            for item in batch:
                fault = self._record([item])
                if fault is not None:
                    log.error("could not record a decision", frame_id=item.decision.frame_id, error=repr(fault))
                    item.delivery.retry(fault)

    def _next_batch(self) -> list[_Item]:
        """Waits for a first decision, then takes what already waits: never for company. Empty when told to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._stopped)
            if self._stopped:
                return []
            return [self._inbox.popleft() for _ in range(min(len(self._inbox), self._max_batch_size))]

    def _record(self, batch: list[_Item]) -> Exception | None:
        """Commits the batch and acknowledges it, or gives the fault that is in it."""
        decisions = [item.decision for item in batch]
        begun = time.monotonic()
        try:
            outcomes = self._commit(decisions)
        except Exception as fault:  # any, for it must not end this thread; the bus counts what it costs the decision
            return fault
        if outcomes is None:
            return None
        # Before the acknowledgements, so that whoever has his finds it counted.
        self._metrics.committed(decisions, outcomes, time.monotonic() - begun)
        self._on_commit()
        for item, outcome in zip(batch, outcomes, strict=True):
            if outcome is Outcome.CONFLICT:
                log.warning(
                    "a differing decision came after the first",
                    frame_id=item.decision.frame_id,
                    verdict=Verdict.Name(item.decision.verdict),
                    model_version=item.decision.model_version,
                )
            item.delivery.done()
        return None

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
