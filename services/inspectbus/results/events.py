"""The bus side: what arrives is read and checked, and goes to its recorder. The rest is parked.

inspectbus.decisions ─ read_decision ─┐
inspectbus.gates ───── read_outcome ──┴─> recorder
inspectbus.shadows ─── read_shadow ─────> recorder of shadows
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from math import isfinite

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.api.v1.decision_pb2 import HOLD_REASON_ERROR, Decision, HoldReason, Verdict
from inspectbus.api.v1.frame_pb2 import Frame, Label
from inspectbus.api.v1.gate_pb2 import GATE_REASON_DECISION, GateAction, GateOutcome, GateReason
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.bus import Bus, Delivery, Message, Subscription, topics
from inspectbus.bus.messages import decision_message
from inspectbus.domain.decision import hold_decision
from inspectbus.domain.frame import checked_frame_id
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField, InspectBusError
from inspectbus.results.ledger import Entry
from inspectbus.results.recorder import E, Recorder
from inspectbus.results.selection import checked_text

SOURCE = "results"
MAX_REVISION = 1000
"""A revision is a replay that a person asked for; all of a frame's are told together."""


@contextmanager
def recording(
    bus: Bus, recorder: Recorder[Entry], shadows: Recorder[ShadowDecision], *, prefetch: int, drain_s: float
) -> Iterator[None]:
    """Hands every decision, gate outcome and shadow of the bus to its recorder until left.

    `prefetch` is for each. Leaving waits at most drain_s for those in hand to be recorded.
    """

    def take(recorder: Recorder[E], read: Callable[[bytes], E], delivery: Delivery) -> None:
        # Raising BadField parks the delivery: no second attempt makes it readable.
        entry = read(delivery.message.body)
        key = delivery.message.key
        # The broker knows who may send under a key; what stands in a body is anybody's word.
        if key[:2] != (entry.line, entry.station):
            raise BadField(f"what is said of {entry.line}/{entry.station} came as {'/'.join(key)}", field="station")
        recorder.take(delivery, entry)

    with ExitStack() as house:
        left_at = time.monotonic()

        def close(subscription: Subscription) -> None:
            subscription.close(max(0.0, left_at + drain_s - time.monotonic()))

        decisions = bus.subscribe(
            topics.DECISIONS,
            "results",
            partial(take, recorder, read_decision),
            prefetch=prefetch,
            epitaph=partial(_epitaph, bus),
        )
        house.callback(close, decisions)
        outcomes = bus.subscribe(topics.GATES, "outcomes", partial(take, recorder, read_outcome), prefetch=prefetch)
        house.callback(close, outcomes)
        said = bus.subscribe(topics.SHADOWS, "shadows", partial(take, shadows, read_shadow), prefetch=prefetch)
        house.callback(close, said)
        try:
            yield
        finally:
            left_at = time.monotonic()


def _epitaph(bus: Bus, message: Message, error: BaseException) -> list[Future[None]]:
    """A decision that cannot be recorded leaves its frame undecided: HOLD(ERROR) takes its place, once."""
    if message.source == SOURCE:
        return []
    try:
        said = Decision.FromString(message.body)
        frame = Frame(
            frame_id=checked_frame_id(said.frame_id),
            line=checked_name(said.line, "line"),
            station=checked_name(said.station, "station"),
            sequence=said.sequence,
            revision=min(said.revision, MAX_REVISION),
        )
    except (DecodeError, BadField):
        return []  # it names no frame
    words = error.message if isinstance(error, InspectBusError) else f"{type(error).__name__}: {error}"
    hold = hold_decision(frame, HOLD_REASON_ERROR, f"its decision could not be recorded: {words}".replace("\0", " "))
    return [bus.publish(topics.DECISIONS, decision_message(hold, SOURCE))]


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
    if decision.revision > MAX_REVISION:
        raise BadField(f"{decision.revision} is beyond the {MAX_REVISION} revisions of a frame", field="revision")
    for moment, at in decision.timings.ListFields():
        _check_moment(at, f"timings.{moment.name}")
    for field in ("score", "threshold", "qualified_below"):
        # Spelt so that a NaN, which compares as False, is refused too.
        if not 0 <= getattr(decision, field) <= 1:
            raise BadField(f"{field} is 0 to 1, not {getattr(decision, field)}", field=field)
    if decision.qualified_below > decision.threshold:
        raise BadField(
            f"qualified_below is {decision.qualified_below}, above the threshold {decision.threshold}",
            field="qualified_below",
        )
    return decision


def read_outcome(body: bytes) -> GateOutcome:
    """The outcome in a message's body, its frame id in canonical form. Raises BadField naming the field at fault."""
    try:
        outcome = GateOutcome.FromString(body)
    except DecodeError as error:
        raise BadField(f"not a GateOutcome: {error}", field="body") from None
    outcome.frame_id = checked_frame_id(outcome.frame_id)
    checked_name(outcome.line, "line")
    checked_name(outcome.station, "station")
    for field in ("run_id", "part_id"):
        checked_text(getattr(outcome, field), field)
    for field, words in (("action", GateAction), ("reason", GateReason)):
        if getattr(outcome, field) not in words.values() or not getattr(outcome, field):
            raise BadField(f"{getattr(outcome, field)} is no {field} of a gate", field=field)
    if outcome.verdict not in Verdict.values():
        raise BadField(f"{outcome.verdict} is no verdict", field="verdict")
    if outcome.reason == GATE_REASON_DECISION and not outcome.verdict:
        raise BadField("a gate that follows a decision says its verdict", field="verdict")
    if not outcome.HasField("at"):
        raise BadField("an outcome says when it was", field="at")
    _check_moment(outcome.at, "at")
    if not (isfinite(outcome.waited_s) and outcome.waited_s >= 0):
        raise BadField(f"a wait is 0 s or more, not {outcome.waited_s}", field="waited_s")
    return outcome


def read_shadow(body: bytes) -> ShadowDecision:
    """What a shadow said, its frame id in canonical form. Raises BadField naming the field at fault."""
    try:
        said = ShadowDecision.FromString(body)
    except DecodeError as error:
        raise BadField(f"not a ShadowDecision: {error}", field="body") from None
    said.frame_id = checked_frame_id(said.frame_id)
    for field in ("line", "station", "model"):
        checked_name(getattr(said, field), field)
    if not checked_text(said.model_version, "model_version"):
        raise BadField("a shadow names its model_version: who judged?", field="model_version")
    if said.verdict not in Verdict.values() or not said.verdict:
        raise BadField(f"{said.verdict} is no verdict", field="verdict")
    for field in ("score", "threshold", "qualified_below"):
        # As in a decision.
        if not 0 <= getattr(said, field) <= 1:
            raise BadField(f"{field} is 0 to 1, not {getattr(said, field)}", field=field)
    _check_moment(said.inferred_at, "inferred_at")
    return said


def _check_moment(at: Timestamp, field: str) -> None:
    try:
        at.ToMicroseconds()
    except ValueError:
        raise BadField(f"{at.seconds} s and {at.nanos} ns are no moment", field=field) from None


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
