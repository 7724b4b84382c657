"""The broker is away until the stations' disk is full: they stop, or drop their oldest frames, and say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from tests.doubles.rabbitmq import Broker
from tests.doubles.small_disk import small_disk
from tests.faults.scenario import SHORT_PATIENCE, SIZES, Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

STATE = "acquisition-0"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as broker:
        topology.declare(parse(broker.url()))
        broker.settle()
        yield broker


def disk_bytes(frames: int) -> int:
    """For a quarter of the frames, some 12 kB each, and the journals of all."""
    return 3 * 1024 * frames + 128 * 1024


@SIZES
def test_a_full_disk_stops_stations_that_must_not_lose_a_frame(
    frames: int, broker: Broker, tmp_path: Path, ledger_url: str
) -> None:
    scenario = Scenario("spool full: stop", frames, tmp_path, f"{broker.url()}?{SHORT_PATIENCE}", ledger_url)
    with small_disk(scenario.line.state_folder(STATE), disk_bytes(frames)), scenario:
        scenario.await_recorded(0.1)
        broker.kill()
        refused = scenario.await_station(lambda station: "a frame was refused" in station.detail)
        assert "No space left" in refused.detail
        assert "the bus is away" in refused.detail
        scenario.await_refusal("No space left")
        broker.start()
        scenario.finish()
        assert not scenario.line[STATE].exits


@SIZES
def test_a_full_disk_costs_the_oldest_frames_where_the_newest_count(
    frames: int, broker: Broker, tmp_path: Path, ledger_url: str
) -> None:
    scenario = Scenario(
        "spool full: drop oldest",
        frames,
        tmp_path,
        f"{broker.url()}?{SHORT_PATIENCE}",
        ledger_url,
        station={"when_spool_full": "drop-oldest"},
    )
    with small_disk(scenario.line.state_folder(STATE), disk_bytes(frames)), scenario:
        scenario.await_recorded(0.1)
        broker.kill()
        # Nobody waits for the disk: cameras come to their end while the broker is away.
        scenario.await_accepted()
        broker.start()
        figures = scenario.finish(drops=True)
        assert figures.dropped >= frames / 4
        assert figures.dropped == frames_told_dropped(scenario.line[STATE].log)
        assert not scenario.line[STATE].exits


def frames_told_dropped(log: Path) -> int:
    """Sum of what the log says."""
    told = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return sum(words["frames"] for words in told if words["event"] == "accepted frames dropped")
