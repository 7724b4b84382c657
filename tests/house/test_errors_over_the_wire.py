"""Every kind of error leaves a service and arrives at a client as the same kind, with its words and its field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inspectbus import errors
from inspectbus.errors import BadField, InspectBusError, QueueFull, StorageFull, UnreadableImage, kinds
from inspectbus.runtime.refusals import refusal
from inspectbus_client import Client
from inspectbus_client.failures import from_refusal
from tests.doubles.plant import Plant, open_plant


@pytest.fixture(scope="module")
def plant() -> Iterator[Plant]:
    with open_plant(services=["acquisition", "results"]) as plant:
        yield plant


@pytest.fixture(scope="module")
def client(plant: Plant) -> Iterator[Client]:
    # Too short for a second try: retryable kinds must arrive as themselves too.
    with Client.connect(plant.addresses, timeout_s=5.0) as client:
        yield client


def all_kinds() -> list[Any]:
    return [pytest.param(kind, id=name) for name, kind in sorted(kinds().items())]


def assert_same(arrived: InspectBusError, sent: InspectBusError) -> None:
    assert type(arrived) is type(sent)
    assert (arrived.message, arrived.field) == (sent.message, sent.field)
    assert (arrived.code, arrived.retryable) == (sent.code, sent.retryable)


@pytest.mark.parametrize("kind", all_kinds())
def test_by_a_single_call(client: Client, plant: Plant, kind: type[InspectBusError]) -> None:
    sent = kind("words with ümläuts\nand a second line", field="shot.image")
    plant.refuse("StartStation", sent)

    with pytest.raises(InspectBusError) as caught:
        client.start_station("line-1", "top")

    assert_same(caught.value, sent)


@pytest.mark.parametrize("kind", all_kinds())
def test_by_a_stream_that_ends_with_it(client: Client, plant: Plant, kind: type[InspectBusError]) -> None:
    sent = kind("words", field="filter")
    plant.refuse("WatchDecisions", sent)

    with pytest.raises(InspectBusError) as caught:
        next(client.watch_decisions(patience_s=0))

    assert_same(caught.value, sent)


@pytest.mark.parametrize("kind", all_kinds())
def test_by_one_refused_item_of_a_stream_that_goes_on(kind: type[InspectBusError]) -> None:
    sent = kind("words", field="shot.image")

    assert_same(from_refusal(refusal(sent)), sent)


def test_a_kind_this_client_does_not_know_arrives_by_its_status(
    client: Client, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "kinds", dict)
    plant.refuse("StartStation", StorageFull("no room", field="shot"))

    with pytest.raises(QueueFull, match="no room") as caught:
        client.start_station("line-1", "top")

    assert caught.value.field == "shot"
    assert type(from_refusal(refusal(UnreadableImage("no image")))) is BadField


def test_a_service_never_says_that_it_is_unreachable() -> None:
    """Only who asked in vain can know; a service that said so would have been reached."""
    package = Path(errors.__file__).parent
    sayers = [
        path for path in package.rglob("*.py") if "Unreachable(" in path.read_text("utf-8") and path.name != "errors.py"
    ]
    assert sayers == []
