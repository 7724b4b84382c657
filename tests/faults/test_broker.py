"""The broker goes, comes back, stands still and runs out of memory while parts arrive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from tests.doubles.rabbitmq import Broker
from tests.doubles.rabbitmq_cluster import Cluster
from tests.faults.meter import lines, number
from tests.faults.scenario import SHORT_PATIENCE, SIZES, Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

PAUSE_S = 20.0
ALARM_S = 5.0
SERVED_AGAIN_S = 25.0
"""From a leader's death until a fifth of all frames is decided without that node: half of it they are being taken."""
LINES_PER_FAULT = 15
"""Warnings of one process: each of its parts may say that the broker goes, and none says it for each frame."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """One of the scenario's own, declared long enough ago to be killed."""
    with Broker(tmp_path / "broker") as broker:
        topology.declare(parse(broker.url()))
        broker.settle()
        yield broker


def url_of(broker: Broker | Cluster) -> str:
    return f"{broker.url()}?{SHORT_PATIENCE}"


def let_pass(seconds: float) -> None:
    """The fault's own length: nothing tells its end but the clock."""
    threading.Event().wait(seconds)


def check_everybody_felt_it(scenario: Scenario, losses: int) -> None:
    """Every process lost its connections at least so often, made new ones and was brief about it."""
    for process in scenario.line.of("acquisition", "preprocessing", "inference", "results"):
        assert process.starts == 1, f"{process.name} died of it"
        for link in ("publish", "consume"):
            assert number(process, "inspectbus_bus_connects_total", link=link) >= 1 + losses
        assert lines(process) <= LINES_PER_FAULT * max(losses, 1), process.log.read_text()[-3000:]
    check_it_drained(scenario)


def check_it_drained(scenario: Scenario) -> None:
    """Whatever went to disk came back from it."""
    scenario.await_drained()
    acquisition = scenario.line["acquisition-0"]
    spooled = number(acquisition, "inspectbus_frames_spooled_total")
    assert spooled
    assert number(acquisition, "inspectbus_frames_drained_total") == spooled
    assert not number(acquisition, "inspectbus_frames_dropped_total")


@SIZES
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_that_ends_and_starts_again(
    frames: int, how: str, broker: Broker, tmp_path: Path, ledger_url: str
) -> None:
    end: Callable[[], None] = getattr(broker, how)
    with Scenario(f"broker: {how}", frames, tmp_path, url_of(broker), ledger_url) as scenario:
        for share in (0.2, 0.6):
            scenario.await_recorded(share)
            end()
            scenario.await_spooled()
            with scenario.flows_again():
                broker.start()
        figures = scenario.finish()
        check_everybody_felt_it(scenario, losses=2)
    assert figures.late, "parts that passed while there was no broker got their fail-safe"


@SIZES
def test_a_broker_that_stands_still_longer_than_its_heartbeat(
    frames: int, broker: Broker, tmp_path: Path, ledger_url: str
) -> None:
    with Scenario("broker: paused 20 s", frames, tmp_path, url_of(broker), ledger_url) as scenario:
        scenario.await_recorded(0.2)
        broker.pause()
        scenario.await_spooled()
        let_pass(PAUSE_S)
        with scenario.flows_again():
            broker.resume()
        figures = scenario.finish()
        check_everybody_felt_it(scenario, losses=1)
    assert figures.late


@SIZES
def test_a_memory_alarm_set_and_cleared(frames: int, broker: Broker, tmp_path: Path, ledger_url: str) -> None:
    with Scenario("broker: memory alarm", frames, tmp_path, url_of(broker), ledger_url) as scenario:
        scenario.await_recorded(0.2)
        broker.memory_alarm(True)
        scenario.await_spooled()
        let_pass(ALARM_S)
        told = [station.detail for station in scenario.stations() if station.spooled]
        with scenario.flows_again():
            broker.memory_alarm(False)
        figures = scenario.finish()
        assert told
        assert all("memory or disk alarm" in detail for detail in told)
        check_everybody_felt_it(scenario, losses=0)
    assert figures.late


@pytest.mark.soak
@pytest.mark.parametrize("frames", [2000])
def test_the_leader_of_a_cluster_killed(frames: int, tmp_path: Path, ledger_url: str) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        topology.declare(parse(cluster.url()))
        cluster.settle()
        with Scenario("cluster: leader killed", frames, tmp_path, url_of(cluster), ledger_url) as scenario:
            for share in (0.2, 0.6):
                scenario.await_recorded(share)
                leader = cluster.leader_of("inspectbus.preprocessing.live")
                cluster.kill(leader)
                # With the node still away: the others elect a leader and serve.
                scenario.await_recorded(share + 0.2, SERVED_AGAIN_S)
                cluster.start(leader)
            figures = scenario.finish()
            assert cluster.leader_of("inspectbus.preprocessing.live") != leader
    assert figures.late < frames / 2, "the two nodes that are left serve on"
