"""A real broker that is killed and comes back: what a station accepted meanwhile rested on its disk and is decided."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from inspectbus.acquisition.service import open_service
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import acquisition_pb2
from inspectbus.api.v1.acquisition_pb2 import PublishFramesRequest, Shot
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.bus import connect
from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from tests.doubles.rabbitmq import Broker
from tests.doubles.small_line import SmallLine

pytestmark = pytest.mark.rabbitmq
PATIENCE_S = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as broker:
        topology.declare(parse(broker.url()))
        broker.settle()
        yield broker


def push(stub: AcquisitionServiceStub, count: int) -> set[str]:
    shots = (PublishFramesRequest(line="line-1", station="top", shot=Shot(image=b"picture")) for _ in range(count))
    answers = list(stub.PublishFrames(shots, timeout=PATIENCE_S))
    assert not any(answer.HasField("refusal") for answer in answers)
    return {answer.frame_id for answer in answers}


def test_a_station_goes_on_while_its_broker_is_dead(broker: Broker, tmp_path: Path) -> None:
    station = {"name": "top", "source": {"kind": "push"}}
    settings = AcquisitionSettings.model_validate(
        {
            "lines": [{"name": "line-1", "stations": [station]}],
            "state_dir": tmp_path / "state",
            "port": 0,
            "metrics_port": 0,
            "drain_s": 5,
        }
    )
    recorded = threading.Event()
    with connect(broker.url()) as bus:
        line = SmallLine(bus, lambda _: recorded.set())
        line.open()
        with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
            stub = AcquisitionServiceStub(channel)
            accepted = push(stub, 20)
            broker.kill()
            accepted |= push(stub, 20)
            request = acquisition_pb2.GetStationRequest(line="line-1", station="top")
            status = stub.GetStation(request, timeout=PATIENCE_S).station
            assert status.accepted == 40
            assert status.spooled > 0
            assert status.detail.startswith("the bus is away: ")

            broker.start()
            until_s = time.monotonic() + PATIENCE_S
            while not accepted <= set(line.ledger) and time.monotonic() < until_s:
                recorded.clear()
                recorded.wait(0.5)
            assert accepted - set(line.ledger) == set(), "lost"
