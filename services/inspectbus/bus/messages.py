"""Bodies on their way: which key and id each kind of message travels under."""

from __future__ import annotations

from inspectbus.api.v1.decision_pb2 import Decision, Verdict
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus.contract import Lane, Message


def frame_message(frame: Frame, lane: Lane = Lane.LIVE) -> Message:
    """For FRAMES, from the frame's own station."""
    return Message(
        body=frame.SerializeToString(),
        key=(frame.line, frame.station),
        source=f"acquisition/{frame.line}/{frame.station}",
        subject=frame.frame_id,
        lane=lane,
        id=frame.frame_id,
    )


def prepared_message(prepared: PreparedFrame, source: str, lane: Lane) -> Message:
    """For PREPARED, on the lane the frame came by."""
    frame = prepared.frame
    return Message(
        body=prepared.SerializeToString(),
        key=(frame.line, frame.station),
        source=source,
        subject=frame.frame_id,
        lane=lane,
        id=f"{frame.frame_id}:prepared",
    )


def decision_message(decision: Decision, source: str) -> Message:
    """For DECISIONS; the key ends in the verdict: ("line-1", "top", "hold")."""
    verdict = Verdict.Name(decision.verdict).removeprefix("VERDICT_").lower()
    return Message(
        body=decision.SerializeToString(),
        key=(decision.line, decision.station, verdict),
        source=source,
        subject=decision.frame_id,
        id=f"{decision.frame_id}:{verdict}",
    )


def outcome_message(outcome: GateOutcome, source: str) -> Message:
    """For GATES."""
    return Message(
        body=outcome.SerializeToString(),
        key=(outcome.line, outcome.station),
        source=source,
        subject=outcome.frame_id,
        id=f"{outcome.frame_id}:gate",
    )
