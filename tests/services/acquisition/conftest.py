"""A running acquisition on an embedded bus, with a small line behind it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from inspectbus.acquisition.service import open_service
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import acquisition_pb2_grpc
from inspectbus.bus import Bus, connect
from tests.doubles.small_line import SmallLine, small_line

OpenAcquisition = Callable[..., acquisition_pb2_grpc.AcquisitionServiceStub]


@pytest.fixture
def bus() -> Iterator[Bus]:
    with connect(f"embedded://acquisition-{uuid.uuid4()}") as bus:
        yield bus


@pytest.fixture
def line(bus: Bus) -> Iterator[SmallLine]:
    with small_line(bus) as line:
        yield line


@pytest.fixture
def house() -> Iterator[ExitStack]:
    """Close it to end everything the test has opened."""
    with ExitStack() as house:
        yield house


@pytest.fixture
def channels() -> Iterator[ExitStack]:
    """Outlive the services, so that clients hear how their calls end."""
    with ExitStack() as channels:
        yield channels


@pytest.fixture
def acquisition(bus: Bus, channels: ExitStack, house: ExitStack, tmp_path: Path) -> OpenAcquisition:
    """Opens the service with these stations of line-1 and settings; gives a client's stub."""

    def opened(*stations: dict[str, object], **settings: object) -> acquisition_pb2_grpc.AcquisitionServiceStub:
        values = {
            "lines": [{"name": "line-1", "stations": stations}],
            "state_dir": tmp_path / "state",
            "port": 0,
            "metrics_port": 0,
            "drain_s": 5,
            **settings,
        }
        door = house.enter_context(open_service(AcquisitionSettings.model_validate(values), bus))
        channel = channels.enter_context(grpc.insecure_channel(door.address))
        return acquisition_pb2_grpc.AcquisitionServiceStub(channel)

    return opened


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of twelve images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        (folder / f"part-{number}.png").write_bytes(b"picture %d" % number)
    return folder
