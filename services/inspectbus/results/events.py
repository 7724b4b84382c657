"""The bus side: decisions arrive, are read and checked, and go to the recorder. What is no decision is parked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError

from inspectbus.api.v1.decision_pb2 import Decision, HoldReason, Verdict
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.bus import Bus, Delivery, topics
from inspectbus.domain.frame import checked_frame_id
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField
from inspectbus.results.recorder import Recorder
from inspectbus.results.selection import checked_text


@contextmanager
def recording(bus: Bus, recorder: Recorder, *, prefetch: int, drain_s: float) -> Iterator[None]:
    """Hands every decision of the bus to the recorder until left; leaving waits for those in hand to be recorded."""

    def take(delivery: Delivery) -> None:
        # Raising BadField parks the delivery: no second attempt makes it readable.
        recorder.take(delivery, read_decision(delivery.message.body))

    subscription = bus.subscribe(topics.DECISIONS, "results", take, prefetch=prefetch)
    try:
        yield
    finally:
        subscription.close(drain_s)


def read_decision(body: bytes) -> Decision:
    """The decision in a message's body, its frame id in canonical form. Raises BadField naming the field at fault."""
    try:
        decision = Decision.FromString(body)
    except DecodeError as error:
        raise BadField(f"not a Decision: {error}", field="body") from None
    decision.frame_id = checked_frame_id(decision.frame_id)
    checked_name(decision.line, "line")
    checked_name(decision.station, "station")
    for field in ("run_id", "part_id", "lot_id", "model", "model_version"):
        checked_text(getattr(decision, field), field)
    if decision.truth not in Label.values():
        raise BadField(f"{decision.truth} is no label", field="truth")
    if decision.verdict == Verdict.VERDICT_HOLD:
        _check_hold(decision)
    elif decision.verdict in (Verdict.VERDICT_QUALIFIED, Verdict.VERDICT_DEFECTIVE):
        _check_judged(decision)
    else:
        raise BadField(f"{decision.verdict} is no verdict", field="verdict")
    for field in ("score", "threshold"):
        # Spelt so that a NaN, which compares as False, is refused too.
        if not 0 <= getattr(decision, field) <= 1:
            raise BadField(f"{field} is 0 to 1, not {getattr(decision, field)}", field=field)
    return decision


def _check_hold(decision: Decision) -> None:
    reason = decision.hold.reason
    if reason not in HoldReason.values() or reason == HoldReason.HOLD_REASON_UNSPECIFIED:
        raise BadField(f"a HOLD needs a reason, and {reason} is none", field="hold.reason")


def _check_judged(decision: Decision) -> None:
    if decision.HasField("hold"):
        raise BadField(f"{Verdict.Name(decision.verdict)} cannot have a hold", field="hold")
    for field in ("score", "threshold"):
        if not decision.HasField(field):
            raise BadField(f"{Verdict.Name(decision.verdict)} needs a {field}", field=field)
    for field in ("model", "model_version"):
        if not getattr(decision, field):
            raise BadField(f"{Verdict.Name(decision.verdict)} needs a {field}: who judged?", field=field)
