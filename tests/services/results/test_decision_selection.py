"""Is every wrong filter, page and decision refused with the name of its field?"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.api.v1.decision_pb2 import Decision, Hold, HoldReason, Verdict
from inspectbus.api.v1.results_pb2 import DecisionFilter, ListDecisionsRequest
from inspectbus.errors import BadField
from inspectbus.results.events import read_decision
from inspectbus.results.selection import after, conditions, page_size, page_token

Decide = Callable[..., Decision]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (DecisionFilter(line="Line 1"), "filter.line"),
        (DecisionFilter(station="top.left"), "filter.station"),
        (DecisionFilter(station="#"), "filter.station"),
        (DecisionFilter(run_id="x" * 501), "filter.run_id"),
        (DecisionFilter(part_id="a\0b"), "filter.part_id"),
        (DecisionFilter(lot_id="\0"), "filter.lot_id"),
        (DecisionFilter(model_version="UPPER/ffff"), "filter.model_version"),
        (DecisionFilter(verdicts=[Verdict.VERDICT_HOLD, Verdict.VERDICT_UNSPECIFIED]), "filter.verdicts[1]"),
        (DecisionFilter(verdicts=[17]), "filter.verdicts[0]"),  # type: ignore[list-item]  # what a newer client may send
        (DecisionFilter(since=Timestamp(seconds=1 << 40)), "filter.since"),
        (DecisionFilter(until=Timestamp(nanos=-1)), "filter.until"),
        (DecisionFilter(since=Timestamp(seconds=9), until=Timestamp(seconds=9)), "filter.until"),
        (DecisionFilter(since=Timestamp(seconds=9, nanos=5), until=Timestamp(seconds=9, nanos=4)), "filter.until"),
    ],
)
def test_a_wrong_filter_is_refused_by_field(wanted: DecisionFilter, field: str) -> None:
    with pytest.raises(BadField) as refused:
        conditions(wanted)
    assert refused.value.field == field


def test_page_sizes_have_a_default_and_a_limit() -> None:
    assert page_size(ListDecisionsRequest()) == 100
    assert page_size(ListDecisionsRequest(page_size=1000)) == 1000
    with pytest.raises(BadField) as refused:
        page_size(ListDecisionsRequest(page_size=1001))
    assert refused.value.field == "page_size"


def test_a_page_token_leads_on_and_only_for_its_own_filter() -> None:
    wanted = DecisionFilter(line="line-1")
    token = page_token(4711, wanted)

    assert after(ListDecisionsRequest(filter=wanted, page_token=token)) == 4711
    assert after(ListDecisionsRequest(filter=wanted)) == 0
    with pytest.raises(BadField) as refused:
        after(ListDecisionsRequest(filter=DecisionFilter(line="line-2"), page_token=token))
    assert refused.value.field == "page_token"


def test_an_invented_or_changed_page_token_is_refused() -> None:
    wanted = DecisionFilter()
    token = page_token(4711, wanted)
    flipped = [token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :] for i in range(len(token) - 2)]
    for bad in [*flipped, token[:-4], token + "AAAA", "4711", "ß", "====", "\n", token + "\n"]:
        with pytest.raises(BadField) as refused:
            after(ListDecisionsRequest(page_token=bad))
        assert refused.value.field == "page_token"


def test_a_valid_decision_is_read_with_its_id_in_canonical_form(decide: Decide) -> None:
    frame_id = str(uuid.uuid4())
    told = decide(frame_id=frame_id.upper(), source_item="Zelle\u00a01\n.png")

    read = read_decision(told.SerializeToString())

    told.frame_id = frame_id
    assert read == told


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"frame_id": "7"}, "frame_id"),
        ({"line": ""}, "line"),
        ({"station": "top.left"}, "station"),
        ({"part_id": "\0"}, "part_id"),
        ({"lot_id": "x" * 501}, "lot_id"),
        ({"verdict": Verdict.VERDICT_UNSPECIFIED}, "verdict"),
        ({"verdict": 9}, "verdict"),
        ({"verdict": Verdict.VERDICT_HOLD}, "hold.reason"),
        ({"verdict": Verdict.VERDICT_HOLD, "hold": Hold(detail="why?")}, "hold.reason"),
        ({"hold": Hold(reason=HoldReason.HOLD_REASON_ERROR)}, "hold"),
        ({"score": None}, "score"),
        ({"threshold": None}, "threshold"),
        ({"score": float("nan")}, "score"),
        ({"score": 1.01}, "score"),
        ({"threshold": float("inf")}, "threshold"),
        ({"threshold": 0.5, "qualified_below": 0.6}, "qualified_below"),
        ({"qualified_below": float("nan")}, "qualified_below"),
        ({"model": ""}, "model"),
        ({"model_version": ""}, "model_version"),
        ({"truth": 5}, "truth"),
    ],
)
def test_a_malformed_decision_is_refused_by_field(decide: Decide, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as refused:
        read_decision(decide(**fields).SerializeToString())
    assert refused.value.field == field


def test_a_body_that_is_no_message_is_refused() -> None:
    with pytest.raises(BadField) as refused:
        read_decision(b"\xff\xff not a decision")
    assert refused.value.field == "body"
