"""Everything behind acquisition, made small: judges each frame by its bytes and keeps the first decision on each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from prometheus_client import CollectorRegistry

from inspectbus.api.v1 import decision_pb2, frame_pb2, gate_pb2, results_pb2, results_pb2_grpc
from inspectbus.bus import Bus, Delivery, Message
from inspectbus.bus.topics import DECISIONS, FRAMES, GATES
from inspectbus.domain.decision import decision_of
from inspectbus.errors import NotFound
from inspectbus.runtime.rpc_server import rpc_server
from inspectbus.runtime.settings import ServiceSettings

DEFECT = b"defect"
"""A frame whose bytes contain this is DEFECTIVE."""


class SmallLine:
    """Open until closed. `hold` keeps frames unjudged until `let_go`; `tell_news` False records without telling."""

    def __init__(
        self,
        bus: Bus,
        on_record: Callable[[decision_pb2.Decision], None] = lambda _: None,
        on_outcome: Callable[[gate_pb2.GateOutcome], None] = lambda _: None,
    ) -> None:
        self.tell_news = True
        self.frames: list[frame_pb2.Frame] = []
        """Every delivery, repeats too."""
        self.ledger: dict[str, decision_pb2.Decision] = {}
        self.outcomes: list[gate_pb2.GateOutcome] = []
        """Every delivery, repeats too."""
        self.address = ""
        self.may_record = threading.Event()
        """Clear it to keep decisions told but not recorded."""
        self.may_record.set()
        self._bus = bus
        self._on_record = on_record
        self._on_outcome = on_outcome
        self._holding = False
        self._held: list[Delivery] = []
        self._changed = threading.Condition()

    def open(self) -> None:
        self._bus.subscribe(DECISIONS, "results", self._record)
        self._bus.subscribe(GATES, "outcomes", self._take_outcome)
        self._bus.subscribe(FRAMES, "preprocessing", self._take, prefetch=1000)

    def hold(self) -> None:
        with self._changed:
            self._holding = True

    def let_go(self) -> None:
        with self._changed:
            self._holding = False
            held, self._held = self._held, []
        for delivery in held:
            self._judge(delivery)

    def wait_for_frames(self, count: int, patience_s: float = 10.0) -> None:
        """Until so many deliveries have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.frames) >= count, patience_s), f"{len(self.frames)} came"

    def wait_for_outcomes(self, count: int, patience_s: float = 10.0) -> None:
        """Until so many deliveries have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.outcomes) >= count, patience_s), f"{len(self.outcomes)} came"

    def _take_outcome(self, delivery: Delivery) -> None:
        outcome = gate_pb2.GateOutcome.FromString(delivery.message.body)
        self._on_outcome(outcome)
        with self._changed:
            self.outcomes.append(outcome)
            self._changed.notify_all()
        delivery.done()

    def _take(self, delivery: Delivery) -> None:
        with self._changed:
            self.frames.append(frame_pb2.Frame.FromString(delivery.message.body))
            self._changed.notify_all()
            if self._holding:
                self._held.append(delivery)
                return
        self._judge(delivery)

    def _judge(self, delivery: Delivery) -> None:
        frame = frame_pb2.Frame.FromString(delivery.message.body)
        decision = decision_of(frame)
        defective = DEFECT in frame.image
        decision.verdict = decision_pb2.VERDICT_DEFECTIVE if defective else decision_pb2.VERDICT_QUALIFIED
        if self.tell_news:
            key = (frame.line, frame.station, "verdict")
            message = Message(decision.SerializeToString(), key, source="small-line", subject=frame.frame_id)
            delivery.done(after=[self._bus.publish(DECISIONS, message)])
        else:
            self._keep(decision)
            delivery.done()

    def _record(self, delivery: Delivery) -> None:
        assert self.may_record.wait(timeout=30)
        self._keep(decision_pb2.Decision.FromString(delivery.message.body))
        delivery.done()

    def _keep(self, decision: decision_pb2.Decision) -> None:
        self._on_record(decision)
        self.ledger.setdefault(decision.frame_id, decision)


class _LedgerDoor(results_pb2_grpc.ResultsServiceServicer):
    def __init__(self, line: SmallLine) -> None:
        self._line = line

    def GetDecision(
        self, request: results_pb2.GetDecisionRequest, context: grpc.ServicerContext
    ) -> results_pb2.GetDecisionResponse:
        decision = self._line.ledger.get(request.frame_id)
        if decision is None:
            raise NotFound(f"no decision on frame {request.frame_id}", field="frame_id")
        return results_pb2.GetDecisionResponse(record=results_pb2.Record(decision=decision))


@contextmanager
def small_line(bus: Bus) -> Iterator[SmallLine]:
    """A running line with the ledger's door at `address`."""
    line = SmallLine(bus)
    line.open()

    def add(server: grpc.Server) -> None:
        door = _LedgerDoor(line)  # type: ignore[abstract]  # acquisition makes one of its calls
        results_pb2_grpc.add_ResultsServiceServicer_to_server(door, server)

    settings = ServiceSettings(drain_s=1)
    name = "inspectbus.api.v1.ResultsService"
    with rpc_server("results", settings, CollectorRegistry(), {name: add}) as door:
        line.address = door.address
        yield line
