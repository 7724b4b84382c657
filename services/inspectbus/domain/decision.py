"""A decision: everything its frame is known by, and the verdict. HOLD always says why."""

from __future__ import annotations

from inspectbus.api.v1.decision_pb2 import VERDICT_HOLD, Decision, Hold, HoldReason
from inspectbus.api.v1.frame_pb2 import Frame

MAX_DETAIL_CHARS = 500
"""A sentence for a person; an error that quotes its input must not fill the ledger."""


def decision_of(frame: Frame) -> Decision:
    """A decision that knows its frame and has no verdict yet."""
    decision = Decision(
        frame_id=frame.frame_id,
        line=frame.line,
        station=frame.station,
        run_id=frame.run_id,
        source_item=frame.source_item,
        sequence=frame.sequence,
        part_id=frame.part_id,
        lot_id=frame.lot_id,
        product=frame.product,
        recipe=frame.recipe,
        truth=frame.truth,
        revision=frame.revision,
        image_key=frame.claim.key,
    )
    if frame.HasField("captured_at"):
        decision.timings.captured_at.CopyFrom(frame.captured_at)
    return decision


def hold_decision(
    frame: Frame,
    reason: HoldReason.ValueType,
    detail: str,
    *,
    measure: str = "",
    value: float = 0.0,
    limit: float = 0.0,
) -> Decision:
    """HOLD for this frame, decided now. The last three are for UNUSABLE_IMAGE; timings and evidence the caller adds."""
    decision = decision_of(frame)
    decision.verdict = VERDICT_HOLD
    decision.hold.CopyFrom(
        Hold(reason=reason, detail=detail[:MAX_DETAIL_CHARS], measure=measure, value=value, limit=limit)
    )
    decision.timings.decided_at.GetCurrentTime()
    return decision
