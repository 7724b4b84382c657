"""The sweeper: deletes what travelled by claim, once its decision is committed and the longest queue age has passed.

    claims ─ due ─> object deleted ─> row forgotten
    shadows ─ older than `shadows_kept_s` ─> forgotten

The row goes last, so an object is never forgotten before it is gone; two replicas at once find each other's objects
gone already. What fails stays noted, is counted, and is tried again with the next pass.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import structlog
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import Engine

from inspectbus.errors import InspectBusError, NotFound, StorageAway, StorageFull
from inspectbus.results.claims import FIRST, due_claims, forget_claims
from inspectbus.results.shadows import ShadowBook
from inspectbus.stores.database import reading, writing
from inspectbus.stores.frames import FrameStore

log = structlog.get_logger(__name__)

DELETERS = 8
"""Deletions under way at once: a bucket takes tens of milliseconds for each, and a line brings hundreds a second."""
MAX_FAILURES = 16
"""In one pass. So many are no single bad object: the store is away, and the rest of the pass would fail too."""


class Sweeper:
    """One thread from entering to leaving."""

    def __init__(
        self,
        engine: Engine,
        shadows: ShadowBook,
        store: FrameStore,
        registry: CollectorRegistry,
        *,
        grace_s: float,
        period_s: float,
        batch_size: int,
        shadows_kept_s: float,
    ) -> None:
        self._engine = engine
        self._shadows = shadows
        self._shadows_kept_s = shadows_kept_s
        self._store = store
        self._grace_s = grace_s
        self._period_s = period_s
        self._batch_size = batch_size
        self._objects = Counter(
            "inspectbus_claims_swept", "Objects deleted from the frame store after their decision.", registry=registry
        )
        self._bytes = Counter(
            "inspectbus_claims_swept_bytes", "Bytes of the objects deleted from the frame store.", registry=registry
        )
        self._failures = Counter(
            "inspectbus_claim_sweep_failures",
            "Objects that could not be deleted, and passes that failed; tried again later.",
            registry=registry,
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="results-sweeper", daemon=True)

    def __enter__(self) -> Sweeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=30)

    def sweep(self) -> None:
        """One pass over all that is due now. Raises StorageFull, StorageAway when the database fails."""
        until_us = int((time.time() - self._grace_s) * 1e6)
        after, failures = FIRST, 0
        with ThreadPoolExecutor(DELETERS, thread_name_prefix="results-sweeper") as pool:
            while not self._stopped.is_set() and failures < MAX_FAILURES:
                with reading(self._engine) as connection:
                    due = due_claims(connection, until_us, after, self._batch_size)
                if not due:
                    return
                keys = [claim.key for claim in due]
                gone = [key for key, deleted in zip(keys, pool.map(self._delete, keys), strict=True) if deleted]
                if gone:
                    with writing(self._engine) as connection:
                        forget_claims(connection, gone, until_us)
                after, failures = due[-1], failures + len(keys) - len(gone)

    def forget_shadows(self) -> None:
        """Of one pass, too. Raises StorageFull, StorageAway when the database fails."""
        until_us = int((time.time() - self._shadows_kept_s) * 1e6)
        for _ in self._shadows.forget(until_us, self._batch_size):
            if self._stopped.is_set():
                return

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.sweep()
                self.forget_shadows()
            except InspectBusError as error:
                self._failures.inc()
                log.warning("the sweep failed, trying again", error=error.message, pause_s=self._period_s)
            except Exception:  # whatever it is, it must not end the thread and let the store fill up unseen
                self._failures.inc()
                log.exception("the sweep failed, trying again", pause_s=self._period_s)
            self._stopped.wait(self._period_s)

    def _delete(self, key: str) -> bool:
        if self._stopped.is_set():
            return False
        try:
            size = self._store.size(key)
            self._store.delete(key)
        except NotFound:
            return True
        except (StorageFull, StorageAway) as error:
            self._failures.inc()
            log.warning("an object could not be deleted, trying again", key=key, error=error.message)
            return False
        self._objects.inc()
        self._bytes.inc(size)
        return True
