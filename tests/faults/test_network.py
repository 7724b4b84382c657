"""The way between the stations and the broker is cut for longer than a heartbeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspectbus.bus.rabbitmq.addresses import parse
from tests.doubles.rabbitmq import Broker
from tests.doubles.tcp_proxy import TcpProxy
from tests.faults.meter import lines, number
from tests.faults.scenario import SIZES, Scenario
from tests.faults.test_broker import LINES_PER_FAULT, check_it_drained, let_pass

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
            with scenario.flows_again():
                proxy.heal()
            figures = scenario.finish()
            check_it_drained(scenario)
            assert not any(station.spooled or station.detail for station in scenario.stations())
            acquisition, preprocessing = scenario.line["acquisition-0"], scenario.line["preprocessing-0"]
            drained = number(acquisition, "inspectbus_frames_drained_total")
            backlog = "inspectbus.preprocessing.backlog"
            assert number(preprocessing, "inspectbus_bus_settled_total", queue=backlog, how="done") >= drained
            assert number(acquisition, "inspectbus_bus_connects_total", link="publish") > 1
            assert lines(acquisition) <= LINES_PER_FAULT, acquisition.log.read_text()[-3000:]
            assert not lines(preprocessing), "those on the broker's side of the cut notice nothing"
    assert figures.late
