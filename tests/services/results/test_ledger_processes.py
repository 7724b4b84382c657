"""Does the ledger keep what it said it recorded, when its process is killed?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import inspectbus
from inspectbus.api.v1.decision_pb2 import Decision, Verdict
from inspectbus.api.v1.results_pb2 import Record
from inspectbus.results.first_wins import Fate
from inspectbus.results.ledger import Ledger
from inspectbus.stores.database import open_database

RECORDER = """
import itertools, sys
from inspectbus.api.v1.decision_pb2 import Decision
from inspectbus.results.ledger import Ledger
from inspectbus.stores.database import open_database

ledger = Ledger(open_database(sys.argv[1], "results"))
ids = sys.stdin.read().split()
for i in itertools.cycle(range(0, len(ids), 5)):
    batch = ids[i : i + 5]
    ledger.record([Decision(frame_id=id, line="line-1", station="top", verdict=1) for id in batch])
    print(*batch, flush=True)
"""
"""Records until it is killed, and says what it has committed."""


def decide(frame_id: str) -> Decision:
    """As the recorder spells it."""
    return Decision(frame_id=frame_id, line="line-1", station="top", verdict=Verdict.VERDICT_QUALIFIED)


@pytest.fixture
def house() -> Iterator[ExitStack]:
    with ExitStack() as house:
        yield house


def start(house: ExitStack, url: str, ids: list[str]) -> subprocess.Popen[str]:
    services = Path(inspectbus.__file__).parents[1]
    process = house.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", RECORDER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(services)},
        )
    )
    house.callback(process.kill)
    assert process.stdin is not None
    process.stdin.write("\n".join(ids))
    process.stdin.close()
    return process


def test_what_two_killed_recorders_had_committed_is_there_and_nothing_twice(
    house: ExitStack, database_url: str
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(1000)]

    # Given two processes that make the database and record the same frames at once, from both ends,
    processes = [start(house, database_url, ids), start(house, database_url, ids[::-1])]
    said: list[str] = []
    for process in processes:
        assert process.stdout is not None
        for _ in range(20):
            line = process.stdout.readline()
            assert line, "a recorder ended by itself"
            said += line.split()
    # when both are killed in the middle of it,
    for process in processes:
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=20) == -signal.SIGKILL

    # then the database is whole, and all they said is in it, once.
    engine = open_database(database_url, "results")
    house.callback(engine.dispose)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    ledger = Ledger(engine)
    records: list[Record] = []
    while page := ledger.page([], records[-1].cursor if records else 0, 1000):
        records += page
    recorded = [record.decision.frame_id for record in records]
    assert set(said) <= set(recorded)
    assert len(recorded) == len(set(recorded))
    outcomes = ledger.record([decide(frame_id) for frame_id in ids])
    assert outcomes.count(Fate.DUPLICATE) == len(recorded)
    assert outcomes.count(Fate.RECORDED) == len(ids) - len(recorded)
