"""Stations by gRPC: they replay their sources, resume, finish, fail, and show it."""

from __future__ import annotations

import errno
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from inspectbus.acquisition import replay
from inspectbus.acquisition.cursor import Journal
from inspectbus.acquisition.service import open_service
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import acquisition_pb2, frame_pb2, gate_pb2
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.bus import Bus
from inspectbus.bus.embedded import EmbeddedBus, Limits
from inspectbus.domain.frame import frame_id
from tests.doubles.small_line import SmallLine, small_line

PATIENCE_S = 15.0
STOPPED, RUNNING, FINISHED, FAILED, LISTENING = (
    acquisition_pb2.STATION_STATE_STOPPED,
    acquisition_pb2.STATION_STATE_RUNNING,
    acquisition_pb2.STATION_STATE_FINISHED,
    acquisition_pb2.STATION_STATE_FAILED,
    acquisition_pb2.STATION_STATE_LISTENING,
)
OpenAcquisition = Callable[..., AcquisitionServiceStub]


def folder(path: Path, name: str = "top", **settings: object) -> dict[str, object]:
    return {"name": name, "source": {"kind": "folder", "path": str(path)}, **settings}


def top(stub: AcquisitionServiceStub, station: str = "top") -> acquisition_pb2.Station:
    return stub.GetStation(
        acquisition_pb2.GetStationRequest(line="line-1", station=station), timeout=PATIENCE_S
    ).station


def start(stub: AcquisitionServiceStub, station: str = "top") -> acquisition_pb2.Station:
    request = acquisition_pb2.StartStationRequest(line="line-1", station=station)
    return stub.StartStation(request, timeout=PATIENCE_S).station


def stop(stub: AcquisitionServiceStub, station: str = "top") -> acquisition_pb2.Station:
    request = acquisition_pb2.StopStationRequest(line="line-1", station=station)
    return stub.StopStation(request, timeout=PATIENCE_S).station


def until(
    stub: AcquisitionServiceStub, reached: Callable[[acquisition_pb2.Station], bool], station: str = "top"
) -> acquisition_pb2.Station:
    """Asks, with a short pause between, until the station is so."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        status = top(stub, station)
        if reached(status):
            return status
        pause.wait(0.02)
    raise AssertionError(f"the station stayed {status}")


def finished(status: acquisition_pb2.Station) -> bool:
    return status.state == FINISHED


def items(frames: list[frame_pb2.Frame]) -> list[str]:
    return [frame.source_item for frame in frames]


def test_a_folder_station_publishes_every_image_once_and_finishes(
    acquisition: OpenAcquisition, line: SmallLine, images: Path
) -> None:
    stub = acquisition(folder(images, recipe="solar-cell"))

    status = until(stub, finished)

    assert (status.accepted, status.unreadable, status.in_flight, status.detail) == (12, 0, 0, "")
    assert (status.source, status.recipe) == ("folder", "solar-cell")
    assert status.HasField("last_frame_at")
    assert items(line.frames) == [f"part-{number}.png" for number in range(12)]
    for number, frame in enumerate(line.frames):
        assert (frame.line, frame.station, frame.sequence) == ("line-1", "top", number)
        assert frame.frame_id == frame_id("line-1", "top", status.run_id, frame.source_item, number)
        assert frame.run_id == status.run_id
        assert frame.recipe == "solar-cell"
        assert frame.image == (images / frame.source_item).read_bytes()
        assert frame.HasField("captured_at")
    assert set(line.ledger) == {frame.frame_id for frame in line.frames}


def test_more_frames_than_images_begin_again_with_rising_numbers(
    acquisition: OpenAcquisition, line: SmallLine, images: Path
) -> None:
    stub = acquisition(folder(images, frames=30))

    assert until(stub, finished).accepted == 30

    assert [frame.sequence for frame in line.frames] == list(range(30))
    assert items(line.frames) == [f"part-{number % 12}.png" for number in range(30)]
    assert len(line.ledger) == 30


def test_fewer_frames_than_images_end_early(acquisition: OpenAcquisition, line: SmallLine, images: Path) -> None:
    stub = acquisition(folder(images, frames=5), folder(images, "side", frames=0))

    assert until(stub, finished).accepted == 5
    assert until(stub, finished, "side").accepted == 0
    assert len(line.frames) == 5


def test_a_finished_station_started_again_records_its_own_run(
    acquisition: OpenAcquisition, line: SmallLine, images: Path
) -> None:
    stub = acquisition(folder(images))
    first = until(stub, finished)

    assert start(stub).run_id != first.run_id
    second = until(stub, finished)

    assert second.run_id != first.run_id
    assert len(line.ledger) == 24


def test_a_finished_run_is_not_repeated_by_itself_when_the_service_comes_back(
    acquisition: OpenAcquisition, line: SmallLine, images: Path, house: ExitStack
) -> None:
    before = until(acquisition(folder(images)), finished)
    house.close()

    stub = acquisition(folder(images))

    assert top(stub) == acquisition_pb2.Station(
        line="line-1",
        station="top",
        recipe="default",
        source="folder",
        state=FINISHED,
        run_id=before.run_id,
        accepted=12,
        deadline=Duration(seconds=2),
        fail_safe=gate_pb2.GATE_ACTION_DIVERT,
    )
    assert len(line.frames) == 12


def test_a_station_waits_to_be_started_when_told(acquisition: OpenAcquisition, line: SmallLine, images: Path) -> None:
    stub = acquisition(folder(images, autostart=False))
    assert top(stub).state == STOPPED

    assert start(stub).run_id

    until(stub, finished)
    assert len(line.frames) == 12


def test_a_stopped_run_goes_on_where_it_stood_under_the_same_ids(
    acquisition: OpenAcquisition, line: SmallLine, images: Path
) -> None:
    stub = acquisition(folder(images, frames="endless", fps=200))
    line.wait_for_frames(5)

    stopped = stop(stub)
    assert (stopped.state, stopped.in_flight) == (STOPPED, 0)
    taken = len(line.frames)
    assert stopped.accepted == taken

    assert start(stub).run_id == stopped.run_id
    line.wait_for_frames(taken + 20)
    stop(stub)

    assert [frame.sequence for frame in line.frames] == list(range(len(line.frames)))


def test_an_unfinished_run_goes_on_when_the_service_comes_back(
    acquisition: OpenAcquisition, line: SmallLine, images: Path, house: ExitStack
) -> None:
    stub = acquisition(folder(images, frames=60, fps=100))
    line.wait_for_frames(10)
    run_id = top(stub).run_id
    house.close()

    status = until(acquisition(folder(images, frames=60)), finished)

    assert (status.run_id, status.accepted) == (run_id, 60)
    assert [frame.sequence for frame in line.frames] == list(range(60))


@pytest.mark.parametrize("change", ["plan", "items"])
def test_another_plan_or_other_images_begin_a_new_run(
    acquisition: OpenAcquisition, line: SmallLine, images: Path, house: ExitStack, change: str
) -> None:
    stub = acquisition(folder(images, frames=60, fps=100))
    line.wait_for_frames(3)
    run_id = top(stub).run_id
    house.close()
    before = len(line.frames)
    if change == "items":
        (images / "part-3.png").rename(images / "part-100.png")

    status = until(acquisition(folder(images, frames=61 if change == "plan" else 60)), finished)

    assert status.run_id != run_id
    assert [frame.sequence for frame in line.frames[before:]] == list(range(status.accepted))


def test_a_damaged_cursor_begins_a_new_run_and_says_so(
    acquisition: OpenAcquisition, line: SmallLine, images: Path, house: ExitStack, tmp_path: Path
) -> None:
    stub = acquisition(folder(images, frames=60, fps=100))
    line.wait_for_frames(3)
    run_id = top(stub).run_id
    house.close()
    cursor = tmp_path / "state" / "acquisition" / "line-1.top.cursor"
    cursor.write_bytes(cursor.read_bytes()[:-1] + b"?")

    status = until(acquisition(folder(images, frames=60)), finished)

    assert status.run_id != run_id
    assert status.accepted == 60
    assert "line-1.top.cursor is damaged; began a new run" in status.detail


def test_a_station_that_begins_on_a_full_disk_goes_on_when_there_is_room(
    acquisition: OpenAcquisition, line: SmallLine, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "LONGEST_PAUSE_S", 0.05)
    wrote = Journal.write

    def full(self: Journal, mark: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "write", full)
    stub = acquisition(folder(images, frames=3))
    waits = until(stub, lambda status: "No space left" in status.detail)
    assert waits.accepted == 0
    monkeypatch.setattr(Journal, "write", wrote)
    assert until(stub, finished).accepted == 3


def test_unreadable_images_are_counted_named_and_skipped(
    acquisition: OpenAcquisition, line: SmallLine, images: Path
) -> None:
    (images / "part-4.png").write_bytes(b"")
    (images / "part-7.png").write_text("a text file")
    stub = acquisition(folder(images))

    status = until(stub, finished)

    assert (status.accepted, status.unreadable) == (11, 1)
    assert status.detail == "part-4.png: the file is empty; skipped"
    assert [frame.sequence for frame in line.frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert b"a text file" in [frame.image for frame in line.frames]


def test_a_source_that_gives_nothing_but_bad_files_fails_instead_of_rushing_to_its_end(
    acquisition: OpenAcquisition, line: SmallLine, images: Path
) -> None:
    for image in images.iterdir():
        image.write_bytes(b"")
    stub = acquisition(folder(images, frames="endless"))

    status = until(stub, lambda status: status.state == FAILED)

    assert "100 unreadable images in a row" in status.detail
    assert not line.frames


def test_a_station_without_its_folder_fails_by_name_and_recovers(
    acquisition: OpenAcquisition, line: SmallLine, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    stub = acquisition(folder(missing))
    status = until(stub, lambda status: status.state == FAILED)
    assert str(missing) in status.detail

    with pytest.raises(grpc.RpcError) as refused:
        start(stub)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert str(missing) in str(refused.value.details())

    missing.mkdir()
    (missing / "a.png").write_bytes(b"picture")
    start(stub)
    assert until(stub, finished).accepted == 1


def test_a_station_another_service_runs_is_left_alone(
    acquisition: OpenAcquisition, line: SmallLine, images: Path
) -> None:
    first = acquisition(folder(images, frames="endless", fps=50))
    until(first, lambda status: status.accepted > 0)

    second = acquisition(folder(images, frames="endless", fps=50))

    assert "another process runs this station" in until(second, lambda status: status.state == FAILED).detail
    assert top(first).state == RUNNING


def test_the_window_bounds_what_is_in_flight(acquisition: OpenAcquisition, line: SmallLine, images: Path) -> None:
    line.hold()
    stub = acquisition(folder(images, frames=50), window=4)
    line.wait_for_frames(4)

    with pytest.raises(AssertionError, match="4 came"):
        line.wait_for_frames(5, patience_s=0.5)
    status = top(stub)
    assert status.in_flight == 4
    assert (status.state, status.accepted) == (RUNNING, 0)

    line.let_go()
    assert until(stub, finished).accepted == 50


def test_a_stop_lets_frames_in_flight_be_accepted(acquisition: OpenAcquisition, line: SmallLine, images: Path) -> None:
    line.hold()
    stub = acquisition(folder(images, frames=50), window=4)
    line.wait_for_frames(4)
    stopping = stub.StopStation.future(acquisition_pb2.StopStationRequest(line="line-1", station="top"))
    until(stub, lambda status: status.state == RUNNING)

    line.let_go()

    stopped = stopping.result(timeout=PATIENCE_S).station
    assert (stopped.state, stopped.accepted, stopped.in_flight) == (STOPPED, len(line.frames), 0)


def test_a_stop_is_not_waited_for_longer_than_the_caller_does(
    acquisition: OpenAcquisition, line: SmallLine, images: Path
) -> None:
    line.hold()
    stub = acquisition(folder(images, frames=50), window=4)
    line.wait_for_frames(4)

    with pytest.raises(grpc.RpcError) as refused:
        stub.StopStation(acquisition_pb2.StopStationRequest(line="line-1", station="top"), timeout=0.5)
    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    line.let_go()
    assert until(stub, lambda status: status.state == STOPPED).accepted == len(line.frames)


@contextmanager
def narrow_bus() -> Iterator[Bus]:
    with EmbeddedBus(f"narrow-{uuid.uuid4()}", Limits(queue_messages=2, publish_patience_s=0.05)) as bus:
        yield bus


def test_a_full_bus_holds_the_source_back_and_loses_nothing(images: Path, tmp_path: Path) -> None:
    lines = [{"name": "line-1", "stations": [folder(images)]}]
    settings = AcquisitionSettings.model_validate(
        {"lines": lines, "state_dir": tmp_path, "port": 0, "metrics_port": 0, "drain_s": 5}
    )
    with narrow_bus() as bus, open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
        stub = AcquisitionServiceStub(channel)

        status = until(stub, lambda status: "is full" in status.detail)
        assert (status.state, status.accepted, status.in_flight) == (RUNNING, 0, 2)
        assert "trying again" in status.detail

        with small_line(bus) as line:
            status = until(stub, finished)
            assert (status.accepted, status.detail) == (12, "")
            assert sorted(frame.sequence for frame in line.frames) == list(range(12))
            numbers = metrics(door.metrics_address)
            assert numbers['inspectbus_frames_accepted_total{line="line-1",station="top"}'] == 12
            assert numbers['inspectbus_publish_failures_total{line="line-1",station="top"}'] >= 1
            assert numbers['inspectbus_back_pressure_seconds_total{line="line-1",station="top"}'] >= 0.05
            assert numbers['inspectbus_publish_seconds_count{line="line-1",station="top"}'] == 12
            assert numbers['inspectbus_frames_in_flight{line="line-1",station="top"}'] == 0
            # Each was sent more than once, and is no repeat for that.
            assert numbers['inspectbus_images_repeated_total{line="line-1",station="top"}'] == 0
            state = 'inspectbus_station_state{{line="line-1",state="{}",station="top"}}'
            states = ("stopped", "running", "finished", "failed", "listening")
            assert [numbers[state.format(word)] for word in states] == [0, 0, 1, 0, 0]


def test_a_camera_that_is_frozen_is_told_by_its_repeated_images(
    images: Path, bus: Bus, line: SmallLine, tmp_path: Path
) -> None:
    for file in images.iterdir():
        file.write_bytes(b"the same picture")
    lines = [{"name": "line-1", "stations": [folder(images)]}]
    settings = AcquisitionSettings.model_validate({"lines": lines, "state_dir": tmp_path, "metrics_port": 0, "port": 0})
    with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
        assert until(AcquisitionServiceStub(channel), finished).accepted == 12
        repeated = metrics(door.metrics_address)['inspectbus_images_repeated_total{line="line-1",station="top"}']
    assert repeated == 11


def test_a_frame_the_bus_gives_back_is_sent_again(
    acquisition: OpenAcquisition, line: SmallLine, images: Path, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = bus.publish
    failures = iter([True, False, True])

    def failing(topic, message):  # type: ignore[no-untyped-def]
        future = publish(topic, message)
        if topic.name == "inspectbus.frames" and next(failures, False):
            from concurrent.futures import Future

            from inspectbus.errors import BusClosed

            future = Future()
            future.set_exception(BusClosed("the broker went away"))
        return future

    monkeypatch.setattr(bus, "publish", failing)
    stub = acquisition(folder(images))

    assert until(stub, finished).accepted == 12
    assert len(line.ledger) == 12
    assert len(line.frames) == 14, "the first and the third went twice, under one id"


def test_stations_are_listed_with_the_service_s_own(acquisition: OpenAcquisition, images: Path) -> None:
    stub = acquisition(folder(images, autostart=False, fps=2.5), {"name": "side", "source": {"kind": "push"}})

    listed = stub.ListStations(acquisition_pb2.ListStationsRequest(), timeout=PATIENCE_S).stations

    assert [(s.line, s.station, s.source, s.state, s.fps) for s in listed[:2]] == [
        ("line-1", "top", "folder", STOPPED, 2.5),
        ("line-1", "side", "push", LISTENING, 0),
    ]
    assert (listed[2].line, listed[2].source) == ("inspect", "push")
    assert listed[2].station.startswith("inspect-")
    assert len(listed) == 3


@pytest.mark.parametrize(
    ("line_name", "station", "code", "named"),
    [
        ("line-1", "rear", grpc.StatusCode.NOT_FOUND, "line-1/rear"),
        ("line-9", "top", grpc.StatusCode.NOT_FOUND, "line-9/top"),
        ("line-1", "top.left", grpc.StatusCode.INVALID_ARGUMENT, "top.left"),
        ("line-1", "top#1", grpc.StatusCode.INVALID_ARGUMENT, "top#1"),
        ("", "top", grpc.StatusCode.INVALID_ARGUMENT, "''"),
    ],
)
def test_an_unknown_station_is_refused_by_name(
    acquisition: OpenAcquisition, images: Path, line_name: str, station: str, code: grpc.StatusCode, named: str
) -> None:
    stub = acquisition(folder(images, autostart=False))
    calls = (
        lambda: stub.GetStation(acquisition_pb2.GetStationRequest(line=line_name, station=station)),
        lambda: stub.StartStation(acquisition_pb2.StartStationRequest(line=line_name, station=station)),
        lambda: stub.StopStation(acquisition_pb2.StopStationRequest(line=line_name, station=station)),
    )
    for call in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == code
        assert named in str(refused.value.details())


def test_a_push_station_has_nothing_to_start(acquisition: OpenAcquisition) -> None:
    stub = acquisition({"name": "top", "source": {"kind": "push"}})

    with pytest.raises(grpc.RpcError) as refused:
        start(stub)

    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert stop(stub).state == LISTENING


def test_pace_is_kept(acquisition: OpenAcquisition, line: SmallLine, images: Path) -> None:
    stub = acquisition(folder(images, frames=10, fps=50))

    until(stub, finished)

    moments = [frame.captured_at.ToMicroseconds() / 1e6 for frame in line.frames]
    assert moments[-1] - moments[0] >= 9 / 50 - 0.005


def metrics(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as page:
        rows = [row.rsplit(" ", 1) for row in page.read().decode().splitlines() if not row.startswith("#")]
    return {name: float(value) for name, value in rows}
