"""What holds for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from tests.doubles.postgres import Postgres
    from tests.doubles.rabbitmq import Broker
    from tests.doubles.vhost import Vhost

# As `inspectbus` itself does, before anything loads torch: threads that wait for each other sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Services in a test's own process log when they like: pytest shows it with a failure, and what a test
# reads as a command's output holds none of it.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The one RabbitMQ of this run. A test that kills a broker starts its own."""
    from tests.doubles.rabbitmq import Broker

    with Broker(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


@pytest.fixture
def rabbitmq_url(rabbitmq: Broker) -> Iterator[str]:
    """A vhost of the test's own on that broker, with nothing in it."""
    vhost = rabbitmq.new_vhost()
    yield rabbitmq.url(vhost)
    rabbitmq.drop_vhost(vhost)


@pytest.fixture
def rabbitmq_vhost(rabbitmq: Broker) -> Iterator[Vhost]:
    """The same, with the bus declared in it."""
    from tests.doubles.vhost import Vhost

    vhost = Vhost(rabbitmq, rabbitmq.new_vhost())
    yield vhost
    rabbitmq.drop_vhost(vhost.name)


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
