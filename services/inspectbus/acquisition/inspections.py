"""Inspections: senders that wait for the decision on their frame.

    Inspect ─> publish ─> bus ─ accepted ──┐
                                           ├─> both known: the answer
    DECISIONS ── news, by frame id ────────┘
    ResultsService ── asked when no news came, and for the record of an id the sender chose

News is fast and may be lost; the ledger is slow and is not. So news usually answers, and no inspection hangs on it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import decision_pb2, results_pb2, results_pb2_grpc
from inspectbus.bus import Message, handling
from inspectbus.channels import open_channel
from inspectbus.errors import BusClosed, QueueFull, TooLate
from inspectbus.runtime.tracing import carried

log = structlog.get_logger(__name__)

NEWS_GRACE_S = 0.1
"""How long news may lag behind acceptance before the ledger is asked: on one machine they come together."""
ASK_PERIOD_S = 1.0
"""Between two questions to the ledger about one frame."""
RECORD_LAG_S = 0.05
"""Between two of them when the frame is decided and its record is all that is missing."""
ASK_PATIENCE_S = 2.0
"""For one answer of the ledger."""

STOPPING = "the service is stopping; send the image again"

Inspection = Future[decision_pb2.Decision]


@dataclass(eq=False)
class _Case:
    """One frame, and who waits for its decision."""

    frame_id: str
    check_record: bool
    """The sender chose the id and may have used it before: then the record counts and not the latest news."""
    sent_before: bool
    """The sender knows that it did: news may be of this try while another is recorded, so only the record answers."""
    waiting: dict[Inspection, float] = field(default_factory=dict)
    """Each with the moment it gives up, monotonic."""
    decision: decision_pb2.Decision | None = None
    accepted: bool = False
    ask_at_s: float = inf
    """When the ledger is to be asked, monotonic."""

    @property
    def ready(self) -> bool:
        return self.accepted and self.decision is not None and not self.check_record


class Inspections:
    """Thread-safe. A thread of its own keeps the deadlines; leaving fails whoever still waits with BusClosed."""

    def __init__(self, settings: AcquisitionSettings, metrics: AcquisitionMetrics) -> None:
        self._results_address, self._access = settings.results_address, settings.access
        self._limit = settings.max_inspections
        self._metrics = metrics
        self._changed = threading.Condition()
        self._cases: dict[str, _Case] = {}
        self._waiting = 0
        self._last_moment_s = inf
        self._closed = False
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._keep, name="inspections", daemon=True)

    def __enter__(self) -> Inspections:
        channel = carried(self._stack.enter_context(open_channel(self._results_address, self._access)))
        self._ledger = results_pb2_grpc.ResultsServiceStub(channel)
        self._thread.start()
        self._stack.callback(self._end_thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(
        self,
        frame_id: str,
        publish: Callable[[], Future[None]],
        patience_s: float,
        *,
        own_id: bool,
        sent_before: bool = False,
    ) -> Inspection:
        """Publishes the frame and gives the future of its decision, which fails with TooLate after patience_s.

        A frame that is being inspected is not published again: both senders get the one answer. Raises QueueFull when
        too many inspections wait, BusClosed when the service stops. Cancelling the future gives its place back.

        One that was `sent_before` is published only when nothing is recorded of it, which the ledger is asked first.
        """
        inspection = Inspection()
        if sent_before and (recorded := self._recorded(frame_id, patience_s)) is not None:
            self._metrics.inspections.labels("decided").inc()
            inspection.set_result(recorded)
            return inspection
        with self._changed:
            if self._last_moment_s != inf:
                raise BusClosed(STOPPING)
            if self._waiting >= self._limit:
                raise QueueFull(f"{self._waiting} inspections wait for their decisions already; try again later")
            case = self._cases.get(frame_id)
            first = case is None
            if case is None:
                case = self._cases[frame_id] = _Case(frame_id, own_id, sent_before)
            elif sent_before:
                case.check_record = case.sent_before = True
            case.waiting[inspection] = time.monotonic() + patience_s
            self._waiting += 1
            self._metrics.inspections_waiting.set(self._waiting)
            self._changed.notify()
        inspection.add_done_callback(lambda done: self._leave(case, done))
        if first:
            try:
                accepted = publish()
            except Exception as error:  # whatever it is, those who have joined meanwhile must hear of it
                self._fail(case, error)
            else:
                accepted.add_done_callback(lambda done: self._on_accepted(case, done))
        return inspection

    def finish_within(self, patience_s: float) -> None:
        """Takes no more, and lets those who wait do so for patience_s at most."""
        with self._changed:
            self._last_moment_s = min(self._last_moment_s, time.monotonic() + patience_s)
            self._changed.notify()

    def hear(self, message: Message) -> None:
        """News of a decision."""
        with self._changed:
            if not self._cases:
                return
        try:
            decision = decision_pb2.Decision.FromString(message.body)
        except DecodeError:
            log.warning("news that is no decision", **handling.words(message))
            return
        with self._changed:
            case = self._cases.get(decision.frame_id)
            if case is None:
                return
            if case.decision is None:
                case.decision = decision
            if case.sent_before and case.accepted:
                case.ask_at_s = time.monotonic()
                self._changed.notify()
        self._answer(case)

    def _recorded(self, frame_id: str, patience_s: float) -> decision_pb2.Decision | None:
        """What the ledger has of the frame; None when that is nothing, or the ledger is away."""
        request = results_pb2.GetDecisionRequest(frame_id=frame_id)
        try:
            return self._ledger.GetDecision(request, timeout=min(ASK_PATIENCE_S, patience_s)).record.decision
        except grpc.RpcError:
            return None

    def _on_accepted(self, case: _Case, future: Future[None]) -> None:
        error = future.exception()
        if error is not None:
            self._fail(case, error)
            return
        with self._changed:
            case.accepted = True
            case.ask_at_s = time.monotonic() + (0.0 if case.check_record else NEWS_GRACE_S)
            self._changed.notify()
        self._answer(case)

    def _on_record(self, case: _Case, call: grpc.Future[results_pb2.GetDecisionResponse]) -> None:
        """The ledger answered, or did not."""
        decision = None
        try:
            decision = call.result().record.decision
        except grpc.RpcError as error:
            if not self._closed and error.code() != grpc.StatusCode.NOT_FOUND:
                log.warning("the ledger does not answer", address=self._results_address, code=error.code().name)
        except grpc.FutureCancelledError:
            return
        with self._changed:
            if decision is not None:
                case.decision = decision
            case.check_record = case.sent_before and decision is None
            decided = case.check_record and case.decision is not None
            case.ask_at_s = time.monotonic() + (RECORD_LAG_S if decided else ASK_PERIOD_S)
            self._changed.notify()
        self._answer(case)

    def _answer(self, case: _Case) -> None:
        """Answers everybody who waits, once all is known."""
        with self._changed:
            if not case.ready:
                return
            waiting = self._close_case(case)
        for inspection in waiting:
            # It may have been cancelled, or answered on another thread, this very moment.
            with suppress(InvalidStateError):
                inspection.set_result(cast(decision_pb2.Decision, case.decision))

    def _fail(self, case: _Case, error: BaseException) -> None:
        with self._changed:
            waiting = self._close_case(case)
        for inspection in waiting:
            with suppress(InvalidStateError):
                inspection.set_exception(error)

    def _close_case(self, case: _Case) -> list[Inspection]:
        """Who waits; whoever comes later begins a new case. Lock held."""
        if self._cases.get(case.frame_id) is case:
            del self._cases[case.frame_id]
        return list(case.waiting)

    def _leave(self, case: _Case, inspection: Inspection) -> None:
        with self._changed:
            del case.waiting[inspection]
            self._waiting -= 1
            self._metrics.inspections_waiting.set(self._waiting)
            if not case.waiting:
                self._close_case(case)
        if inspection.cancelled():
            outcome = "cancelled"
        else:
            error = inspection.exception()
            outcome = "decided" if error is None else type(error).__name__
        self._metrics.inspections.labels(outcome).inc()

    def _keep(self) -> None:
        """Gives up for those whose patience is over, and asks the ledger where news is missing."""
        while True:
            with self._changed:
                if not self._closed:
                    self._changed.wait(self._pause_s())
                if self._closed:
                    return
                now_s = time.monotonic()
                late = [
                    (case, inspection)
                    for case in self._cases.values()
                    for inspection, until_s in case.waiting.items()
                    if min(until_s, self._last_moment_s) <= now_s
                ]
                stopping = self._last_moment_s <= now_s
                asked = [case for case in self._cases.values() if case.ask_at_s <= now_s]
                for case in asked:
                    case.ask_at_s = inf
            for case, inspection in late:
                late_text = f"no decision on frame {case.frame_id} in time; it is recorded when it falls"
                with suppress(InvalidStateError):
                    inspection.set_exception(BusClosed(STOPPING) if stopping else TooLate(late_text))
            for case in asked:
                request = results_pb2.GetDecisionRequest(frame_id=case.frame_id)
                call = self._ledger.GetDecision.future(request, timeout=ASK_PATIENCE_S)
                call.add_done_callback(partial(self._on_record, case))

    def _pause_s(self) -> float | None:
        """Until the next moment something is to be done; None when nothing is."""
        moments = [min(case.ask_at_s, *case.waiting.values()) for case in self._cases.values()]
        return max(0.0, min(*moments, self._last_moment_s) - time.monotonic()) if moments else None

    def _end_thread(self) -> None:
        self.finish_within(0)
        with self._changed:
            self._closed = True
            cases = list(self._cases.values())
            self._changed.notify_all()
        for case in cases:
            self._fail(case, BusClosed(STOPPING))
        self._thread.join(timeout=5)
