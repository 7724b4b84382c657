"""Replicas come and go: a call that may be repeated goes to one that is there, and its frame is decided once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from inspectbus.errors import BadField, BusClosed, NotPossibleNow
from inspectbus.runtime.settings import ServiceSettings
from inspectbus_client import Client, Inspected, Shot, Verdict
from tests.doubles.children import lasting_port
from tests.doubles.plant import PNG, Plant, open_plant


class Replicas:
    """Two doors of acquisition to one plant; each can be opened and closed."""

    def __init__(self, house: ExitStack) -> None:
        self.plant = Plant()
        self._ports = [lasting_port() for _ in range(2)]
        self._doors: dict[int, ExitStack] = {}
        house.callback(self.close_all)

    @property
    def address(self) -> str:
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self._ports)

    def open(self, number: int, drain_s: float = 0.2) -> None:
        door = self._doors[number] = ExitStack()
        settings = ServiceSettings(port=self._ports[number], drain_s=drain_s)
        door.enter_context(open_plant(self.plant, settings, ["acquisition"]))

    def close(self, number: int) -> None:
        self._doors.pop(number).close()

    def close_all(self) -> None:
        for number in list(self._doors):
            self.close(number)


@pytest.fixture
def replicas() -> Iterator[Replicas]:
    with ExitStack() as house:
        yield Replicas(house)


def test_calls_go_on_while_one_replica_after_the_other_is_replaced(replicas: Replicas) -> None:
    replicas.open(0)
    replicas.open(1)
    with Client(acquisition=replicas.address) as client:
        decided = [client.inspect(PNG).frame_id]
        for number in (0, 1):
            replicas.close(number)
            decided += [client.inspect(PNG).frame_id for _ in range(3)]
            replicas.open(number)
            decided += [client.inspect(PNG).frame_id for _ in range(3)]

    assert [record.decision.frame_id for record in replicas.plant.records] == decided


def test_a_call_that_a_replica_still_has_when_it_ends_goes_to_another_and_is_decided_once(replicas: Replicas) -> None:
    plant = replicas.plant
    replicas.open(0)
    with Client(acquisition=replicas.address) as client, ThreadPoolExecutor(1) as pool:
        plant.hold_answers.set()
        inspection = pool.submit(client.inspect, PNG)
        plant.wait_for(lambda: plant.calls["Inspect"] == 1)
        plant.hold_answers.clear()
        replicas.open(1)
        # Its answer waits for longer than it may drain: the call is cut off.
        replicas.close(0)

        decision = inspection.result(timeout=20)

    assert [record.decision.frame_id for record in plant.records] == [decision.frame_id]
    assert plant.sent_before == [decision.frame_id], "the second try says that it is one"


def test_a_call_waits_for_the_only_replica_to_come_back(replicas: Replicas) -> None:
    plant = replicas.plant
    replicas.open(0)
    with Client(acquisition=replicas.address) as client, ThreadPoolExecutor(1) as pool:
        client.inspect(PNG)
        replicas.close(0)
        inspection = pool.submit(client.inspect, PNG)
        replicas.open(0)

        assert inspection.result(timeout=20).verdict is Verdict.QUALIFIED
    assert len(plant.records) == 2


def test_only_a_frame_that_is_sent_once_more_says_so(replicas: Replicas) -> None:
    plant = replicas.plant
    replicas.open(0)
    plant.refuse("Inspect", BusClosed("the service is stopping; send the image again"))
    with Client(acquisition=replicas.address) as client:
        again = client.inspect(PNG)
        client.inspect(PNG)
        told = client.inspect(Shot(PNG, sent_before=True))

    assert plant.sent_before == [again.frame_id, told.frame_id]


def test_images_of_a_stream_that_broke_go_to_another_replica_and_say_so(replicas: Replicas) -> None:
    plant = replicas.plant
    replicas.open(0)
    replicas.open(1)
    plant.break_stream("InspectStream", after=3)
    with Client(acquisition=replicas.address) as client:
        results: list[Inspected] = list(client.inspect_many([PNG] * 8, in_flight=4))

    ids = [result.shot.frame_id for result in results]
    assert sorted(record.decision.frame_id for record in plant.records) == sorted(ids)
    assert plant.sent_before, "the unanswered ones"
    assert set(plant.sent_before) < set(ids)


def test_a_client_that_is_closed_ends_its_calls_and_tries_none_again(replicas: Replicas) -> None:
    plant = replicas.plant
    replicas.open(0)
    client = Client(acquisition=replicas.address)
    with ThreadPoolExecutor(1) as pool:
        plant.hold_answers.set()
        inspection = pool.submit(client.inspect, PNG)
        plant.wait_for(lambda: plant.calls["Inspect"] == 1)
        client.close()

        with pytest.raises(NotPossibleNow, match="closed"):
            inspection.result(timeout=20)
    assert plant.calls["Inspect"] == 1


@pytest.mark.parametrize(
    "address", ["dns:///line-1.plant:50051", "ipv4:10.0.0.5:50051,10.0.0.6:50051", "ipv6:[::1]:1,[::2]:1", "[::1]:1"]
)
def test_replicas_are_spelt_as_grpc_does(address: str) -> None:
    Client(acquisition=address).close()


@pytest.mark.parametrize("address", ["a:1,b:2", "ipv4:a:1,", "dns:///a", "dns://a:1", "ipv4:a:1 ,b:2"])
def test_a_list_that_grpc_does_not_understand_is_refused(address: str) -> None:
    with pytest.raises(BadField, match=r"dns:///NAME:PORT"):
        Client(acquisition=address)
