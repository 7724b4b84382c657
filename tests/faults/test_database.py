"""The ledger's database is killed and comes back while parts arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.postgres import Postgres
from tests.faults.scenario import SIZES, Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]


@pytest.fixture
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@SIZES
def test_a_database_killed_and_restarted(frames: int, server: Postgres, tmp_path: Path, bus_url: str) -> None:
    with Scenario("database: kill", frames, tmp_path, bus_url, server.new_database()) as scenario:
        for share in (0.2, 0.6):
            scenario.await_recorded(share)
            server.kill()
            # The line goes on without its ledger: gates are served by news.
            scenario.await_logged("results-0", "the ledger is blocked, the batch is held")
            server.start()
        scenario.finish()
        assert not scenario.line["results-0"].exits, "results waits for its database and does not die of it"
