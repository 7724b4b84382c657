"""Does a decision know its frame, and travel under its key?"""

from __future__ import annotations

import uuid

import pytest

from inspectbus.api.v1 import decision_pb2, frame_pb2
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus.contract import Lane
from inspectbus.bus.messages import decision_message, prepared_message
from inspectbus.domain.decision import MAX_DETAIL_CHARS, decision_of, hold_decision
from inspectbus.domain.frame import checked_frame
from inspectbus.errors import BadField

FRAME = frame_pb2.Frame(
    frame_id=str(uuid.UUID(int=7)),
    line="line-1",
    station="top",
    run_id="run-a",
    source_item="cell.png",
    sequence=4,
    part_id="P1",
    lot_id="L1",
    product="cell",
    recipe="cells",
    image=b"bytes",
    truth=frame_pb2.LABEL_DEFECTIVE,
    revision=2,
    claim=frame_pb2.Claim(key="line-1/top/00/a.png"),
)
FRAME.captured_at.FromSeconds(1000)


def test_a_decision_carries_everything_its_frame_is_known_by() -> None:
    decision = decision_of(FRAME)

    shared = {field.name for field in FRAME.DESCRIPTOR.fields} & {field.name for field in decision.DESCRIPTOR.fields}
    assert len(shared) == 12
    for name in shared:
        assert getattr(decision, name) == getattr(FRAME, name)
    assert decision.image_key == FRAME.claim.key
    assert decision.timings.captured_at == FRAME.captured_at
    assert decision.verdict == decision_pb2.VERDICT_UNSPECIFIED


def test_a_frame_without_a_capture_time_leaves_it_unset() -> None:
    assert not decision_of(frame_pb2.Frame()).timings.HasField("captured_at")


def test_a_hold_says_why_and_how_far() -> None:
    decision = hold_decision(
        FRAME, decision_pb2.HOLD_REASON_UNUSABLE_IMAGE, "x" * 9999, measure="glare", value=0.9, limit=0.5
    )

    assert decision.verdict == decision_pb2.VERDICT_HOLD
    assert (decision.hold.measure, decision.hold.value, decision.hold.limit) == ("glare", 0.9, 0.5)
    assert len(decision.hold.detail) == MAX_DETAIL_CHARS
    assert decision.timings.HasField("decided_at")
    assert not decision.HasField("score")


def test_messages_travel_under_line_station_and_verdict() -> None:
    held = decision_message(hold_decision(FRAME, decision_pb2.HOLD_REASON_ERROR, "broken"), "preprocessing")
    prepared = prepared_message(PreparedFrame(frame=FRAME), "preprocessing", Lane.BACKLOG)

    assert held.key == ("line-1", "top", "hold")
    assert prepared.key == ("line-1", "top")
    assert prepared.lane is Lane.BACKLOG
    assert held.subject == prepared.subject == FRAME.frame_id
    assert held.id != prepared.id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("line", "line.1"),
        ("line", ""),
        ("station", "top#"),
        ("station", "*"),
        ("station", "top\n"),
        ("frame_id", "7"),
        ("frame_id", ""),
        ("frame_id", "A" * 32),
    ],
)
def test_a_frame_whose_names_could_break_a_key_is_refused(field: str, value: str) -> None:
    frame = frame_pb2.Frame()
    frame.CopyFrom(FRAME)
    assert checked_frame(frame) is frame

    setattr(frame, field, value)

    with pytest.raises(BadField) as refused:
        checked_frame(frame)
    assert refused.value.field == field
