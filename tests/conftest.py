"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.doubles.rabbitmq import Broker

# As `inspectbus` itself does, before anything loads torch: threads that wait for each other sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
