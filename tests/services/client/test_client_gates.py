"""Following a gate: outcomes as they come, and an error as soon as nobody vouches for them any more."""

from __future__ import annotations

import threading
import time

import pytest

from inspectbus.api.v1 import gate_pb2
from inspectbus.api.v1.acquisition_pb2 import WatchGateResponse
from inspectbus.errors import BusClosed, NotFound, TooLate, Unreachable
from inspectbus_client import Client, GateAction, GateReason
from tests.doubles.plant import Plant, open_plant


def heartbeat(every_s: float) -> WatchGateResponse:
    event = WatchGateResponse(heartbeat_s=every_s)
    event.heartbeat.GetCurrentTime()
    return event


def outcome(name: str, every_s: float = 30.0) -> WatchGateResponse:
    said = gate_pb2.GateOutcome(
        frame_id=name, action=gate_pb2.GATE_ACTION_DIVERT, reason=gate_pb2.GATE_REASON_DEADLINE, waited_s=2.0
    )
    return WatchGateResponse(outcome=said, heartbeat_s=every_s)


def test_outcomes_come_as_values_and_heartbeats_are_not_told(plant: Plant, client: Client) -> None:
    plant.gate_events = [heartbeat(30), outcome("a"), heartbeat(30), outcome("b")]

    with client.gate("line-1", "top") as gate:
        first, second = next(gate), next(gate)

    assert (first.frame_id, second.frame_id) == ("a", "b")
    assert (first.action, first.reason, first.waited_s) == (GateAction.DIVERT, GateReason.DEADLINE, 2.0)
    assert first.verdict is None
    assert list(gate) == []


def test_a_gate_that_falls_silent_raises_within_its_heartbeat(plant: Plant, client: Client) -> None:
    plant.gate_events = [heartbeat(0.2), outcome("a", 0.2)]

    with client.gate("line-1", "top") as gate:
        assert next(gate).frame_id == "a"
        begun_s = time.monotonic()
        with pytest.raises(TooLate, match=r"no heartbeat of the gate for 0\.2 s: take the fail-safe position"):
            next(gate)

    assert time.monotonic() - begun_s < 5


def test_a_stream_that_breaks_is_not_opened_again(plant: Plant, client: Client) -> None:
    plant.gate_events = [heartbeat(30), outcome("a"), outcome("b")]
    plant.break_stream("WatchGate", after=2)

    with client.gate("line-1", "top") as gate:
        assert next(gate).frame_id == "a"
        with pytest.raises(BusClosed):
            next(gate)

    assert plant.calls["WatchGate"] == 1


def test_an_unknown_station_is_refused(client: Client) -> None:
    with client.gate("line-1", "rear") as gate, pytest.raises(NotFound):
        next(gate)


def test_a_service_that_is_not_there_is_told() -> None:
    with (
        Client(acquisition="127.0.0.1:1", timeout_s=5) as client,
        client.gate("line-1", "top") as gate,
        pytest.raises(Unreachable),
    ):
        next(gate)


@pytest.mark.parametrize("whose", ["watch", "client"])
def test_closing_ends_a_waiting_watch_without_an_error(whose: str) -> None:
    plant = Plant()
    plant.gate_events = [heartbeat(20)]
    with open_plant(plant, services=("acquisition",)), Client.connect(plant.addresses) as client:
        gate = client.gate("line-1", "top")
        seen: list[object] = ["nothing yet"]
        reader = threading.Thread(target=lambda: seen.__setitem__(0, list(gate)), daemon=True)
        reader.start()
        plant.wait_for(lambda: plant.calls["WatchGate"] == 1)

        (gate if whose == "watch" else client).close()

        reader.join(5)
        assert seen == [[]]
