"""Bodies on their way: which key, id and trace each kind of message travels under.

A frame's id is also the id of its trace (W3C Trace Context, see spans.py): whoever follows traces sees one frame's way
through all services without anybody having to hand an id on.
"""

from __future__ import annotations

from google.protobuf.message import Message as ProtoMessage

from inspectbus import spans
from inspectbus.api.v1.decision_pb2 import Decision, Verdict
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.bus.contract import Lane, Message


def frame_message(frame: Frame, lane: Lane = Lane.LIVE) -> Message:
    """For FRAMES, from the frame's own station."""
    source = f"acquisition/{frame.line}/{frame.station}"
    return _message(frame, frame.frame_id, (frame.line, frame.station), source, "", lane)


def prepared_message(prepared: PreparedFrame, source: str, lane: Lane) -> Message:
    """For PREPARED, on the lane the frame came by."""
    frame = prepared.frame
    return _message(prepared, frame.frame_id, (frame.line, frame.station), source, ":prepared", lane)


def decision_message(decision: Decision, source: str) -> Message:
    """For DECISIONS; the key ends in the verdict: ("line-1", "top", "hold")."""
    verdict = Verdict.Name(decision.verdict).removeprefix("VERDICT_").lower()
    what = f":{verdict}" if not decision.revision else f":{verdict}:{decision.revision}"
    return _message(decision, decision.frame_id, (decision.line, decision.station, verdict), source, what)


def outcome_message(outcome: GateOutcome, source: str) -> Message:
    """For GATES."""
    return _message(outcome, outcome.frame_id, (outcome.line, outcome.station), source, ":gate")


def shadow_message(said: ShadowDecision, source: str) -> Message:
    """For SHADOWS. The id repeats for a frame and version, as the record does."""
    what = f":shadow:{said.model_version}"
    return _message(said, said.frame_id, (said.line, said.station), source, what)


def _message(
    body: ProtoMessage, frame_id: str, key: tuple[str, ...], source: str, what: str, lane: Lane = Lane.LIVE
) -> Message:
    return Message(
        body=body.SerializeToString(),
        key=key,
        source=source,
        subject=frame_id,
        lane=lane,
        id=f"{frame_id}{what}",
        headers=spans.traceparent(frame_id),
    )
