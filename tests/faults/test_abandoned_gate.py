"""A reader of news that never reads costs its broker a bounded queue, and nobody else anything."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from inspectbus.bus import Message, connect
from inspectbus.bus.topics import DECISIONS
from tests.doubles.rabbitmq import Broker
from tests.faults.scenario import SIZES, Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

NEWS = 20
"""Messages a reader's queue may hold in this scenario."""
DEADLINE_S = 2.0


@SIZES
def test_a_gates_queue_abandoned_for_the_whole_run(
    frames: int, rabbitmq: Broker, bus_url: str, tmp_path: Path, ledger_url: str
) -> None:
    over = threading.Event()
    stuck = threading.Event()

    def never_reads(_: Message) -> None:
        stuck.set()
        over.wait()

    vhost = bus_url.partition("?")[0].rpartition("/")[2]
    with connect(f"{bus_url}&news_limit={NEWS}") as bystander:
        bystander.follow(DECISIONS, never_reads)
        with Scenario("gate's queue abandoned", frames, tmp_path, bus_url, ledger_url) as scenario:
            figures = scenario.finish()
            records = scenario.records()
        assert stuck.is_set()
        queues = rabbitmq.ctl("list_queues", "-p", vhost, "-q", "--no-table-headers", "name", "messages_ready")
        over.set()
    waiting = {name: int(count) for name, count in (line.split("\t") for line in queues.splitlines() if "\t" in line)}
    abandoned = [count for name, count in waiting.items() if name.startswith("inspectbus.news.") and count]
    assert abandoned == [NEWS], "it holds the newest, and no more"
    assert not sum(count for name, count in waiting.items() if not name.startswith("inspectbus.news."))
    waited_s = sorted(outcome.waited_s for outcome in records.outcomes.values())
    assert waited_s[int(0.99 * len(waited_s))] < DEADLINE_S, "the other stations hear in time"
    assert figures.late <= frames // 50
