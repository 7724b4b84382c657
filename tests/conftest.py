"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.doubles.postgres import Postgres

# As `inspectbus` itself does, before anything loads torch: threads that wait for each other sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The one PostgreSQL of this run. A test that kills it starts it again."""
    from tests.doubles.postgres import Postgres

    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of each kind that keeps the records."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'inspectbus.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()
