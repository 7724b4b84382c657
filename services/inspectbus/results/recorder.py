"""The recorder: what has arrived becomes one transaction, and only then is it acknowledged.

    bus ─ take ─> inbox (bounded by the subscription's prefetch) ─> batch ─> ledger.record ─> delivery.done() each
                                                    database full or away: └─ held, tried again ─> delivery.retry() each

One recorder takes decisions and gate outcomes alike: they share a transaction, and with it the disk's one flush. What
shadows say has a recorder and a book of its own, so that it can hold up no decision.

A full disk is nobody's fault on the line, so its decisions must not use up the bus's attempts and end among the dead
letters: the batch stays in hand, unacknowledged, until there is room. Meanwhile the bus hands over no more than its
prefetch and pushes back on its senders. An outage that lasts is told to the bus, which counts it as nobody's failure.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import structlog
from prometheus_client import Gauge

from inspectbus import spans
from inspectbus.api.v1.decision_pb2 import Decision, Verdict
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.bus import Delivery
from inspectbus.errors import InspectBusError, StorageAway, StorageFull
from inspectbus.results.first_wins import Fate
from inspectbus.results.ledger import is_first

log = structlog.get_logger(__name__)

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0
"""The pause doubles between these: soon enough after a lock, rare enough on a full disk."""
HOLD_S = 8.0
"""An outage is waited for here so long, which is a restart. The bus knows what to do with a longer one; a message that
is worked on alone would be taken for one that hangs."""


E = TypeVar("E", Decision | GateOutcome, ShadowDecision)
C = TypeVar("C", contravariant=True)


class Book(Protocol[C]):
    """What entries are recorded in."""

    def record(self, batch: Sequence[C]) -> list[Fate]:
        """As `Ledger.record`."""


class Counts(Protocol[C]):
    """What is counted of them."""

    blocked: Gauge

    def committed(self, batch: Sequence[C], fates: Sequence[Fate], seconds: float) -> None: ...


class _Item(NamedTuple, Generic[E]):
    delivery: Delivery
    entry: E


class Recorder(Generic[E]):
    """One thread between the bus and the ledger, from entering to leaving.

    The subscriptions that feed it end first, and with them give back to the bus what is not recorded by then.
    `on_commit` is called when there are new records.
    """

    def __init__(
        self,
        ledger: Book[E],
        metrics: Counts[E],
        *,
        max_batch_size: int,
        on_commit: Callable[[], None] = lambda: None,
        name: str = "recorder",
    ) -> None:
        self._ledger: Book[E] = ledger
        self._metrics: Counts[E] = metrics
        self._max_batch_size = max_batch_size
        self._on_commit = on_commit
        self._inbox: deque[_Item[E]] = deque()  # never holds more than the subscriptions may leave unsettled
        self._stopped = False
        self._blocked = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"results-{name}", daemon=True)

    def __enter__(self) -> Recorder[E]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def take(self, delivery: Delivery, entry: E) -> None:
        """Settles the delivery later: done when its entry is committed."""
        with self._changed:
            self._inbox.append(_Item(delivery, entry))
            self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next_batch():
            if self._record(batch) is None:
                continue
            # One entry's fault must not cost its neighbours an attempt, so each gets its own transaction.
            for item in batch:
                fault = self._record([item])
                if fault is not None:
                    self._give_up(item, fault)

    def _next_batch(self) -> list[_Item[E]]:
        """Waits for a first entry, then takes what already waits: never for company. Empty when told to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._stopped)
            if self._stopped:
                return []
            return [self._inbox.popleft() for _ in range(min(len(self._inbox), self._max_batch_size))]

    def _record(self, batch: list[_Item[E]]) -> Exception | None:
        """Commits the batch and acknowledges it, or gives the fault that is in it."""
        entries = [item.entry for item in batch]
        begun = time.monotonic()
        try:
            fates = self._commit(entries)
        except (StorageFull, StorageAway) as outage:
            for item in batch:
                item.delivery.retry(outage)
            return None
        except Exception as fault:  # any, for it must not end this thread; the bus counts what it costs the entry
            return fault
        if fates is None:
            return None
        # Before the acknowledgements, so that whoever has his finds it counted.
        self._metrics.committed(entries, fates, time.monotonic() - begun)
        if any(fate is Fate.RECORDED and is_first(entry) for entry, fate in zip(entries, fates, strict=True)):
            self._on_commit()
        for item, fate in zip(batch, fates, strict=True):
            if fate is Fate.CONFLICT:
                _warn(item.entry)
            item.delivery.done()
        return None

    def _give_up(self, item: _Item[E], fault: Exception) -> None:
        log.error("could not record", kind=_kind(item.entry), error=repr(fault), **_words(item.entry))
        if isinstance(fault, InspectBusError) and not fault.retryable:
            item.delivery.park(fault)
        else:
            item.delivery.retry(fault)

    def _commit(self, entries: list[E]) -> list[Fate] | None:
        """Records the batch, or waits until it can be. None when told to stop before that.

        Raises StorageFull or StorageAway when neither comes within HOLD_S.
        """
        pause_s = FIRST_RETRY_S
        give_back_s = time.monotonic() + HOLD_S
        while True:
            try:
                fates = self._ledger.record(entries)
            except (StorageFull, StorageAway) as error:
                self._metrics.blocked.set(1)
                self._blocked = True
                log.error("the ledger is blocked, the batch is held", held=len(entries), error=error.message)
                if time.monotonic() > give_back_s:
                    raise
            else:
                if self._blocked:
                    self._blocked = False
                    self._metrics.blocked.set(0)
                    log.info("the ledger takes entries again")
                return fates
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped, timeout=pause_s):
                    return None
            pause_s = min(2 * pause_s, LAST_RETRY_S)


def _warn(entry: Decision | GateOutcome | ShadowDecision) -> None:
    model_version = "" if isinstance(entry, GateOutcome) else entry.model_version
    log.warning(
        "what differs from the first came after it",
        kind=_kind(entry),
        verdict=Verdict.Name(entry.verdict),
        model_version=model_version,
        **_words(entry),
    )


def _words(entry: Decision | GateOutcome | ShadowDecision) -> dict[str, str]:
    return spans.words(entry.frame_id, entry.line, entry.station)


def _kind(entry: Decision | GateOutcome | ShadowDecision) -> str:
    if isinstance(entry, ShadowDecision):
        return "shadow"
    if isinstance(entry, GateOutcome):
        return "gate outcome"
    return f"revision {entry.revision}" if entry.revision else "decision"
