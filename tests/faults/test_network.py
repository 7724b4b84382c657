"""The way between the stations and the broker is cut for longer than a heartbeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspectbus.bus.rabbitmq.addresses import parse
from tests.doubles.rabbitmq import Broker
from tests.doubles.tcp_proxy import TcpProxy
from tests.faults.scenario import SIZES, Scenario
from tests.faults.test_broker import let_pass

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

CUT_S = 12.0
"""Three heartbeats of a scenario's bus."""


@SIZES
def test_stations_cut_off_keep_their_frames_and_say_so(
    frames: int, rabbitmq: Broker, bus_url: str, tmp_path: Path, ledger_url: str
) -> None:
    port = parse(bus_url).parameters[0].port
    with TcpProxy(port) as proxy:
        camera_url = bus_url.replace(f":{port}/", f":{proxy.port}/")
        with Scenario(
            "network: cut 12 s", frames, tmp_path, bus_url, ledger_url, camera_bus_url=camera_url
        ) as scenario:
            scenario.await_recorded(0.2)
            proxy.cut()
            scenario.await_spooled()
            let_pass(CUT_S)
            behind = [station for station in scenario.stations() if station.spooled]
            assert behind
            assert all(station.behind and "bus is away" in station.detail for station in behind)
            proxy.heal()
            figures = scenario.finish()
            assert not any(station.spooled for station in scenario.stations())
    assert figures.late
