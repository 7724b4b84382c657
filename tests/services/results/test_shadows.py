"""What shadows said is kept beside the ledger, once, and compared with what was decided."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, func, select

from inspectbus.api.v1 import results_pb2, results_pb2_grpc
from inspectbus.api.v1.decision_pb2 import (
    HOLD_REASON_ERROR,
    VERDICT_DEFECTIVE,
    VERDICT_HOLD,
    VERDICT_QUALIFIED,
    Decision,
    Hold,
)
from inspectbus.api.v1.frame_pb2 import LABEL_DEFECTIVE
from inspectbus.api.v1.results_pb2 import GetAgreementRequest
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.bus import Bus, Delivery, Message, topics
from inspectbus.bus.embedded import EmbeddedBus, Limits
from inspectbus.bus.messages import decision_message, shadow_message
from inspectbus.results.first_wins import Fate
from inspectbus.results.ledger import Ledger
from inspectbus.results.service import open_service
from inspectbus.results.settings import ResultsSettings
from inspectbus.results.shadows import Place, ShadowBook
from inspectbus.results.sweeper import Sweeper
from inspectbus.results.tables import shadows
from inspectbus.stores.database import reading
from inspectbus.stores.frames import FrameStore

PATIENCE_S = 10
Decide = Callable[..., Decision]
Stub = results_pb2_grpc.ResultsServiceStub


def shadow_of(decision: Decision, **fields: Any) -> ShadowDecision:
    usual: dict[str, Any] = {
        "frame_id": decision.frame_id,
        "line": decision.line,
        "station": decision.station,
        "model": "elpv",
        "model_version": "5ad05ad05ad05ad0",
        "verdict": VERDICT_QUALIFIED,
        "score": 0.25,
        "threshold": 0.5,
    }
    return ShadowDecision(**(usual | fields))


@pytest.fixture
def book(engine: Engine) -> ShadowBook:
    return ShadowBook(engine)


def rows(engine: Engine) -> int:
    with reading(engine) as connection:
        return int(connection.execute(select(func.count()).select_from(shadows)).scalar_one())


def test_the_first_of_a_frame_and_version_stays_and_repeats_are_counted(
    book: ShadowBook, engine: Engine, decide: Decide
) -> None:
    said = shadow_of(decide())
    other_version = shadow_of(decide(frame_id=said.frame_id), model_version="0bad0bad0bad0bad")
    assert book.record([said, said, other_version]) == [Fate.RECORDED, Fate.DUPLICATE, Fate.RECORDED]
    again = ShadowDecision()
    again.CopyFrom(said)
    again.inferred_at.GetCurrentTime()
    again.score = 0.2501
    differing = shadow_of(decide(frame_id=said.frame_id), verdict=VERDICT_DEFECTIVE)
    assert book.record([again, differing]) == [Fate.DUPLICATE, Fate.CONFLICT]
    with reading(engine) as connection:
        found = connection.execute(select(shadows).where(shadows.c.model_version == said.model_version)).one()
    assert ShadowDecision.FromString(found.shadow) == said
    assert (found.duplicates, found.conflicts) == (2, 1)
    assert book.record([]) == []


def test_agreement_counts_each_pair_of_verdicts_by_station_and_versions(
    book: ShadowBook, ledger: Ledger, decide: Decide
) -> None:
    verdicts = (VERDICT_QUALIFIED, VERDICT_DEFECTIVE)
    expected: Counter[tuple[str, str, int, int]] = Counter()
    number = 0
    for station in ("top", "side"):
        for version in ("aaaa", "bbbb"):
            for decided in verdicts:
                for said in verdicts:
                    number += 1
                    for _ in range(number % 3 + 1):
                        decision = decide(station=station, model_version=version, verdict=decided)
                        ledger.record([decision])
                        book.record([shadow_of(decision, verdict=said)])
                        expected[station, version, decided, said] += 1
    # what was not decided, not by a model, or by another model counts nowhere
    undecided = decide()
    held = decide(verdict=VERDICT_HOLD, hold=Hold(reason=HOLD_REASON_ERROR, detail="no"), model_version="")
    another = decide(model="another")
    ledger.record([held, another])
    book.record([shadow_of(each) for each in (undecided, held, another)])

    found = book.agreement([])

    counted = Counter(
        {
            (row.station, row.model_version, pair.decided, pair.shadow): pair.frames
            for row in found
            for pair in row.pairs
        }
    )
    assert counted == expected
    assert [(row.line, row.station, row.model_version, row.shadow_version) for row in found] == [
        ("line-1", station, version, "5ad05ad05ad05ad0") for station in ("side", "top") for version in ("aaaa", "bbbb")
    ]
    for row in found:
        of_row = {key: count for key, count in expected.items() if key[:2] == (row.station, row.model_version)}
        assert row.frames == sum(of_row.values())
        assert row.agreeing == sum(count for key, count in of_row.items() if key[2] == key[3])


def test_differing_frames_come_in_pages_and_each_once(book: ShadowBook, ledger: Ledger, decide: Decide) -> None:
    decisions = [decide(verdict=VERDICT_DEFECTIVE if number % 2 else VERDICT_QUALIFIED) for number in range(11)]
    ledger.record(decisions)
    # one moment for all of them: what is behind what must be told by more than time
    book.record([shadow_of(each) for each in decisions])
    seen, after = [], Place()
    while page := book.differences([], after, 2):
        seen += [difference.frame_id for _, difference in page]
        after = page[-1][0]
    assert sorted(seen) == sorted(each.frame_id for each in decisions if each.verdict == VERDICT_DEFECTIVE)


def test_what_is_old_enough_is_forgotten_and_the_rest_stays(
    book: ShadowBook, engine: Engine, ledger: Ledger, decide: Decide, tmp_path: Path
) -> None:
    book.record([shadow_of(decide()) for _ in range(7)])
    until_us = time.time_ns() // 1000 + 1
    while time.time_ns() // 1000 <= until_us:
        pass
    kept = shadow_of(decide())
    book.record([kept])
    assert list(book.forget(until_us, 3)) == [3, 3, 1]
    assert rows(engine) == 1
    # and the sweeper does so with each pass
    store = FrameStore(f"file://{tmp_path}/frames")
    how: dict[str, Any] = {"grace_s": 0.0, "period_s": 3600.0, "batch_size": 3}
    Sweeper(engine, book, store, CollectorRegistry(), **how, shadows_kept_s=3600.0).forget_shadows()
    assert rows(engine) == 1
    Sweeper(engine, book, store, CollectorRegistry(), **how, shadows_kept_s=1e-6).forget_shadows()
    assert rows(engine) == 0


@pytest.fixture
def bus() -> Iterator[Bus]:
    with EmbeddedBus(str(uuid.uuid4()), Limits(retry_delay_s=0.01)) as bus:
        yield bus


@pytest.fixture
def stub(bus: Bus, tmp_path: Path) -> Iterator[Stub]:
    settings = ResultsSettings(port=0, metrics_port=0, state_dir=tmp_path, drain_s=5)
    with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
        yield Stub(channel)


def field_of(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a failed call is both error and call
    assert status is not None
    bad = error_details_pb2.BadRequest()
    return next((bad.field_violations[0].field for detail in status.details if detail.Unpack(bad)), "")


def test_the_report_is_asked_for_by_grpc_page_after_page(stub: Stub, bus: Bus, decide: Decide) -> None:
    # given frames that both judged; on five of them they differ
    decisions = [decide(score=0.1) for _ in range(8)]
    for number, decision in enumerate(decisions):
        bus.publish(topics.DECISIONS, decision_message(decision, "test")).result(PATIENCE_S)
        said = shadow_of(decision, verdict=VERDICT_DEFECTIVE if number < 5 else VERDICT_QUALIFIED, score=0.75)
        for _ in range(2):  # a repeat changes nothing
            bus.publish(topics.SHADOWS, shadow_message(said, "test")).result(PATIENCE_S)
    labels = results_pb2.SubmitLabelsRequest(by="somebody")
    labels.labels.add(frame_id=decisions[0].frame_id, label=LABEL_DEFECTIVE)
    stub.SubmitLabels(labels, timeout=PATIENCE_S)
    # when
    request = GetAgreementRequest(model="elpv", page_size=2)
    pages = [stub.GetAgreement(request, timeout=PATIENCE_S)]
    while token := pages[-1].next_page_token:
        request.page_token = token
        pages.append(stub.GetAgreement(request, timeout=PATIENCE_S))
    # then
    (row,) = pages[0].rows
    assert (row.line, row.station, row.frames, row.agreeing) == ("line-1", "top", 8, 3)
    assert (row.model_version, row.shadow_version) == ("0f3a0f3a0f3a0f3a", "5ad05ad05ad05ad0")
    assert [len(page.disagreements) for page in pages] == [2, 2, 1]
    assert not pages[1].rows
    differences = [each for page in pages for each in page.disagreements]
    assert [each.frame_id for each in differences] == [each.frame_id for each in decisions[:5]]
    first = differences[0]
    assert (first.decided, first.shadow, first.truth) == (VERDICT_QUALIFIED, VERDICT_DEFECTIVE, LABEL_DEFECTIVE)
    assert (first.decided_score, first.shadow_score) == (0.1, 0.75)
    assert first.recorded_at.seconds > 0
    # and nothing of it is in the ledger
    assert len(stub.ListDecisions(results_pb2.ListDecisionsRequest(), timeout=PATIENCE_S).records) == 8
    record = stub.GetDecision(results_pb2.GetDecisionRequest(frame_id=decisions[0].frame_id), timeout=PATIENCE_S).record
    assert (record.decision.verdict, record.duplicates, record.conflicts) == (VERDICT_QUALIFIED, 0, 0)


@pytest.mark.parametrize(
    ("asked", "frames"),
    [
        ({}, 3),
        ({"station": "top"}, 2),
        ({"line": "line-2"}, 0),
        ({"model_version": "0f3a0f3a0f3a0f3a"}, 3),
        ({"model_version": "ffff"}, 0),
        ({"shadow_version": "5ad05ad05ad05ad0"}, 2),
        ({"model": "another"}, 0),
    ],
)
def test_the_report_is_of_what_was_asked_for(
    stub: Stub, bus: Bus, decide: Decide, asked: dict[str, Any], frames: int
) -> None:
    for station, version in (("top", "5ad05ad05ad05ad0"), ("top", "eeee"), ("side", "5ad05ad05ad05ad0")):
        decision = decide(station=station)
        bus.publish(topics.DECISIONS, decision_message(decision, "test")).result(PATIENCE_S)
        said = shadow_of(decision, model_version=version)
        bus.publish(topics.SHADOWS, shadow_message(said, "test")).result(PATIENCE_S)
    answer = stub.GetAgreement(GetAgreementRequest(**({"model": "elpv"} | asked)), timeout=PATIENCE_S)
    assert sum(row.frames for row in answer.rows) == frames


def test_the_report_knows_a_period(stub: Stub, bus: Bus, decide: Decide) -> None:
    decision = decide()
    bus.publish(topics.DECISIONS, decision_message(decision, "test")).result(PATIENCE_S)
    bus.publish(topics.SHADOWS, shadow_message(shadow_of(decision), "test")).result(PATIENCE_S)
    now_s = int(time.time())
    for since_s, until_s, frames in ((now_s - 60, now_s + 60, 1), (now_s + 60, now_s + 120, 0), (1, now_s - 60, 0)):
        request = GetAgreementRequest(model="elpv")
        request.since.seconds, request.until.seconds = since_s, until_s
        answer = stub.GetAgreement(request, timeout=PATIENCE_S)
        assert sum(row.frames for row in answer.rows) == frames


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "model"),
        ({"model": "No Name"}, "model"),
        ({"model": "elpv", "line": "Line 1"}, "line"),
        ({"model": "elpv", "station": "?"}, "station"),
        ({"model": "elpv", "shadow_version": "\0"}, "shadow_version"),
        ({"model": "elpv", "page_size": 1001}, "page_size"),
        ({"model": "elpv", "page_token": "nonsense"}, "page_token"),
        ({"model": "elpv", "since": {"seconds": 20}, "until": {"seconds": 10}}, "until"),
        ({"model": "elpv", "since": {"seconds": 2**60}}, "since"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused_by_its_field(stub: Stub, asked: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetAgreement(GetAgreementRequest(**asked), timeout=PATIENCE_S)
    assert (caught.value.code(), field_of(caught.value)) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_a_page_token_answers_no_other_question(stub: Stub, bus: Bus, decide: Decide) -> None:
    for _ in range(2):
        decision = decide()
        bus.publish(topics.DECISIONS, decision_message(decision, "test")).result(PATIENCE_S)
        said = shadow_of(decision, verdict=VERDICT_DEFECTIVE)
        bus.publish(topics.SHADOWS, shadow_message(said, "test")).result(PATIENCE_S)
    request = GetAgreementRequest(model="elpv", page_size=1)
    request.page_token = stub.GetAgreement(request, timeout=PATIENCE_S).next_page_token
    request.station = "side"
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetAgreement(request, timeout=PATIENCE_S)
    assert field_of(caught.value) == "page_token"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"frame_id": "4711"},
        {"line": "Line 1"},
        {"model_version": ""},
        {"verdict": 0},
        {"score": float("nan")},
        {"threshold": 1.5},
    ],
)
def test_what_no_shadow_can_have_said_is_parked_and_leaves_the_others_alone(
    stub: Stub, bus: Bus, decide: Decide, spoilt: dict[str, Any]
) -> None:
    parked: list[Delivery] = []
    bus.subscribe(topics.DEAD, "dead", parked.append)
    decision = decide()
    good, bad = shadow_of(decision), shadow_of(decision, **spoilt)
    message = shadow_message(bad, "test")
    sent = bus.publish(topics.SHADOWS, Message(message.body, (decision.line, decision.station), "test"))
    bus.publish(topics.SHADOWS, shadow_message(good, "test")).result(PATIENCE_S)
    bus.publish(topics.DECISIONS, decision_message(decision, "test")).result(PATIENCE_S)
    until_s = time.monotonic() + PATIENCE_S
    while not parked and time.monotonic() < until_s:
        pass
    assert parked[0].message.body == message.body
    parked[0].done()
    sent.result(PATIENCE_S)
    answer = stub.GetAgreement(GetAgreementRequest(model="elpv"), timeout=PATIENCE_S)
    assert sum(row.frames for row in answer.rows) == 1
