"""Fault scenarios end with a table of what each cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.doubles.postgres import Postgres
from tests.doubles.rabbitmq import Broker
from tests.faults.scenario import SHORT_PATIENCE, TOLD


@pytest.fixture
def bus_url(rabbitmq: Broker) -> Iterator[str]:
    """A vhost of the scenario's own."""
    vhost = rabbitmq.new_vhost()
    yield f"{rabbitmq.url(vhost)}?{SHORT_PATIENCE}"
    rabbitmq.drop_vhost(vhost)


@pytest.fixture
def ledger_url(postgres: Postgres) -> str:
    """A database of the scenario's own."""
    return postgres.new_database()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TOLD:
        return
    terminalreporter.section("fault scenarios")
    columns = list(asdict(TOLD[0]))
    rows = [[str(value) for value in asdict(figures).values()] for figures in TOLD]
    widths = [max(len(row[column]) for row in [columns, *rows]) for column in range(len(columns))]
    for row in [columns, *rows]:
        terminalreporter.write_line("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
