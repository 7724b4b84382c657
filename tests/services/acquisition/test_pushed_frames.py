"""PublishFrames: each frame is answered once, when it is accepted or with the error that refused it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.api.v1 import acquisition_pb2, frame_pb2
from inspectbus.api.v1.acquisition_pb2 import PublishFramesRequest, Shot
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.domain.frame import frame_id
from tests.doubles.small_line import SmallLine

PATIENCE_S = 15.0
OpenAcquisition = Callable[..., AcquisitionServiceStub]
PUSH = {"name": "top", "source": {"kind": "push"}, "recipe": "bolt"}


def push(stub: AcquisitionServiceStub, *shots: Shot) -> dict[int, acquisition_pb2.PublishFramesResponse]:
    """The answers by position."""
    requests = (PublishFramesRequest(line="line-1", station="top", shot=shot) for shot in shots)
    answers = list(stub.PublishFrames(requests, timeout=PATIENCE_S))
    assert sorted(answer.position for answer in answers) == list(range(len(shots))), "each is answered once"
    return {answer.position: answer for answer in answers}


class Sender:
    """A stream that stays open until told."""

    def __init__(self, stub: AcquisitionServiceStub) -> None:
        self._requests: Queue[PublishFramesRequest | None] = Queue()
        self.answers = stub.PublishFrames(iter(self._requests.get, None), timeout=PATIENCE_S)

    def send(self, shot: Shot) -> None:
        self._requests.put(PublishFramesRequest(line="line-1", station="top", shot=shot))

    def close(self) -> None:
        self._requests.put(None)


@pytest.fixture
def sender_of() -> Iterator[Callable[[AcquisitionServiceStub], Sender]]:
    senders: list[Sender] = []

    def make(stub: AcquisitionServiceStub) -> Sender:
        senders.append(Sender(stub))
        return senders[-1]

    yield make
    for sender in senders:
        sender.close()


def test_a_pushed_frame_is_published_with_all_its_sender_knows(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(PUSH)
    own = uuid.uuid4()
    captured_at = Timestamp(seconds=1_700_000_000, nanos=5)
    shot = Shot(
        image=b"picture",
        frame_id=str(own).upper(),
        source_item="cam/7.png",
        captured_at=captured_at,
        part_id="P-1",
        lot_id="L-2",
        product="bolt M8",
        truth=frame_pb2.LABEL_DEFECTIVE,
    )

    answer = push(stub, shot)[0]

    assert answer.frame_id == str(own)
    assert not answer.HasField("refusal")
    (frame,) = line.frames
    station = stub.GetStation(acquisition_pb2.GetStationRequest(line="line-1", station="top")).station
    assert frame == frame_pb2.Frame(
        frame_id=str(own),
        line="line-1",
        station="top",
        run_id=station.run_id,
        source_item="cam/7.png",
        captured_at=captured_at,
        part_id="P-1",
        lot_id="L-2",
        product="bolt M8",
        recipe="bolt",
        image=b"picture",
        truth=frame_pb2.LABEL_DEFECTIVE,
    )
    assert (station.accepted, station.in_flight) == (1, 0)
    assert str(own) in line.ledger


def test_a_frame_without_an_id_gets_a_stable_one_of_its_own(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(PUSH)

    answers = push(stub, *[Shot(image=b"same", source_item="cam.png")] * 5)

    ids = {answer.frame_id for answer in answers.values()}
    assert len(ids) == 5
    assert ids == set(line.ledger)
    for frame in line.frames:
        assert frame.frame_id == frame_id("line-1", "top", frame.run_id, "cam.png", frame.sequence)
        assert frame.HasField("captured_at")


def test_an_answer_comes_when_the_frame_is_accepted_and_not_before(
    acquisition: OpenAcquisition, line: SmallLine, sender_of: Callable[[AcquisitionServiceStub], Sender]
) -> None:
    line.hold()
    sender = sender_of(acquisition(PUSH))
    sender.send(Shot(image=b"picture"))
    line.wait_for_frames(1)
    answer: Queue[acquisition_pb2.PublishFramesResponse] = Queue()
    threading.Thread(target=lambda: answer.put(next(sender.answers)), daemon=True).start()

    assert not line.ledger
    assert answer.empty()

    line.let_go()
    assert answer.get(timeout=PATIENCE_S).frame_id in line.ledger


@pytest.mark.parametrize(
    ("shot", "field"),
    [
        (Shot(), "shot.image"),
        (Shot(image=b"x" * 1001), "shot.image"),
        (Shot(image=b"x", frame_id="no-uuid"), "shot.frame_id"),
        (Shot(image=b"x", part_id="p" * 501), "shot.part_id"),
        (Shot(image=b"x", lot_id="a\0b"), "shot.lot_id"),
        (Shot(image=b"x", product="a\nb"), "shot.product"),
        (Shot(image=b"x", source_item="\x1f"), "shot.source_item"),
        (Shot(image=b"x", truth=7), "shot.truth"),  # type: ignore[arg-type]
        (Shot(image=b"x", captured_at=Timestamp(seconds=-1)), "shot.captured_at"),
        (Shot(image=b"x", captured_at=Timestamp(seconds=1, nanos=2_000_000_000)), "shot.captured_at"),
    ],
)
def test_a_bad_frame_is_refused_by_field_and_the_stream_goes_on(
    acquisition: OpenAcquisition, line: SmallLine, shot: Shot, field: str
) -> None:
    stub = acquisition(PUSH, max_image_bytes=1000)

    answers = push(stub, Shot(image=b"x" * 1000), shot, Shot(image=b"last"))

    refusal = answers[1].refusal
    assert (refusal.code, refusal.reason, refusal.field) == (
        grpc.StatusCode.INVALID_ARGUMENT.value[0],
        "BadField",
        field,
    )
    assert refusal.message.startswith(field) or "UUID" in refusal.message
    assert not answers[0].HasField("refusal")
    assert not answers[2].HasField("refusal")
    assert len(line.ledger) == 2


@pytest.mark.parametrize(
    ("line_name", "station", "reason", "field"),
    [
        ("line-1", "rear", "NotFound", "station"),
        ("line-2", "top", "NotFound", "line"),
        ("line-1", "top.left", "BadField", "station"),
        ("line-1", "top#", "BadField", "station"),
        ("line-1", "", "BadField", "station"),
        ("line-1", "folder", "NotPossibleNow", "station"),
    ],
)
def test_a_frame_for_another_station_is_refused_by_name(
    acquisition: OpenAcquisition, images: object, line_name: str, station: str, reason: str, field: str
) -> None:
    folder = {"name": "folder", "source": {"kind": "folder", "path": str(images)}, "autostart": False}
    stub = acquisition(PUSH, folder)
    request = PublishFramesRequest(line=line_name, station=station, shot=Shot(image=b"x"))

    (answer,) = stub.PublishFrames(iter([request]), timeout=PATIENCE_S)

    assert (answer.refusal.reason, answer.refusal.field) == (reason, field)
    assert repr(station) in answer.refusal.message or f"{line_name}/{station}" in answer.refusal.message


def test_frames_that_name_no_station_go_to_the_service_s_own(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition()

    (answer,) = stub.PublishFrames(iter([PublishFramesRequest(shot=Shot(image=b"x"))]), timeout=PATIENCE_S)

    assert not answer.HasField("refusal")
    assert line.frames[0].line == "inspect"


def test_a_sender_faster_than_the_line_waits_at_its_own_end(
    acquisition: OpenAcquisition, line: SmallLine, sender_of: Callable[[AcquisitionServiceStub], Sender]
) -> None:
    line.hold()
    stub = acquisition(PUSH, window=3)
    sender = sender_of(stub)
    for _ in range(10):
        sender.send(Shot(image=b"picture"))
    line.wait_for_frames(3)

    in_flight = stub.GetStation(acquisition_pb2.GetStationRequest(line="line-1", station="top")).station.in_flight
    assert in_flight == 3
    assert len(line.frames) == 3

    line.let_go()
    sender.close()
    assert len(list(sender.answers)) == 10


def test_a_sender_that_has_said_all_still_gets_its_answers(
    acquisition: OpenAcquisition, line: SmallLine, sender_of: Callable[[AcquisitionServiceStub], Sender]
) -> None:
    line.hold()
    sender = sender_of(acquisition(PUSH))
    for _ in range(5):
        sender.send(Shot(image=b"picture"))
    sender.close()
    line.wait_for_frames(5)

    line.let_go()

    assert {answer.frame_id for answer in sender.answers} == set(line.ledger)


def test_a_service_that_stops_answers_what_it_has_and_ends_idle_streams_at_once(
    acquisition: OpenAcquisition,
    line: SmallLine,
    house: ExitStack,
    sender_of: Callable[[AcquisitionServiceStub], Sender],
) -> None:
    stub = acquisition(PUSH, drain_s=10)
    idle, busy = sender_of(stub), sender_of(stub)
    idle.send(Shot(image=b"picture"))
    assert next(idle.answers).frame_id
    line.hold()
    busy.send(Shot(image=b"picture"))
    line.wait_for_frames(2)
    begun_s = time.monotonic()

    with ThreadPoolExecutor(1) as closer:
        closing = closer.submit(house.close)
        with pytest.raises(grpc.RpcError) as idle_end:
            next(idle.answers)
        line.let_go()
        assert next(busy.answers).frame_id in line.ledger
        with pytest.raises(grpc.RpcError) as busy_end:
            next(busy.answers)
        closing.result(timeout=PATIENCE_S)

    assert idle_end.value.code() == busy_end.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "the service is stopping" in str(idle_end.value.details())
    assert time.monotonic() - begun_s < 8


def test_a_sender_that_vanishes_frees_its_place(
    acquisition: OpenAcquisition, line: SmallLine, sender_of: Callable[[AcquisitionServiceStub], Sender]
) -> None:
    stub = acquisition(PUSH, rpc_threads=2)
    for _ in range(6):
        _sender_let_in(sender_of, stub).answers.cancel()


def test_four_senders_at_once_get_their_own_answers(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(PUSH, window=8)

    def send(_: int) -> set[str]:
        ids = [str(uuid.uuid4()) for _ in range(40)]
        answers = push(stub, *(Shot(image=b"picture", frame_id=each) for each in ids))
        assert [answers[position].frame_id for position in range(40)] == ids
        return set(ids)

    with ThreadPoolExecutor(4) as pool:
        sent = set().union(*pool.map(send, range(4)))

    assert len(sent) == 160
    assert set(line.ledger) == sent


def _sender_let_in(sender_of: Callable[[AcquisitionServiceStub], Sender], stub: AcquisitionServiceStub) -> Sender:
    """One whose frame is accepted: a vanished stream has the only place until the service has heard of its end."""
    pause = threading.Event()
    for _ in range(200):
        sender = sender_of(stub)
        sender.send(Shot(image=b"picture"))
        try:
            assert next(sender.answers).frame_id
        except grpc.RpcError as refusal:
            if refusal.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        else:
            return sender
        pause.wait(0.05)
    raise AssertionError("the vanished sender still holds the service")
