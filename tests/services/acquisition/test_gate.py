"""The gate of a running service: each frame it takes gets one outcome, told to the bus, to outputs, to watchers."""

from __future__ import annotations

import json
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING

import grpc
import pytest

from inspectbus.acquisition.gate_journal import GateJournal
from inspectbus.acquisition.service import open_service
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import acquisition_pb2, gate_pb2
from inspectbus.api.v1.acquisition_pb2 import (
    InspectRequest,
    PublishFramesRequest,
    Shot,
    WatchGateRequest,
    WatchGateResponse,
)
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.bus import Bus, connect
from inspectbus.bus.embedded import EmbeddedBus, Limits
from inspectbus.errors import QueueFull
from tests.doubles.small_line import DEFECT, SmallLine, small_line

if TYPE_CHECKING:
    from tests.doubles.vhost import Vhost

PATIENCE_S = 15.0
PASS, REJECT, DIVERT = gate_pb2.GATE_ACTION_PASS, gate_pb2.GATE_ACTION_REJECT, gate_pb2.GATE_ACTION_DIVERT
DECISION, DEADLINE = gate_pb2.GATE_REASON_DECISION, gate_pb2.GATE_REASON_DEADLINE
OpenAcquisition = Callable[..., AcquisitionServiceStub]


def push_station(**gate: object) -> dict[str, object]:
    return {"name": "top", "source": {"kind": "push"}, "gate": gate}


def push(stub: AcquisitionServiceStub, *images: bytes) -> list[acquisition_pb2.PublishFramesResponse]:
    requests = (PublishFramesRequest(line="line-1", station="top", shot=Shot(image=image)) for image in images)
    return sorted(stub.PublishFrames(requests, timeout=PATIENCE_S), key=lambda answer: answer.position)


def until(stub: AcquisitionServiceStub, reached: Callable[[acquisition_pb2.Station], bool]) -> acquisition_pb2.Station:
    pause = threading.Event()
    request = acquisition_pb2.GetStationRequest(line="line-1", station="top")
    for _ in range(int(PATIENCE_S / 0.02)):
        status = stub.GetStation(request, timeout=PATIENCE_S).station
        if reached(status):
            return status
        pause.wait(0.02)
    raise AssertionError(f"the station stayed {status}")


@contextmanager
def watching(stub: AcquisitionServiceStub) -> Iterator[Queue[WatchGateResponse]]:
    """What WatchGate says, from its first heartbeat on."""
    events: Queue[WatchGateResponse] = Queue()
    call = stub.WatchGate(WatchGateRequest(line="line-1", station="top"))

    def read() -> None:
        try:
            for event in call:
                events.put(event)
        except grpc.RpcError:
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert events.get(timeout=PATIENCE_S).HasField("heartbeat")
    try:
        yield events
    finally:
        call.cancel()
        reader.join(5)


def next_outcome(events: Queue[WatchGateResponse]) -> gate_pb2.GateOutcome:
    while True:
        event = events.get(timeout=PATIENCE_S)
        if event.HasField("outcome"):
            return event.outcome


def metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as page:
        rows = [row.rsplit(" ", 1) for row in page.read().decode().splitlines() if not row.startswith("#")]
    return {row[0]: float(row[1]) for row in rows}[name]


def test_decisions_in_time_sort_the_parts_of_pushed_frames(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(push_station(deadline_s=30))

    answers = push(stub, b"picture", b"a " + DEFECT)

    line.wait_for_outcomes(2)
    actions = {outcome.frame_id: (outcome.action, outcome.reason) for outcome in line.outcomes}
    assert actions == {answers[0].frame_id: (PASS, DECISION), answers[1].frame_id: (REJECT, DECISION)}
    status = until(stub, lambda status: status.outcomes == 2)
    assert (status.pending, status.late, status.detail) == (0, 0, "")
    assert (status.deadline.ToSeconds(), status.fail_safe) == (30, DIVERT)


def test_every_replayed_frame_gets_one(acquisition: OpenAcquisition, line: SmallLine, images: Path) -> None:
    source = {"kind": "folder", "path": str(images)}
    stub = acquisition({"name": "top", "source": source, "frames": 60, "gate": {"deadline_s": 30}})

    status = until(stub, lambda status: status.state == acquisition_pb2.STATION_STATE_FINISHED)

    line.wait_for_outcomes(60)
    assert status.accepted == 60
    assert sorted(outcome.frame_id for outcome in line.outcomes) == sorted(line.ledger)


def test_the_part_of_an_inspection_passes_a_gate_too(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address)

    decision = stub.Inspect(InspectRequest(shot=Shot(image=b"x", part_id="P-1")), timeout=PATIENCE_S).decision

    line.wait_for_outcomes(1)
    [outcome] = line.outcomes
    assert (outcome.frame_id, outcome.line, outcome.station) == (decision.frame_id, "inspect", decision.station)
    assert (outcome.part_id, outcome.action, outcome.verdict) == ("P-1", PASS, decision.verdict)


def test_a_late_decision_is_recorded_and_moves_no_part(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(push_station(deadline_s=0.2, fail_safe="reject"))
    line.hold()
    with watching(stub) as events:
        answers: Future[list[acquisition_pb2.PublishFramesResponse]] = Future()
        threading.Thread(target=lambda: answers.set_result(push(stub, b"picture")), daemon=True).start()
        line.wait_for_outcomes(1)
        [outcome] = line.outcomes
        assert (outcome.action, outcome.reason, outcome.verdict) == (REJECT, DEADLINE, 0)
        assert outcome.waited_s >= 0.2
        assert next_outcome(events) == outcome

        line.let_go()

        [answer] = answers.result(timeout=PATIENCE_S)
    assert answer.frame_id == outcome.frame_id
    assert list(line.ledger) == [outcome.frame_id]
    status = until(stub, lambda status: status.accepted == 1)
    assert (status.pending, status.outcomes, status.late) == (0, 1, 1)
    assert len(line.outcomes) == 1


def test_a_station_whose_news_is_lost_acts_by_its_own_timer(acquisition: OpenAcquisition, line: SmallLine) -> None:
    line.tell_news = False
    stub = acquisition(push_station(deadline_s=0.2))

    push(stub, b"picture")

    line.wait_for_outcomes(1)
    assert [(outcome.action, outcome.reason) for outcome in line.outcomes] == [(DIVERT, DEADLINE)]


def test_an_id_that_is_sent_again_gets_no_second_outcome(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(push_station(deadline_s=30))
    shot = Shot(image=b"picture", frame_id=str(uuid.uuid4()))
    for _ in range(3):
        requests = iter([PublishFramesRequest(line="line-1", station="top", shot=shot)])
        assert not next(iter(stub.PublishFrames(requests, timeout=PATIENCE_S))).HasField("refusal")
    push(stub, b"the last")

    line.wait_for_outcomes(2)

    assert len(line.frames) == 4
    assert until(stub, lambda status: status.outcomes == 2).pending == 0
    assert len(line.outcomes) == 2


def test_a_refused_frame_leaves_nothing_at_the_gate(tmp_path: Path) -> None:
    values = {"lines": [{"name": "line-1", "stations": [push_station(deadline_s=30)]}], "state_dir": tmp_path}
    settings = AcquisitionSettings.model_validate({**values, "port": 0, "metrics_port": 0, "drain_s": 1})
    limits = Limits(queue_messages=1, publish_patience_s=0.05)
    with (
        EmbeddedBus(f"narrow-{uuid.uuid4()}", limits) as bus,
        open_service(settings, bus) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        stub = AcquisitionServiceStub(channel)
        request = InspectRequest(line="line-1", station="top", shot=Shot(image=b"x"))
        first = stub.Inspect.future(request, timeout=PATIENCE_S)
        until(stub, lambda status: status.in_flight == 1)

        with pytest.raises(grpc.RpcError) as refused:
            stub.Inspect(request, timeout=PATIENCE_S)

        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert until(stub, lambda status: True).pending == 1
        with small_line(bus) as line:
            decision = first.result().decision
            line.wait_for_outcomes(1)
            assert [outcome.frame_id for outcome in line.outcomes] == [decision.frame_id]
            assert until(stub, lambda status: status.pending == 0).outcomes == 1


def test_a_full_gate_refuses_frames_and_says_so(acquisition: OpenAcquisition, line: SmallLine) -> None:
    line.tell_news = False
    stub = acquisition(push_station(deadline_s=30, max_pending=1), drain_s=0.2)

    answers = push(stub, b"one", b"two")

    assert sorted(answer.refusal.reason for answer in answers) == ["", "QueueFull"]
    assert "1 frames wait at the gate already" in max(answer.refusal.message for answer in answers)


def test_watchers_hear_a_heartbeat_at_once_and_each_outcome(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(push_station(heartbeat_s=0.3))
    with watching(stub) as first, watching(stub) as second:
        [answer] = push(stub, b"picture")

        assert next_outcome(first).frame_id == next_outcome(second).frame_id == answer.frame_id
        for _ in range(2):
            event = first.get(timeout=PATIENCE_S)
            assert event.HasField("heartbeat")
            assert event.heartbeat_s == pytest.approx(0.3)


def test_a_watch_ends_with_an_error_when_the_service_stops(
    acquisition: OpenAcquisition, line: SmallLine, house: ExitStack
) -> None:
    stub = acquisition(push_station())
    call = stub.WatchGate(WatchGateRequest(line="line-1", station="top"), timeout=PATIENCE_S)
    assert next(call).HasField("heartbeat")

    threading.Thread(target=house.close, daemon=True).start()

    with pytest.raises(grpc.RpcError) as ended:
        for _ in call:
            pass
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_watch_of_an_unknown_station_is_refused(acquisition: OpenAcquisition) -> None:
    stub = acquisition()

    with pytest.raises(grpc.RpcError) as refused:
        next(stub.WatchGate(WatchGateRequest(line="line-1", station="rear"), timeout=PATIENCE_S))

    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_failing_output_delays_nobody_and_is_told(
    acquisition: OpenAcquisition, line: SmallLine, tmp_path: Path, house: ExitStack
) -> None:
    (tmp_path / "in-the-way").write_text("a file where a folder should be")
    broken = {"kind": "file", "path": str(tmp_path / "in-the-way" / "gate.jsonl")}
    good = {"kind": "file", "path": str(tmp_path / "sorter" / "gate.jsonl")}
    stub = acquisition(push_station(outputs=[{"kind": "log"}, broken, good], deadline_s=30))

    answers = push(stub, b"picture", b"a " + DEFECT)

    line.wait_for_outcomes(2)
    status = until(stub, lambda status: "2 outcomes missed" in status.detail)
    assert "output file: " in status.detail
    assert "no heartbeat" in status.detail
    assert status.late == 0
    house.close()
    rows = [json.loads(row) for row in (tmp_path / "sorter" / "gate.jsonl").read_text().splitlines()]
    assert {row["frame_id"]: row["action"] for row in rows} == {
        answers[0].frame_id: "PASS",
        answers[1].frame_id: "REJECT",
    }
    assert float((tmp_path / "sorter" / "gate.jsonl.heartbeat").read_text()) > 0


def test_outcomes_the_bus_refuses_are_sent_again_in_order(
    acquisition: OpenAcquisition, line: SmallLine, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = bus.publish
    tries: list[str] = []

    def refusing(topic, message, **more):  # type: ignore[no-untyped-def]
        if topic.name == "inspectbus.gates":
            tries.append(message.subject)
            if len(tries) <= 3:
                raise QueueFull("the outcomes' queue is full")
        return publish(topic, message, **more)

    monkeypatch.setattr(bus, "publish", refusing)
    stub = acquisition(push_station(deadline_s=30))

    answers = push(stub, b"one", b"two", b"three")

    assert "gate outcomes wait" in until(stub, lambda status: bool(status.detail)).detail
    line.wait_for_outcomes(3)
    assert len(set(tries[:3])) == 1, "the first one is tried until it goes"
    assert {outcome.frame_id for outcome in line.outcomes} == {answer.frame_id for answer in answers}
    assert [outcome.frame_id for outcome in line.outcomes] == list(dict.fromkeys(tries))
    assert until(stub, lambda status: not status.detail).outcomes == 3


def test_outcomes_are_metrics(line: SmallLine, bus: Bus, tmp_path: Path) -> None:
    values = {"lines": [{"name": "line-1", "stations": [push_station(deadline_s=30)]}], "state_dir": tmp_path}
    settings = AcquisitionSettings.model_validate({**values, "port": 0, "metrics_port": 0})
    with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
        stub = AcquisitionServiceStub(channel)
        push(stub, b"picture", b"a " + DEFECT)
        until(stub, lambda status: status.outcomes == 2)

        station = 'line="line-1",station="top"'
        for action in ("pass", "reject"):
            name = f'inspectbus_gate_outcomes_total{{action="{action}",{station.split(",")[0]},reason="decision",'
            assert metric(door.metrics_address, name + station.split(",")[1] + "}") == 1
        assert metric(door.metrics_address, f"inspectbus_gate_waited_seconds_count{{{station}}}") == 2
        assert metric(door.metrics_address, f"inspectbus_gate_pending{{{station}}}") == 0


@pytest.mark.rabbitmq
def test_a_gate_on_a_broker_hears_only_its_station_and_has_its_outcomes_confirmed(
    rabbitmq_vhost: Vhost, tmp_path: Path
) -> None:
    stations = [push_station(deadline_s=30), {**push_station(deadline_s=30), "name": "side"}]
    settings = AcquisitionSettings.model_validate(
        {"lines": [{"name": "line-1", "stations": stations}], "state_dir": tmp_path, "port": 0, "metrics_port": 0}
    )
    with connect(rabbitmq_vhost.url) as behind, small_line(behind) as line:
        with (
            connect(rabbitmq_vhost.url) as bus,
            open_service(settings, bus) as door,
            grpc.insecure_channel(door.address) as channel,
        ):
            stub = AcquisitionServiceStub(channel)
            images = [DEFECT if number % 2 else b"picture" for number in range(20)]
            answers = push(stub, *images)
            status = until(stub, lambda status: status.outcomes == 20)

        assert (status.late, status.detail) == (0, "")
        wanted = {answer.frame_id: REJECT if answer.position % 2 else PASS for answer in answers}
        line.wait_for_outcomes(20)
        assert {outcome.frame_id: outcome.action for outcome in line.outcomes} == wanted
        assert len(line.outcomes) == 20
    journal = GateJournal(tmp_path / "acquisition" / "gate" / "line-1.top", fsync=False)
    assert (list(journal.outcomes(journal.confirmed)), journal.left) == ([], [])
    journal.close()
