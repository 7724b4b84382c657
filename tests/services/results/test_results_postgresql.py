"""Does results lose nothing and count nothing twice while its PostgreSQL is killed, stopped and paused?"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import Queue

import grpc
import pytest
from sqlalchemy import make_url, text

from inspectbus.api.v1 import results_pb2
from inspectbus.api.v1.decision_pb2 import HOLD_REASON_ERROR, Decision
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.api.v1.results_pb2_grpc import ResultsServiceStub
from inspectbus.bus import Bus, Message, topics
from inspectbus.bus.embedded import EmbeddedBus, Limits
from inspectbus.bus.messages import decision_message, outcome_message
from inspectbus.results.service import open_service
from inspectbus.results.settings import ResultsSettings
from inspectbus.runtime.rpc_server import Door
from inspectbus.stores import postgresql
from tests.doubles.postgres import Postgres

pytestmark = pytest.mark.postgresql

Decide = Callable[..., Decision]
Act = Callable[..., GateOutcome]

PATIENCE_S = 60.0


@pytest.fixture
def bus() -> Iterator[Bus]:
    with EmbeddedBus(str(uuid.uuid4()), Limits(retry_delay_s=0.01, publish_patience_s=PATIENCE_S)) as bus:
        yield bus


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Postgres]:
    yield postgres
    postgres.restart()


@pytest.fixture
def dead(bus: Bus) -> Queue[Message]:
    letters: Queue[Message] = Queue()
    bus.follow(topics.DEAD, letters.put)
    return letters


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture
def door(url: str, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    # As impatient as a test: the service itself gives its database ten times as long.
    monkeypatch.setattr(postgresql, "CONNECT_S", 2)
    monkeypatch.setattr(postgresql, "GRACE_S", 0.2)
    monkeypatch.setattr(postgresql, "STATEMENT_S", 1.5)
    settings = ResultsSettings(port=0, metrics_port=0, state_dir=tmp_path, database_url=url, drain_s=5)
    with open_service(settings, bus) as door:
        yield door


def recorded(door: Door) -> list[results_pb2.Record]:
    with grpc.insecure_channel(door.address) as channel:
        stub = ResultsServiceStub(channel)
        answers = stub.ListDecisions(results_pb2.ListDecisionsRequest(page_size=1000), timeout=PATIENCE_S)
        assert not answers.next_page_token
        return list(answers.records)


def publish(bus: Bus, decision: Decision, outcome: GateOutcome) -> list[Future[None]]:
    return [
        bus.publish(topics.DECISIONS, decision_message(decision, "test")),
        bus.publish(topics.GATES, outcome_message(outcome, "test")),
    ]


def everything_is_there_once(door: Door, told: list[Decision], dead: Queue[Message]) -> None:
    records = recorded(door)
    assert sorted(record.decision.frame_id for record in records) == sorted(decision.frame_id for decision in told)
    assert all(record.HasField("gate") for record in records)
    assert sum(record.conflicts for record in records) == 0
    assert dead.empty()


def test_a_database_killed_again_and_again_under_load_costs_nothing(
    server: Postgres, door: Door, bus: Bus, dead: Queue[Message], decide: Decide, act: Act
) -> None:
    told = [decide() for _ in range(600)]
    confirmed: list[Future[None]] = []
    begun = threading.Event()

    def send() -> None:
        for decision in told:
            confirmed.extend(publish(bus, decision, act(decision)))
            confirmed[-1].add_done_callback(lambda _: begun.set())
            threading.Event().wait(0.005)

    sender = threading.Thread(target=send)
    sender.start()
    assert begun.wait(PATIENCE_S)
    for _ in range(2):
        server.restart()
    server.stop()
    server.start()
    sender.join(PATIENCE_S)
    for future in confirmed:
        future.result(PATIENCE_S)

    everything_is_there_once(door, told, dead)


def test_what_the_database_calls_no_value_is_parked_at_once_and_costs_its_neighbours_nothing(
    door: Door, url: str, bus: Bus, dead: Queue[Message], decide: Decide, act: Act
) -> None:
    poison = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.part_id = 'poison' THEN "
        "RAISE EXCEPTION 'no such value' USING ERRCODE = 'data_exception'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER poison BEFORE INSERT ON decisions FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    database = postgresql.postgresql_engine(make_url(url), "test")
    with database.begin() as connection:
        connection.execute(text(poison))
    database.dispose()
    told = [decide() for _ in range(20)]

    poisoned = decide(part_id="poison")
    bus.publish(topics.DECISIONS, decision_message(poisoned, "test")).result(PATIENCE_S)
    for future in [future for decision in told for future in publish(bus, decision, act(decision))]:
        future.result(PATIENCE_S)

    letter = dead.get(timeout=PATIENCE_S)
    assert letter.headers["attempts"] == "1"
    assert "no such value" in letter.headers["error"]
    assert dead.empty()
    by_frame = {record.decision.frame_id: record.decision for record in recorded(door)}
    hold = by_frame.pop(poisoned.frame_id).hold
    assert (hold.reason, "no such value" in hold.detail) == (HOLD_REASON_ERROR, True), (
        "its frame is decided all the same"
    )
    assert sorted(by_frame) == sorted(decision.frame_id for decision in told)


def test_a_paused_database_holds_what_came_and_takes_it_afterwards(
    postgres: Postgres, door: Door, bus: Bus, dead: Queue[Message], decide: Decide, act: Act
) -> None:
    before = decide()
    for future in publish(bus, before, act(before)):
        future.result(PATIENCE_S)
    told = [decide() for _ in range(50)]

    with postgres.paused():
        confirmed = [future for decision in told for future in publish(bus, decision, act(decision))]
        with grpc.insecure_channel(door.address) as channel, pytest.raises(grpc.RpcError) as refused:
            ResultsServiceStub(channel).GetDecision(
                results_pb2.GetDecisionRequest(frame_id=before.frame_id), timeout=PATIENCE_S
            )
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not any(future.done() for future in confirmed)

    for future in confirmed:
        future.result(PATIENCE_S)
    everything_is_there_once(door, [before, *told], dead)


def test_a_client_that_stalls_with_the_ledgers_turn_loses_it(
    door: Door, url: str, bus: Bus, dead: Queue[Message], decide: Decide, act: Act
) -> None:
    stalled = postgresql.postgresql_engine(make_url(url), "test")
    with stalled.connect() as connection:
        connection.execute(text("UPDATE ledger_cursor SET last = last"))
        decision = decide()
        for future in publish(bus, decision, act(decision)):
            future.result(PATIENCE_S)
        connection.invalidate()
    stalled.dispose()
    everything_is_there_once(door, [decision], dead)
