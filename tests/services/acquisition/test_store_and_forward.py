"""Stations while the bus is away: a camera's frames rest on disk, are told, and come back; nothing accepted is lost."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from inspectbus.api.v1 import acquisition_pb2
from inspectbus.api.v1.acquisition_pb2 import PublishFramesRequest, Shot
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.bus import Lane, connect
from tests.doubles.fickle_bus import FickleBus, Way
from tests.doubles.small_line import SmallLine

PATIENCE_S = 20.0
OpenAcquisition = Callable[..., AcquisitionServiceStub]
PUSH = {"name": "top", "source": {"kind": "push"}}


@pytest.fixture
def bus() -> Iterator[FickleBus]:
    with connect(f"embedded://acquisition-{uuid.uuid4()}") as behind:
        yield FickleBus(behind)


@pytest.fixture
def camera(images: Path) -> dict[str, object]:
    """Thirty frames at a camera's own pace."""
    return {"name": "top", "source": {"kind": "folder", "path": str(images)}, "fps": 200, "frames": 30}


def top(stub: AcquisitionServiceStub) -> acquisition_pb2.Station:
    return stub.GetStation(acquisition_pb2.GetStationRequest(line="line-1", station="top"), timeout=PATIENCE_S).station


def until(stub: AcquisitionServiceStub, reached: Callable[[acquisition_pb2.Station], bool]) -> acquisition_pb2.Station:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        status = top(stub)
        if reached(status):
            return status
        pause.wait(0.02)
    raise AssertionError(f"the station stayed {status}")


def finished(status: acquisition_pb2.Station) -> bool:
    return status.state == acquisition_pb2.STATION_STATE_FINISHED


def drained(status: acquisition_pb2.Station) -> bool:
    return status.spooled == 0 and not status.detail


def push(stub: AcquisitionServiceStub, *images: bytes) -> list[acquisition_pb2.PublishFramesResponse]:
    shots = (PublishFramesRequest(line="line-1", station="top", shot=Shot(image=image)) for image in images)
    return sorted(stub.PublishFrames(shots, timeout=PATIENCE_S), key=lambda answer: answer.position)


@pytest.mark.parametrize("way", ["refuses", "is full", "loses"])
def test_a_camera_goes_on_while_the_bus_is_away_and_its_frames_follow_in_order(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine, camera: dict[str, object], way: Way
) -> None:
    bus.go_away(way)
    stub = acquisition(camera)

    status = until(stub, finished)
    assert (status.accepted, status.spooled, status.dropped, status.in_flight) == (30, 30, 0, 0)
    assert status.spooled_bytes > 0
    assert status.HasField("behind")
    assert status.detail.startswith("the bus is away: ")
    assert not line.frames

    bus.come_back()
    status = until(stub, drained)
    assert not status.HasField("behind")
    assert (status.accepted, status.spooled_bytes) == (30, 0)
    assert [frame.sequence for frame in line.frames] == list(range(30))
    assert len(line.ledger) == 30


def test_while_the_bus_is_known_to_be_away_no_frame_waits_for_it(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine
) -> None:
    bus.go_away("loses")
    stub = acquisition(PUSH)

    assert not any(answer.HasField("refusal") for answer in push(stub, *[b"picture"] * 10))
    first_wave = sum(message.lane is Lane.LIVE for message in bus.tried)
    assert not any(answer.HasField("refusal") for answer in push(stub, *[b"picture"] * 10))

    assert sum(message.lane is Lane.LIVE for message in bus.tried) == first_wave == 1
    assert bus.patience_s[0] == 2.0
    bus.come_back()
    until(stub, drained)
    push(stub, b"live again")
    assert bus.tried[-1].lane is Lane.LIVE
    assert len(line.ledger) == 21


def test_a_live_frame_does_not_try_a_bus_that_says_it_is_away(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine
) -> None:
    bus.go_away("refuses", trouble="no connection to the broker")
    stub = acquisition(PUSH)

    assert not push(stub, b"picture")[0].HasField("refusal")

    status = top(stub)
    assert (status.accepted, status.spooled) == (1, 1)
    assert status.detail == "the bus is away: no connection to the broker"
    assert not any(message.lane is Lane.LIVE for message in bus.tried)


def test_a_frame_the_bus_loses_later_is_accepted_by_the_disk(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine
) -> None:
    bus.go_away("swallows")
    stub = acquisition(PUSH)
    answers: list[acquisition_pb2.PublishFramesResponse] = []
    sender = threading.Thread(target=lambda: answers.extend(push(stub, b"one", b"two")), daemon=True)
    sender.start()
    until(stub, lambda status: status.in_flight == 2)
    assert not answers

    bus.lose_swallowed()
    sender.join(PATIENCE_S)

    assert [answer.HasField("refusal") for answer in answers] == [False, False]
    bus.come_back()
    until(stub, drained)
    assert set(line.ledger) == {answer.frame_id for answer in answers}


def test_a_full_spool_that_stops_tells_the_sender_and_holds_a_camera(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine, camera: dict[str, object]
) -> None:
    bus.go_away("refuses")
    stub = acquisition(camera, {**PUSH, "name": "side"}, spool_max_bytes=2000)

    status = until(stub, lambda status: "is full" in status.detail)
    assert "a frame was refused, trying again: the spool of station line-1/top is full" in status.detail
    assert "the bus is away: the broker went away" in status.detail
    shots = [PublishFramesRequest(line="line-1", station="side", shot=Shot(image=b"x" * 900)) for _ in range(4)]
    refusals = [answer.refusal for answer in stub.PublishFrames(iter(shots), timeout=PATIENCE_S)]
    told = [refusal for refusal in refusals if refusal.reason]
    assert {refusal.reason for refusal in told} == {"StorageFull"}
    assert len(told) == 3, "the first alone fits"
    assert "the spool of station line-1/side is full" in told[0].message
    status = top(stub)
    assert status.accepted == status.spooled < 30

    bus.come_back()
    status = until(stub, lambda status: finished(status) and drained(status))
    assert (status.accepted, status.dropped) == (30, 0)
    assert {frame.sequence for frame in line.frames if frame.station == "top"} == set(range(30))


def test_a_full_spool_that_drops_gives_up_the_oldest_and_counts_them(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine, camera: dict[str, object]
) -> None:
    bus.go_away("refuses")
    stub = acquisition({**camera, "when_spool_full": "drop-oldest"}, spool_max_bytes=2000)

    status = until(stub, finished)
    assert status.accepted == 30
    assert status.dropped == 30 - status.spooled > 0

    bus.come_back()
    status = until(stub, drained)
    assert [frame.sequence for frame in line.frames] == list(range(status.dropped, 30))


def test_a_source_read_at_the_line_s_speed_waits_and_needs_no_disk(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine, camera: dict[str, object], tmp_path: Path
) -> None:
    bus.go_away("refuses")
    stub = acquisition({**camera, "fps": 0})

    status = until(stub, lambda status: "trying again" in status.detail)
    assert (status.accepted, status.spooled) == (0, 0)
    assert not (tmp_path / "state" / "acquisition" / "spool" / "line-1.top").exists()

    bus.come_back()
    assert until(stub, finished).accepted == 30


def test_an_inspection_is_refused_and_never_spooled(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine
) -> None:
    bus.go_away("refuses", trouble="no connection to the broker")
    stub = acquisition(PUSH)

    with pytest.raises(grpc.RpcError) as refused:
        stub.Inspect(
            acquisition_pb2.InspectRequest(line="line-1", station="top", shot=Shot(image=b"picture")),
            timeout=PATIENCE_S,
        )

    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert top(stub).spooled == 0


def test_what_the_line_leaves_open_at_a_stop_goes_to_disk_and_is_sent_first_thing_next_time(
    acquisition: OpenAcquisition,
    bus: FickleBus,
    line: SmallLine,
    camera: dict[str, object],
    house: ExitStack,
    channels: ExitStack,
) -> None:
    line.hold()
    stub = acquisition({**camera, "frames": 5}, {**PUSH, "name": "side"}, drain_s=0.3)
    shot = PublishFramesRequest(line="line-1", station="side", shot=Shot(image=b"pushed"))
    pushed = stub.PublishFrames(iter([shot]), timeout=PATIENCE_S)
    line.wait_for_frames(6)
    house.close()
    pushed.cancel()
    line.let_go()
    before = len(line.frames)

    stub = acquisition({**camera, "frames": 5, "autostart": False}, {**PUSH, "name": "side"})

    line.wait_for_frames(before + 6)
    status = until(stub, drained)
    assert (status.accepted, status.spooled) == (5, 0), "the cursor has passed them"
    assert len(line.ledger) == 6
    assert {message.lane for message in bus.tried[before:]} == {Lane.BACKLOG}


@pytest.mark.parametrize("then", ["the same", "at the line's speed"])
def test_spooled_frames_of_the_last_life_are_sent_by_the_next(
    acquisition: OpenAcquisition,
    bus: FickleBus,
    line: SmallLine,
    camera: dict[str, object],
    house: ExitStack,
    then: str,
) -> None:
    bus.go_away("refuses")
    stub = acquisition(camera)
    run_id = until(stub, finished).run_id
    house.close()
    bus.come_back()

    stub = acquisition(camera if then == "the same" else {**camera, "fps": 0})

    until(stub, drained)
    assert [(frame.run_id, frame.sequence) for frame in line.frames] == [(run_id, number) for number in range(30)]


def test_other_stations_work_while_one_station_s_disk_is_in_the_way(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine, tmp_path: Path
) -> None:
    folder = tmp_path / "state" / "acquisition" / "spool" / "line-1.top"
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    stub = acquisition(PUSH)

    assert not push(stub, b"live")[0].HasField("refusal")
    assert str(folder) in top(stub).detail
    bus.go_away("refuses")
    refusal = push(stub, b"refused")[0].refusal
    assert refusal.reason == "StorageAway"
    assert "the bus is away: the broker went away" in refusal.message
    bus.come_back()
    assert not push(stub, b"live again")[0].HasField("refusal")
    assert len(line.ledger) == 2


def test_numbers_tell_how_far_behind_a_station_is(
    acquisition: OpenAcquisition, bus: FickleBus, line: SmallLine, camera: dict[str, object]
) -> None:
    bus.go_away("refuses")
    stub = acquisition(camera)
    until(stub, finished)

    begun_s = time.monotonic()
    first = top(stub).behind.ToNanoseconds()
    second = until(stub, lambda status: status.behind.ToNanoseconds() > first)
    assert 0 < second.behind.ToNanoseconds() / 1e9 < PATIENCE_S + (time.monotonic() - begun_s)


def test_frames_of_a_station_taken_out_of_the_plant_are_told(
    acquisition: OpenAcquisition,
    bus: FickleBus,
    line: SmallLine,
    house: ExitStack,
) -> None:
    bus.go_away("refuses")
    push(acquisition(PUSH), b"picture")
    house.close()

    with capture_logs() as entries:
        acquisition({**PUSH, "name": "side"})

    [told] = [entry for entry in entries if "not in the plant rest on disk" in entry["event"]]
    assert "line-1.top" in str(told)
