"""Do the doors of results work: decisions in by the bus, questions and labels by gRPC?"""

from __future__ import annotations

import sqlite3
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import Pool

from inspectbus.api.v1 import results_pb2, results_pb2_grpc
from inspectbus.api.v1.decision_pb2 import Decision, Hold, HoldReason, Verdict
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.api.v1.gate_pb2 import GateAction, GateOutcome, GateReason
from inspectbus.bus import Bus, Delivery, Message, topics
from inspectbus.bus.embedded import EmbeddedBus, Limits
from inspectbus.bus.messages import decision_message, outcome_message
from inspectbus.results import recorder
from inspectbus.results.service import open_service
from inspectbus.results.settings import ResultsSettings
from inspectbus.runtime.rpc_server import Door

Decide = Callable[..., Decision]
Act = Callable[..., GateOutcome]
Publish = Callable[[Decision], "Future[None]"]
Stub = results_pb2_grpc.ResultsServiceStub

PATIENCE_S = 10


@pytest.fixture
def bus() -> Iterator[Bus]:
    # Impatient, so that a test soon knows what the bus makes of attempts that fail.
    with EmbeddedBus(str(uuid.uuid4()), Limits(retry_delay_s=0.01)) as bus:
        yield bus


@pytest.fixture
def publish(bus: Bus) -> Publish:
    return lambda decision: bus.publish(topics.DECISIONS, decision_message(decision, "test"))


@pytest.fixture
def settings(tmp_path: Path) -> ResultsSettings:
    return ResultsSettings(port=0, metrics_port=0, state_dir=tmp_path, max_watchers=4, watch_poll_s=0.2, drain_s=5)


@pytest.fixture
def door(settings: ResultsSettings, bus: Bus) -> Iterator[Door]:
    with open_service(settings, bus) as door:
        yield door


@contextmanager
def stub_at(door: Door) -> Iterator[Stub]:
    with grpc.insecure_channel(door.address) as channel:
        yield Stub(channel)


@pytest.fixture
def results(door: Door) -> Iterator[Stub]:
    with stub_at(door) as stub:
        yield stub


@pytest.fixture
def lock(settings: ResultsSettings) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Holds the database's write lock while entered; everybody else gives up waiting for it soon."""

    def hurry(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA busy_timeout=50")

    @contextmanager
    def held() -> Iterator[None]:
        with closing(sqlite3.connect(settings.state_dir / "inspectbus.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    event.listen(Pool, "checkout", hurry)
    yield held
    event.remove(Pool, "checkout", hurry)


def metrics(door: Door) -> dict[str, float]:
    """What Prometheus would read, by sample."""
    with urllib.request.urlopen(f"http://{door.metrics_address}/metrics", timeout=PATIENCE_S) as page:
        lines = page.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def answers(answer: Any) -> Iterator[Any]:
    """Of a stream or of a single call."""
    if hasattr(answer, "__next__"):
        yield from answer


def refusal(call: Callable[..., Any], request: Any) -> tuple[grpc.StatusCode, str, str]:
    """Status, kind and field of a call that must fail."""
    with pytest.raises(grpc.RpcError) as refused:
        list(answers(call(request, timeout=PATIENCE_S)))
    kind = field = ""
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]  # a client's RpcError is a Call too
    assert status is not None, refused.value
    for detail in status.details:
        info, request_ = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            kind = info.reason
        if detail.Unpack(request_):
            field = request_.field_violations[0].field
    return refused.value.code(), kind, field


def get(results: Stub, decision: Decision) -> results_pb2.Record:
    return results.GetDecision(results_pb2.GetDecisionRequest(frame_id=decision.frame_id), timeout=PATIENCE_S).record


# In by the bus


def test_a_published_decision_is_confirmed_when_it_is_in_the_records(
    results: Stub, publish: Publish, decide: Decide
) -> None:
    decision = decide(truth=Label.LABEL_GOOD)

    publish(decision).result(PATIENCE_S)

    record = get(results, decision)
    assert record.decision == decision
    assert record.truth == Label.LABEL_GOOD
    assert record.recorded_at.seconds > 0


def test_repeats_are_counted_on_the_record_and_as_metrics(
    results: Stub, door: Door, publish: Publish, decide: Decide
) -> None:
    hold = Hold(reason=HoldReason.HOLD_REASON_UNUSABLE_IMAGE, measure="glare", detail="glare")
    first = decide()
    first.timings.captured_at.GetCurrentTime()
    held = decide(verdict=Verdict.VERDICT_HOLD, hold=hold)
    differing = decide(frame_id=first.frame_id, verdict=Verdict.VERDICT_DEFECTIVE)
    for decision in (first, held, first, differing, first):
        publish(decision).result(PATIENCE_S)

    record = get(results, first)
    assert (record.duplicates, record.conflicts) == (2, 1)
    assert record.decision == first
    seen = metrics(door)
    place = 'line="line-1",station="top"'
    assert seen[f'inspectbus_decisions_total{{{place},verdict="qualified"}}'] == 1
    assert seen[f'inspectbus_decisions_total{{{place},verdict="hold"}}'] == 1
    assert f'inspectbus_decisions_total{{{place},verdict="defective"}}' not in seen
    assert seen['inspectbus_holds_total{line="line-1",reason="unusable_image",station="top"}'] == 1
    assert seen[f"inspectbus_decision_duplicates_total{{{place}}}"] == 2
    assert seen[f"inspectbus_decision_conflicts_total{{{place}}}"] == 1
    assert seen["inspectbus_record_seconds_count"] == seen["inspectbus_record_batch_size_count"] == 5
    assert seen[f"inspectbus_capture_to_record_seconds_count{{{place}}}"] == 1
    assert seen["inspectbus_ledger_blocked"] == 0


def test_what_waits_is_recorded_together(results: Stub, door: Door, publish: Publish, decide: Decide) -> None:
    confirmed = [publish(decide()) for _ in range(400)]
    for future in confirmed:
        future.result(PATIENCE_S)

    seen = metrics(door)
    assert seen["inspectbus_record_batch_size_sum"] == 400
    assert seen["inspectbus_record_batch_size_count"] < 100


def test_a_malformed_decision_is_parked_and_the_next_is_recorded(
    results: Stub, bus: Bus, publish: Publish, decide: Decide
) -> None:
    dead: Queue[Delivery] = Queue()
    bus.subscribe(topics.DEAD, "dead", dead.put)
    good = decide()

    publish(decide(score=float("nan")))
    bus.publish(topics.DECISIONS, Message(b"\xff\xff", ("line-1", "top", "hold"), source="test"))
    publish(good).result(PATIENCE_S)

    letters = [dead.get(timeout=PATIENCE_S) for _ in range(2)]
    errors = sorted(letter.message.headers["error"] for letter in letters)
    for letter in letters:
        letter.done()
    assert errors[0].startswith("BadField: not a Decision")
    assert errors[1].startswith("BadField: score is 0 to 1, not nan")
    assert get(results, good).decision == good


def test_one_decision_that_the_database_refuses_costs_its_neighbours_nothing(
    settings: ResultsSettings, results: Stub, bus: Bus, publish: Publish, decide: Decide
) -> None:
    dead: Queue[Delivery] = Queue()
    bus.subscribe(topics.DEAD, "dead", dead.put)
    database = create_engine(f"sqlite:///{settings.state_dir / 'inspectbus.db'}")
    with database.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER poison BEFORE INSERT ON decisions WHEN NEW.part_id = 'poison' "
                "BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
            )
        )
    database.dispose()
    neighbours = [decide() for _ in range(30)]

    confirmed = [publish(decision) for decision in [*neighbours[:15], decide(part_id="poison"), *neighbours[15:]]]
    for future in confirmed:
        future.result(PATIENCE_S)

    letter = dead.get(timeout=PATIENCE_S)
    letter.done()
    assert Decision.FromString(letter.message.body).part_id == "poison"
    assert [get(results, decision).decision for decision in neighbours] == neighbours


def test_a_gate_outcome_is_told_with_its_decision_and_as_metrics(
    results: Stub, door: Door, bus: Bus, publish: Publish, decide: Decide, act: Act
) -> None:
    def tell(outcome: GateOutcome) -> None:
        bus.publish(topics.GATES, outcome_message(outcome, "test")).result(PATIENCE_S)

    on_time, late = decide(), decide()
    missed = act(late, action=GateAction.GATE_ACTION_REJECT, reason=GateReason.GATE_REASON_DEADLINE, verdict=0)
    for decision, outcome in ((on_time, act(on_time)), (late, missed)):
        publish(decision).result(PATIENCE_S)
        tell(outcome)
    tell(missed)
    tell(act(late))

    assert (get(results, on_time).gate, get(results, on_time).late) == (act(on_time), False)
    assert (get(results, late).gate, get(results, late).late) == (missed, True)
    seen = metrics(door)
    place = 'line="line-1",station="top"'
    assert seen['inspectbus_gate_outcomes_recorded_total{action="pass",line="line-1",station="top"}'] == 1
    assert seen['inspectbus_gate_outcomes_recorded_total{action="reject",line="line-1",station="top"}'] == 1
    assert seen[f"inspectbus_gate_outcomes_recorded_late_total{{{place}}}"] == 1
    assert seen[f"inspectbus_gate_outcome_duplicates_total{{{place}}}"] == 1
    assert seen[f"inspectbus_gate_outcome_conflicts_total{{{place}}}"] == 1


def test_a_decision_on_a_replay_is_told_beside_the_first(
    results: Stub, door: Door, publish: Publish, decide: Decide
) -> None:
    first = decide(verdict=Verdict.VERDICT_HOLD, hold=Hold(reason=HoldReason.HOLD_REASON_ERROR))
    replayed = decide(frame_id=first.frame_id, revision=1)
    for decision in (first, replayed):
        publish(decision).result(PATIENCE_S)

    record = get(results, first)
    assert (record.decision, list(record.revisions)) == (first, [replayed])
    assert (record.duplicates, record.conflicts) == (0, 0)
    assert metrics(door)['inspectbus_revisions_total{line="line-1",station="top"}'] == 1
    listed = results.ListDecisions(results_pb2.ListDecisionsRequest(), timeout=PATIENCE_S)
    assert len(listed.records) == 1


def test_a_malformed_outcome_is_parked(bus: Bus, door: Door, decide: Decide, act: Act) -> None:
    dead: Queue[Delivery] = Queue()
    bus.subscribe(topics.DEAD, "dead", dead.put)

    bus.publish(topics.GATES, outcome_message(act(decide(), part_id="a\0b"), "test"))

    letter = dead.get(timeout=PATIENCE_S)
    letter.done()
    assert letter.message.headers["error"].startswith("BadField: part_id must be text")
    assert letter.attempts == 1


# A full disk


def test_a_full_disk_holds_decisions_and_loses_none(
    disk: Any, results: Stub, door: Door, bus: Bus, publish: Publish, decide: Decide
) -> None:
    dead: Queue[Delivery] = Queue()
    bus.subscribe(topics.DEAD, "dead", dead.put)
    known = decide()
    publish(known).result(PATIENCE_S)
    watched = results.WatchDecisions(results_pb2.WatchDecisionsRequest(after=0), timeout=60)
    assert next(watched).record.decision == known

    # When the disk is full for longer than the bus would try,
    disk.fill()
    told = [decide(source_item="x" * 5000) for _ in range(60)]
    confirmed = [publish(decision) for decision in told]
    _until(lambda: metrics(door)["inspectbus_ledger_blocked"] == 1)
    with pytest.raises(Empty):
        dead.get(timeout=0.8)
    labels = [results_pb2.FrameLabel(frame_id=known.frame_id, label=Label.LABEL_GOOD)]
    label_often = results_pb2.SubmitLabelsRequest(labels=labels, by="ada" * 150)

    def label_until_refused(request: results_pb2.SubmitLabelsRequest, timeout: float) -> None:
        for _ in range(1000):  # the last page has room for a few
            results.SubmitLabels(request, timeout=timeout)

    code, kind, _ = refusal(label_until_refused, label_often)
    assert (code, kind) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "StorageFull")
    # nothing is confirmed, parked or lost, and what is recorded can be read,
    assert not any(future.done() for future in confirmed)
    assert get(results, known).decision == known

    # and with room again everything is recorded.
    disk.free()
    for future in confirmed:
        future.result(PATIENCE_S)
    assert dead.empty()
    assert [next(watched).record.decision.frame_id for _ in told] == [decision.frame_id for decision in told]
    assert metrics(door)["inspectbus_ledger_blocked"] == 0
    assert results.SubmitLabels(label_often, timeout=PATIENCE_S).accepted == 1


def test_stopping_with_a_full_disk_gives_the_decisions_back(
    disk: Any, settings: ResultsSettings, bus: Bus, publish: Publish, decide: Decide
) -> None:
    impatient = settings.model_copy(update={"drain_s": 0.3})
    with open_service(impatient, bus) as door:
        publish(decide()).result(PATIENCE_S)
        disk.fill()
        held = [decide(source_item="x" * 5000) for _ in range(5)]
        confirmed = [publish(decision) for decision in held]
        _until(lambda: metrics(door)["inspectbus_ledger_blocked"] == 1)
    assert not any(future.done() for future in confirmed)

    disk.free()
    with open_service(settings, bus) as door, stub_at(door) as results:
        for future in confirmed:
            future.result(PATIENCE_S)
        assert [get(results, decision).decision for decision in held] == held


def _until(holds: Callable[[], bool]) -> None:
    """Asks again, a little later each time, for as long as patience lasts."""
    pause = threading.Event()
    for _ in range(200):
        if holds():
            return
        pause.wait(PATIENCE_S / 200)
    raise AssertionError("it never held")


def test_a_locked_database_holds_decisions_too(
    lock: Callable[[], AbstractContextManager[None]], results: Stub, door: Door, publish: Publish, decide: Decide
) -> None:
    decision = decide()
    with lock():
        confirmed = publish(decision)
        _until(lambda: metrics(door)["inspectbus_ledger_blocked"] == 1)
        label = results_pb2.FrameLabel(frame_id=decision.frame_id, label=Label.LABEL_GOOD)
        asked = refusal(results.SubmitLabels, results_pb2.SubmitLabelsRequest(labels=[label]))
        assert asked[:2] == (grpc.StatusCode.UNAVAILABLE, "StorageAway")

    confirmed.result(PATIENCE_S)
    assert get(results, decision).decision == decision


def test_an_outage_longer_than_the_recorder_waits_costs_no_decision(
    monkeypatch: pytest.MonkeyPatch,
    lock: Callable[[], AbstractContextManager[None]],
    results: Stub,
    door: Door,
    bus: Bus,
    publish: Publish,
    decide: Decide,
) -> None:
    monkeypatch.setattr(recorder, "HOLD_S", 0.0)
    dead: Queue[Delivery] = Queue()
    bus.subscribe(topics.DEAD, "dead", dead.put)
    told = [decide() for _ in range(5)]
    with lock():
        confirmed = [publish(decision) for decision in told]
        _until(lambda: metrics(door)["inspectbus_ledger_blocked"] == 1)

    for future in confirmed:
        future.result(PATIENCE_S)
    assert [get(results, decision).decision for decision in told] == told
    assert metrics(door)["inspectbus_ledger_blocked"] == 0
    assert dead.empty()


# Questions


def test_pages_by_grpc_cover_every_record_once_while_more_arrive(
    results: Stub, publish: Publish, decide: Decide
) -> None:
    told = [decide() for _ in range(23)]
    for decision in told:
        publish(decision).result(PATIENCE_S)

    listed: list[str] = []
    token = ""
    while True:
        request = results_pb2.ListDecisionsRequest(page_size=5, page_token=token)
        answer = results.ListDecisions(request, timeout=PATIENCE_S)
        assert 1 <= len(answer.records) <= 5
        listed += [record.decision.frame_id for record in answer.records]
        if len(told) < 30:
            told.append(decide())
            publish(told[-1]).result(PATIENCE_S)
        token = answer.next_page_token
        if not token:
            break

    assert listed == [decision.frame_id for decision in told[: len(listed)]]
    assert len(listed) >= 23


def test_a_full_last_page_has_no_next(results: Stub, publish: Publish, decide: Decide) -> None:
    for _ in range(4):
        publish(decide()).result(PATIENCE_S)
    first = results.ListDecisions(results_pb2.ListDecisionsRequest(page_size=2), timeout=PATIENCE_S)
    last = results.ListDecisions(
        results_pb2.ListDecisionsRequest(page_size=2, page_token=first.next_page_token), timeout=PATIENCE_S
    )
    assert len(last.records) == 2
    assert last.next_page_token == ""


def test_scores_follow_the_labels(results: Stub, door: Door, publish: Publish, decide: Decide) -> None:
    escaped = decide(truth=Label.LABEL_GOOD)
    caught = decide(line="line-2", verdict=Verdict.VERDICT_DEFECTIVE, truth=Label.LABEL_DEFECTIVE)
    unlabelled = decide()
    unjudged = decide(
        verdict=Verdict.VERDICT_HOLD,
        hold=Hold(reason=HoldReason.HOLD_REASON_NO_MODEL),
        model="",
        model_version="",
        score=None,
        threshold=None,
    )
    for decision in (escaped, caught, unlabelled, unjudged):
        publish(decision).result(PATIENCE_S)
    label = results_pb2.FrameLabel(frame_id=escaped.frame_id.upper(), label=Label.LABEL_DEFECTIVE)
    results.SubmitLabels(results_pb2.SubmitLabelsRequest(labels=[label]), timeout=PATIENCE_S)

    seen = metrics(door)
    given = 'inspectbus_labels_total{{label="defective",line="{}",station="top",verdict="{}"}}'
    assert seen[given.format("line-1", "qualified")] == seen[given.format("line-2", "defective")] == 1

    def scores(group_by: results_pb2.ScoresGroup.ValueType, **filter_: Any) -> results_pb2.GetScoresResponse:
        request = results_pb2.GetScoresRequest(filter=results_pb2.DecisionFilter(**filter_), group_by=group_by)
        return results.GetScores(request, timeout=PATIENCE_S)

    everything = scores(results_pb2.SCORES_GROUP_UNSPECIFIED)
    assert list(everything.rows) == []
    assert everything.overall.decisions == 4
    assert everything.overall.scores.recall == 0.5
    assert everything.overall.scores.escape == 0.5
    assert not everything.overall.scores.HasField("overkill")
    by_line = scores(results_pb2.SCORES_GROUP_LINE)
    assert [(row.group, row.decisions) for row in by_line.rows] == [("line-1", 3), ("line-2", 1)]
    assert by_line.overall == everything.overall
    assert by_line.rows[1].scores.precision == 1
    assert not by_line.rows[0].scores.HasField("precision")
    by_station = scores(results_pb2.SCORES_GROUP_STATION, line="line-2")
    assert [row.group for row in by_station.rows] == ["line-2/top"]
    by_version = scores(results_pb2.SCORES_GROUP_MODEL_VERSION)
    assert [row.group for row in by_version.rows] == ["none", "elpv/0f3a0f3a0f3a0f3a"]
    again = scores(results_pb2.SCORES_GROUP_UNSPECIFIED, model_version=by_version.rows[1].group)
    assert again.overall.decisions == 3


def test_wrong_requests_are_refused_with_the_field_named(results: Stub, publish: Publish, decide: Decide) -> None:
    known = decide()
    publish(known).result(PATIENCE_S)
    unknown = str(uuid.uuid4())

    def submit(*labels: tuple[str, int], by: str = "ada") -> tuple[grpc.StatusCode, str, str]:
        request = results_pb2.SubmitLabelsRequest(by=by)
        for frame_id, label in labels:
            request.labels.add(frame_id=frame_id, label=label)
        return refusal(results.SubmitLabels, request)

    invalid = grpc.StatusCode.INVALID_ARGUMENT
    good = Label.LABEL_GOOD
    assert submit((known.frame_id, good), (unknown, good))[::2] == (grpc.StatusCode.NOT_FOUND, "labels[1].frame_id")
    assert submit((known.frame_id, good), ("x", good))[::2] == (invalid, "labels[1].frame_id")
    assert submit((known.frame_id, good), (known.frame_id, good))[::2] == (invalid, "labels[1].frame_id")
    assert submit((known.frame_id, 0))[::2] == (invalid, "labels[0].label")
    assert submit((known.frame_id, 9))[::2] == (invalid, "labels[0].label")
    assert submit()[::2] == (invalid, "labels")
    assert submit(*[(str(uuid.uuid4()), good)] * 1001)[::2] == (invalid, "labels")
    assert submit((known.frame_id, good), by="replay")[::2] == (invalid, "by")
    assert submit((known.frame_id, good), by="a\0")[::2] == (invalid, "by")
    assert get(results, known).truth == Label.LABEL_UNSPECIFIED

    asked = refusal(results.GetDecision, results_pb2.GetDecisionRequest(frame_id="7"))
    assert asked == (invalid, "BadField", "frame_id")
    asked = refusal(results.GetDecision, results_pb2.GetDecisionRequest(frame_id=unknown))
    assert asked == (grpc.StatusCode.NOT_FOUND, "NotFound", "frame_id")
    listed = results_pb2.ListDecisionsRequest(page_token="4711")
    assert refusal(results.ListDecisions, listed) == (invalid, "BadField", "page_token")
    scored = results_pb2.GetScoresRequest(group_by=7)  # type: ignore[arg-type]  # what a newer client may send
    assert refusal(results.GetScores, scored) == (invalid, "BadField", "group_by")
    scored = results_pb2.GetScoresRequest(filter=results_pb2.DecisionFilter(station="top.left"))
    assert refusal(results.GetScores, scored) == (invalid, "BadField", "filter.station")
    watched = results_pb2.WatchDecisionsRequest(after=-1)
    assert refusal(results.WatchDecisions, watched) == (invalid, "BadField", "after")


# Watching


class Reader:
    """A client that follows WatchDecisions on its own thread."""

    def __init__(self, results: Stub, **request: Any) -> None:
        self.call = results.WatchDecisions(results_pb2.WatchDecisionsRequest(**request), timeout=60)
        self.records: Queue[results_pb2.Record | None] = Queue()  # None: the stream has ended
        self.ended: Future[grpc.StatusCode] = Future()
        threading.Thread(target=self._read, name="reader", daemon=True).start()

    def _read(self) -> None:
        try:
            for answer in self.call:
                self.records.put(answer.record)
        except grpc.RpcError:
            pass  # the code says how it ended
        self.records.put(None)
        self.ended.set_result(self.call.code())

    def take(self, count: int) -> list[results_pb2.Record]:
        taken = [record for _ in range(count) if (record := self.records.get(timeout=PATIENCE_S))]
        assert len(taken) == count, "the stream ended"
        return taken


def test_watchers_see_every_record_once_in_order_under_concurrent_writers(
    settings: ResultsSettings, door: Door, bus: Bus, results: Stub, publish: Publish, decide: Decide
) -> None:
    told = [[decide() for _ in range(60)] for _ in range(4)]

    def write(mine: list[Decision]) -> None:
        for decision in mine:
            publish(decision)
            publish(decision)  # a repeat is no second record

    # Given two replicas on one database and one bus, and a reader at each,
    with open_service(settings, bus) as other, stub_at(other) as other_results:
        readers = [Reader(results, after=0), Reader(other_results, after=0)]
        writers = [threading.Thread(target=write, args=(mine,)) for mine in told]
        for writer in writers:
            writer.start()
        # when several write at once,
        seen = [reader.take(240) for reader in readers]
        for writer in writers:
            writer.join(PATIENCE_S)
        # then both see each record once, in the same order.
        expected = sorted(decision.frame_id for mine in told for decision in mine)
        for records in seen:
            cursors = [record.cursor for record in records]
            assert cursors == sorted(set(cursors))
            assert sorted(record.decision.frame_id for record in records) == expected
        assert [r.cursor for r in seen[0]] == [r.cursor for r in seen[1]]
        # and nothing more: a record made now is the next one each of them gets
        last = decide()
        publish(last).result(PATIENCE_S)
        assert [reader.take(1)[0].decision.frame_id for reader in readers] == [last.frame_id] * 2


def test_a_watch_resumes_after_its_cursor(results: Stub, publish: Publish, decide: Decide) -> None:
    told = [decide() for _ in range(10)]
    for decision in told:
        publish(decision).result(PATIENCE_S)
    first = Reader(results, after=0)
    cursor = first.take(4)[-1].cursor
    first.call.cancel()

    resumed = Reader(results, after=cursor)

    assert [record.decision for record in resumed.take(6)] == told[4:]


def test_a_watch_without_cursor_begins_now_and_keeps_to_its_filter(
    results: Stub, publish: Publish, decide: Decide
) -> None:
    publish(decide(line="line-2")).result(PATIENCE_S)
    reader = Reader(results, filter=results_pb2.DecisionFilter(line="line-2"))
    # "Now" is when the service takes the call: decisions are made until the first is seen.
    wanted = []
    while reader.records.empty():
        wanted.append(decide(line="line-2"))
        publish(decide()).result(PATIENCE_S)
        publish(wanted[-1]).result(PATIENCE_S)
        threading.Event().wait(0.05)
    seen = reader.take(1)[0].decision
    assert seen in wanted
    rest = wanted[wanted.index(seen) + 1 :]
    assert [record.decision for record in reader.take(len(rest))] == rest


def test_watchers_are_limited_and_a_leaving_one_makes_room_at_once(
    settings: ResultsSettings, bus: Bus, publish: Publish, decide: Decide
) -> None:
    # Given watchers that would not look by themselves within this test's patience,
    rarely = settings.model_copy(update={"watch_poll_s": 60.0, "max_watchers": 2})
    with open_service(rarely, bus) as door, stub_at(door) as results:
        readers = [Reader(results, after=0) for _ in range(2)]
        publish(decide()).result(PATIENCE_S)
        for reader in readers:
            reader.take(1)
        # when there are as many as may be,
        request = results_pb2.WatchDecisionsRequest(after=0)
        asked = refusal(results.WatchDecisions, request)
        assert asked[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QueueFull")
        # then one that leaves makes room, and the rest learn of every commit at once.
        readers[0].call.cancel()
        _until(lambda: Reader(results, after=0).records.get(timeout=PATIENCE_S) is not None)
        publish(decide()).result(PATIENCE_S)
        readers[1].take(1)


def test_stopping_ends_streams_at_once(settings: ResultsSettings, bus: Bus, publish: Publish, decide: Decide) -> None:
    with ExitStack() as clients:
        with open_service(settings, bus) as door:
            reader = Reader(clients.enter_context(stub_at(door)), after=0)
            publish(decide()).result(PATIENCE_S)
            reader.take(1)
            begun = time.monotonic()
        assert time.monotonic() - begun < 2
        assert reader.ended.result(PATIENCE_S) is grpc.StatusCode.OK


def test_a_reader_that_stopped_reading_costs_nobody_anything(
    settings: ResultsSettings, bus: Bus, publish: Publish, decide: Decide
) -> None:
    with ExitStack() as clients:
        with open_service(settings, bus) as door:
            slow, busy = clients.enter_context(stub_at(door)), clients.enter_context(stub_at(door))
            stalled = slow.WatchDecisions(results_pb2.WatchDecisionsRequest(after=0), timeout=60)
            brisk = Reader(busy, after=0)
            told = [decide(source_item="x" * 20_000) for _ in range(300)]
            for future in [publish(decision) for decision in told]:
                future.result(PATIENCE_S)
            assert [record.decision.frame_id for record in brisk.take(300)] == [d.frame_id for d in told]
            begun = time.monotonic()
        assert time.monotonic() - begun < 3
        assert brisk.ended.result(PATIENCE_S) is grpc.StatusCode.OK
        with pytest.raises(grpc.RpcError):
            list(stalled)
        assert stalled.code() is grpc.StatusCode.CANCELLED


# Life and end


def test_the_service_says_that_it_serves_and_drains(
    settings: ResultsSettings, bus: Bus, publish: Publish, decide: Decide
) -> None:
    with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
        request = health_pb2.HealthCheckRequest(service="inspectbus.api.v1.ResultsService")
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(request, timeout=PATIENCE_S)  # type: ignore[attr-defined]  # missing in its stubs
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        confirmed = [publish(decide()) for _ in range(300)]
    # What was in hand is recorded, the rest waits on the bus for the next one.
    with open_service(settings, bus):
        for future in confirmed:
            future.result(PATIENCE_S)
