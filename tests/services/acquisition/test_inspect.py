"""Inspect and InspectStream: an image goes the way of every frame, and its sender gets the recorded decision."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue
from typing import cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from inspectbus.api.v1 import decision_pb2
from inspectbus.api.v1.acquisition_pb2 import InspectRequest, InspectStreamRequest, InspectStreamResponse, Shot
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.bus import Bus, Message
from inspectbus.bus.topics import DECISIONS
from tests.doubles.small_line import DEFECT, SmallLine

PATIENCE_S = 15.0
NOWHERE = "127.0.0.1:1"
OpenAcquisition = Callable[..., AcquisitionServiceStub]


def inspect(
    stub: AcquisitionServiceStub, image: bytes, timeout_s: float = PATIENCE_S, **more: str
) -> decision_pb2.Decision:
    frame_id = more.pop("frame_id", "")
    request = InspectRequest(shot=Shot(image=image, frame_id=frame_id, part_id="P-1"), **more)
    return stub.Inspect(request, timeout=timeout_s).decision


def refused_field(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest()
            detail.Unpack(request)
            return str(request.field_violations[0].field)
    return ""


def test_an_inspection_gives_the_recorded_decision(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address, inspect_recipe="bolt")

    good, bad = inspect(stub, b"picture"), inspect(stub, b"a " + DEFECT)

    assert good.verdict == decision_pb2.VERDICT_QUALIFIED
    assert bad.verdict == decision_pb2.VERDICT_DEFECTIVE
    assert line.ledger == {good.frame_id: good, bad.frame_id: bad}
    assert (good.line, good.recipe, good.part_id) == ("inspect", "bolt", "P-1")
    assert good.station.startswith("inspect-")


def test_an_inspection_as_a_station_uses_its_recipe_unless_told_another(
    acquisition: OpenAcquisition, line: SmallLine, images: object
) -> None:
    folder = {"name": "top", "recipe": "bolt", "autostart": False, "source": {"kind": "folder", "path": str(images)}}
    stub = acquisition(folder, results_address=line.address)

    as_station = inspect(stub, b"x", line="line-1", station="top")
    told = inspect(stub, b"x", line="line-1", station="top", recipe="nut")

    assert (as_station.line, as_station.station, as_station.recipe) == ("line-1", "top", "bolt")
    assert told.recipe == "nut"


def test_an_answer_waits_for_the_record(acquisition: OpenAcquisition, line: SmallLine, bus: Bus) -> None:
    stub = acquisition(results_address=NOWHERE)
    line.may_record.clear()
    told: Queue[Message] = Queue()
    bus.follow(DECISIONS, told.put)

    with ThreadPoolExecutor(1) as pool:
        inspection = pool.submit(inspect, stub, b"picture")
        told.get(timeout=PATIENCE_S)
        with pytest.raises(TimeoutError):
            inspection.result(timeout=0.3)
        line.may_record.set()

        assert inspection.result(timeout=PATIENCE_S).frame_id in line.ledger


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (InspectRequest(), grpc.StatusCode.INVALID_ARGUMENT, "shot.image"),
        (InspectRequest(shot=Shot(image=b"x" * 1001)), grpc.StatusCode.INVALID_ARGUMENT, "shot.image"),
        (InspectRequest(shot=Shot(image=b"x", frame_id="7")), grpc.StatusCode.INVALID_ARGUMENT, "shot.frame_id"),
        (InspectRequest(shot=Shot(image=b"x"), recipe="a.b"), grpc.StatusCode.INVALID_ARGUMENT, "recipe"),
        (InspectRequest(shot=Shot(image=b"x"), station="top"), grpc.StatusCode.INVALID_ARGUMENT, "line"),
        (
            InspectRequest(shot=Shot(image=b"x"), line="line-1", station="a#b"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "station",
        ),
        (InspectRequest(shot=Shot(image=b"x"), line="line-1", station="b"), grpc.StatusCode.NOT_FOUND, "line"),
    ],
)
def test_a_bad_inspection_is_refused_by_field(
    acquisition: OpenAcquisition, line: SmallLine, request_: InspectRequest, code: grpc.StatusCode, field: str
) -> None:
    stub = acquisition(max_image_bytes=1000)

    with pytest.raises(grpc.RpcError) as refused:
        stub.Inspect(request_, timeout=PATIENCE_S)

    assert (refused.value.code(), refused_field(refused.value)) == (code, field)
    assert not line.frames


def test_a_late_decision_is_told_with_the_frame_s_id_and_still_recorded(
    acquisition: OpenAcquisition, line: SmallLine
) -> None:
    stub = acquisition(results_address=line.address)
    line.hold()
    frame_id = str(uuid.uuid4())

    with pytest.raises(grpc.RpcError) as refused:
        inspect(stub, b"picture", timeout_s=1.0, frame_id=frame_id)

    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    line.let_go()
    assert inspect(stub, b"picture", frame_id=frame_id) == line.ledger[frame_id]


def test_an_inspection_without_a_deadline_waits_as_long_as_the_service_says(
    acquisition: OpenAcquisition, line: SmallLine
) -> None:
    stub = acquisition(results_address=line.address, inspect_patience_s=0.3, drain_s=0.5)
    line.hold()

    with pytest.raises(grpc.RpcError) as refused:
        stub.Inspect(InspectRequest(shot=Shot(image=b"picture")))

    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert line.frames[0].frame_id in str(refused.value.details())


def test_lost_news_does_not_hang_an_inspection(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address)
    line.tell_news = False

    decision = inspect(stub, b"a " + DEFECT)

    assert decision == line.ledger[decision.frame_id]


def test_two_senders_of_one_frame_get_one_decision(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address)
    line.hold()
    frame_id = str(uuid.uuid4())

    with ThreadPoolExecutor(2) as pool:
        senders = [pool.submit(inspect, stub, b"picture", frame_id=frame_id) for _ in range(2)]
        line.wait_for_frames(1)
        line.let_go()
        decisions = [sender.result(timeout=PATIENCE_S) for sender in senders]

    assert decisions == [line.ledger[frame_id]] * 2


def test_an_id_used_again_gets_what_was_recorded_first(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address)
    frame_id = str(uuid.uuid4())
    first = inspect(stub, b"picture", frame_id=frame_id)

    second = inspect(stub, b"another picture, with a " + DEFECT, frame_id=frame_id)

    assert second == first == line.ledger[frame_id]


def test_too_many_inspections_are_told_so(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address, max_inspections=2)
    line.hold()

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(inspect, stub, b"picture") for _ in range(2)]
        line.wait_for_frames(2)
        with pytest.raises(grpc.RpcError) as refused:
            inspect(stub, b"picture")
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        line.let_go()
        for each in waiting:
            each.result(timeout=PATIENCE_S)

    assert inspect(stub, b"picture"), "the places are free again"


def test_a_caller_that_goes_frees_its_place(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address, max_inspections=1)
    line.hold()
    gone = stub.Inspect.future(InspectRequest(shot=Shot(image=b"picture")), timeout=PATIENCE_S)
    line.wait_for_frames(1)

    gone.cancel()

    line.let_go()
    # The service hears of it a moment later; a call that comes before is told to try again.
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        call = stub.Inspect.future(InspectRequest(shot=Shot(image=b"picture")), timeout=PATIENCE_S)
        if call.code() == grpc.StatusCode.OK:
            return
        assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    raise AssertionError("the place was never freed")


def stream(stub: AcquisitionServiceStub, *requests: InspectStreamRequest) -> dict[int, InspectStreamResponse]:
    answers = list(stub.InspectStream(iter(requests), timeout=PATIENCE_S))
    assert sorted(answer.position for answer in answers) == list(range(len(requests))), "each is answered once"
    return {answer.position: answer for answer in answers}


def test_a_stream_of_inspections_answers_each_and_goes_on_after_a_bad_one(
    acquisition: OpenAcquisition, line: SmallLine
) -> None:
    stub = acquisition(results_address=line.address)

    answers = stream(
        stub,
        InspectStreamRequest(shot=Shot(image=b"picture")),
        InspectStreamRequest(),
        InspectStreamRequest(shot=Shot(image=b"x"), patience=Duration(seconds=-1)),
        InspectStreamRequest(shot=Shot(image=b"x"), line="line-9", station="top"),
        InspectStreamRequest(shot=Shot(image=DEFECT)),
    )

    assert [answers[i].WhichOneof("outcome") for i in range(5)] == ["decision", *["refusal"] * 3, "decision"]
    assert answers[0].decision.verdict == decision_pb2.VERDICT_QUALIFIED
    assert (answers[1].refusal.reason, answers[1].refusal.field) == ("BadField", "shot.image")
    assert (answers[2].refusal.reason, answers[2].refusal.field) == ("BadField", "patience")
    assert (answers[3].refusal.reason, answers[3].refusal.field) == ("NotFound", "line")
    assert answers[4].decision.verdict == decision_pb2.VERDICT_DEFECTIVE
    assert set(line.ledger) == {answers[0].decision.frame_id, answers[4].decision.frame_id}


def test_each_inspection_of_a_stream_has_its_own_patience(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address)
    line.hold()
    requests: Queue[InspectStreamRequest | None] = Queue()
    answers: Iterator[InspectStreamResponse] = stub.InspectStream(iter(requests.get, None), timeout=PATIENCE_S)
    requests.put(InspectStreamRequest(shot=Shot(image=b"patient")))
    requests.put(InspectStreamRequest(shot=Shot(image=b"hasty"), patience=Duration(nanos=100_000_000)))

    late = next(answers)
    line.let_go()
    decided = next(answers)
    requests.put(None)

    assert (late.position, late.refusal.reason) == (1, "TooLate")
    assert (decided.position, decided.WhichOneof("outcome")) == (0, "decision")
    assert not list(answers)


def test_many_inspections_at_once_each_get_their_own_decision(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address)
    shots = [Shot(image=DEFECT if number % 3 == 0 else b"x", part_id=str(number)) for number in range(120)]

    answers = stream(stub, *(InspectStreamRequest(shot=shot) for shot in shots))

    for number in range(120):
        decision = answers[number].decision
        assert decision.part_id == str(number)
        assert (decision.verdict == decision_pb2.VERDICT_DEFECTIVE) == (number % 3 == 0)


def test_a_service_that_stops_tells_whoever_still_waits(
    acquisition: OpenAcquisition, line: SmallLine, house: ExitStack
) -> None:
    stub = acquisition(results_address=line.address, drain_s=0.5)
    line.hold()
    waiting = stub.Inspect.future(InspectRequest(shot=Shot(image=b"picture")), timeout=PATIENCE_S)
    line.wait_for_frames(1)
    begun_s = time.monotonic()

    house.close()

    assert time.monotonic() - begun_s < 10
    assert waiting.code() == grpc.StatusCode.UNAVAILABLE
    assert "send the image again" in str(waiting.details())
