"""A plant behind real doors, and a client of it, for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inspectbus_client import Client
from tests.doubles.plant import Plant, open_plant


@pytest.fixture
def plant() -> Iterator[Plant]:
    with open_plant() as plant:
        yield plant


@pytest.fixture
def client(plant: Plant) -> Iterator[Client]:
    with Client.connect(plant.addresses) as client:
        yield client
