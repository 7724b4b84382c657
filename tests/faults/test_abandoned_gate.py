"""A gate that nobody serves for the whole run harms nobody: not the other stations, and not the broker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.bus import Message, connect
from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.bus.topics import DECISIONS
from tests.doubles.line_processes import LINE
from tests.doubles.rabbitmq import Broker
from tests.faults.scenario import CAMERAS, SIZES, Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

SERVED, FROZEN = CAMERAS
LIMIT = 20
"""Messages an abandoned queue may keep, beside the two its reader has in hand."""
IN_HAND = 2
DEADLINE_S = 2.0


@contextmanager
def abandoned(bus_url: str, *keys: tuple[str, ...]) -> Iterator[None]:
    """For each key a queue of news as a gate has one, with a reader who never comes to an end with the first."""
    over = threading.Event()

    def never_done(_: Message) -> None:
        over.wait()

    with connect(f"{bus_url}&news_limit={LIMIT}", "abandoned") as bus:
        try:
            for key in keys:
                bus.follow(DECISIONS, never_done, key=key)
            yield
        finally:
            over.set()


@SIZES
def test_an_abandoned_gate_harms_nobody(
    frames: int, rabbitmq: Broker, tmp_path: Path, bus_url: str, ledger_url: str
) -> None:
    with Scenario(
        "gate abandoned",
        frames,
        tmp_path,
        bus_url,
        ledger_url,
        replicas={"acquisition": 2},
        station={"gate": {"deadline_s": DEADLINE_S}},
    ) as scenario:
        with abandoned(bus_url, (LINE, SERVED), ()):
            frozen = scenario.line["acquisition-1"]
            scenario.await_recorded(0.2)
            frozen.pause()
            scenario.await_all_but(FROZEN)
            outcomes = [each for each in scenario.records().outcomes.values() if each.station != FROZEN]
            assert len(outcomes) < len(scenario.records().outcomes) < 0.9 * frames, "it stood still with frames to come"
            kept = news_kept(rabbitmq, bus_url)
            frozen.resume()
        scenario.finish()
    assert len(outcomes) >= 0.55 * frames
    assert p99_waited_s(outcomes) < DEADLINE_S
    assert sorted(kept)[-2:] == [LIMIT + IN_HAND] * 2, "both abandoned queues are full, and no fuller"


def p99_waited_s(outcomes: list[GateOutcome]) -> float:
    assert all(each.HasField("waited_s") for each in outcomes)
    return sorted(each.waited_s for each in outcomes)[int(0.99 * len(outcomes))]


def news_kept(broker: Broker, bus_url: str) -> list[int]:
    """Messages in each queue of news."""
    vhost = parse(bus_url).parameters[0].virtual_host
    told = broker.ctl("list_queues", "--no-table-headers", "-p", vhost, "name", "messages")
    return [int(count) for name, count in map(str.split, told.splitlines()) if name.startswith("inspectbus.news.")]
