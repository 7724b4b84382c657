"""A ledger on a fresh database, decisions to give it, and a disk that can be full."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from inspectbus.api.v1.decision_pb2 import Decision, Verdict
from inspectbus.api.v1.gate_pb2 import GateAction, GateOutcome, GateReason
from inspectbus.results.ledger import Ledger
from inspectbus.stores.database import open_database

Decide = Callable[..., Decision]
Act = Callable[..., GateOutcome]


@pytest.fixture
def decide() -> Decide:
    """Makes a valid decision of a new frame; keywords replace its fields."""

    def make(**fields: Any) -> Decision:
        usual: dict[str, Any] = {
            "frame_id": str(uuid.uuid4()),
            "line": "line-1",
            "station": "top",
            "run_id": "run-1",
            "source_item": "cell-0001.png",
            "verdict": Verdict.VERDICT_QUALIFIED,
            "score": 0.2,
            "threshold": 0.5,
            "model": "elpv",
            "model_version": "0f3a0f3a0f3a0f3a",
            "recipe": "cells",
            "recipe_version": 3,
            "preparation_hash": "1b1b1b1b1b1b1b1b",
        }
        return Decision(**(usual | fields))

    return make


@pytest.fixture
def act() -> Act:
    """Makes a valid gate outcome for the frame of a decision; keywords replace its fields."""

    def make(decision: Decision, **fields: Any) -> GateOutcome:
        usual: dict[str, Any] = {
            "frame_id": decision.frame_id,
            "line": decision.line,
            "station": decision.station,
            "run_id": decision.run_id,
            "action": GateAction.GATE_ACTION_PASS,
            "reason": GateReason.GATE_REASON_DECISION,
            "verdict": Verdict.VERDICT_QUALIFIED,
            "at": Timestamp(seconds=1_700_000_000),
            "waited_s": 0.03,
            "part_id": decision.part_id,
        }
        return GateOutcome(**(usual | fields))

    return make


@pytest.fixture
def opened(database_url: str) -> Iterator[Callable[[], Engine]]:
    """Opens the database once more, as another replica would."""
    with ExitStack() as house:

        def open_engine() -> Engine:
            engine = open_database(database_url, "results")
            house.callback(engine.dispose)
            return engine

        yield open_engine


@pytest.fixture
def engine(opened: Callable[[], Engine]) -> Engine:
    return opened()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine)


class Disk:
    """Where the test's SQLite files lie. Full, they cannot grow by one page."""

    def __init__(self) -> None:
        self._max_pages = 1 << 30

    def fill(self) -> None:
        self._max_pages = 1  # SQLite takes it as the present size

    def free(self) -> None:
        self._max_pages = 1 << 30

    def limit(self, connection: Any, *_: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA max_page_count={self._max_pages}")


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    event.listen(Pool, "checkout", disk.limit)
    yield disk
    event.remove(Pool, "checkout", disk.limit)
