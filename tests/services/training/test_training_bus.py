"""Doors and workers apart, as they meet on the bus, and the news of aliases: on both forms of the bus."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inspectbus.api.v1 import model_pb2
from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.bus import Message, connect
from inspectbus.bus.topics import EVENTS, TRAINING
from inspectbus.errors import QueueFull
from inspectbus.line import open_records
from inspectbus_client import Client
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.training_service import PATIENCE_S, Open, Service

LONG_S = 600.0
"""A lease whose beat is far longer than a test: what happens meanwhile, a message made happen."""


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def bus_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "embedded":
        yield f"embedded://{uuid.uuid4()}"
    else:
        yield request.getfixturevalue("rabbitmq_vhost").url


@pytest.fixture
def door(open_one: Open, bus_url: str) -> Iterator[Service]:
    with open_one(None, role="door", bus_url=bus_url) as service:
        yield service


def test_a_worker_elsewhere_is_woken_by_the_message(
    door: Service, open_one: Open, bus_url: str, training: ScriptedTraining
) -> None:
    with open_one(training, role="worker", bus_url=bus_url, lease_s=LONG_S), connect(bus_url) as bus:
        training.succeed()
        job = door.start()
        assert training.begun.get(timeout=PATIENCE_S).data == "parts"
        assert door.outcome(job.job_id).state == pb.JOB_STATE_SUCCEEDED
        assert bus.depth(TRAINING, "training") == 0


def test_a_worker_with_its_hands_full_holds_no_message_and_finds_the_job_when_they_are_free(
    door: Service, open_one: Open, bus_url: str, training: ScriptedTraining
) -> None:
    with open_one(training, role="worker", bus_url=bus_url, lease_s=LONG_S):
        door.start(model="first")
        training.begun.get(timeout=PATIENCE_S)
        # More than a worker of prefetch 1 could hold back.
        later = [door.start(model=name) for name in ("second", "third")]

        for _ in range(3):
            training.succeed()

        assert [door.outcome(job.job_id).state for job in later] == [pb.JOB_STATE_SUCCEEDED] * 2


def test_a_message_without_a_job_is_let_go(door: Service, open_one: Open, bus_url: str) -> None:
    with connect(bus_url) as bus, open_one(ScriptedTraining(), role="worker", bus_url=bus_url, lease_s=LONG_S):
        body = pb.JobRequested(job_id="gone").SerializeToString()
        bus.publish(TRAINING, Message(body, ("job", "requested"), "test")).result(PATIENCE_S)
        bus.publish(TRAINING, Message(body, ("job", "requested"), "test")).result(PATIENCE_S)
        assert bus.depth(TRAINING, "training") == 0


def test_a_door_takes_no_job_and_a_worker_answers_no_call_but_health(
    door: Service, open_one: Open, bus_url: str
) -> None:
    job = door.start()
    assert door.get(job.job_id).state == pb.JOB_STATE_QUEUED
    assert door.cancel(job.job_id).state == pb.JOB_STATE_CANCELLED

    with open_one(ScriptedTraining(), role="worker", bus_url=bus_url) as worker:
        with pytest.raises(grpc.RpcError) as refused:
            worker.list_models()
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        with grpc.insecure_channel(worker.door.address) as channel:
            health_stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = health_stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_command_that_does_not_train_takes_no_jobs(tmp_path: Path) -> None:
    with open_records(tmp_path, takes_jobs=False) as records, Client.connect(records) as client:
        assert client.models() == []
        assert "training-worker" not in {thread.name for thread in threading.enumerate()}


def test_an_alias_change_is_news_on_the_bus(open_one: Open, bus_url: str, training: ScriptedTraining) -> None:
    with ExitStack() as house:
        heard: queue.Queue[Message] = queue.Queue()
        reader = house.enter_context(connect(bus_url))
        reader.follow(EVENTS, heard.put, key=("model", "alias-changed"))
        service = house.enter_context(open_one(training, bus_url=bus_url))
        versions = []
        for _ in range(2):
            training.succeed()
            versions.append(service.outcome(service.start().job_id).model_version)

        back = service.rollback(reason="no good")

        told = [heard.get(timeout=PATIENCE_S) for _ in range(3)]
        changes = [model_pb2.AliasChange.FromString(message.body) for message in told]
        assert [(change.version, change.previous) for change in changes] == [
            (versions[0], ""),
            (versions[1], versions[0]),
            (versions[0], versions[1]),
        ]
        assert changes[2] == back
        assert {(message.key, message.subject, message.source) for message in told} == {
            (("model", "alias-changed"), "parts@production", "training")
        }
        assert service.set_alias("production", versions[0]) == model_pb2.AliasChange()
        assert heard.empty()


def test_a_bus_that_takes_nothing_fails_no_call(
    open_one: Open, training: ScriptedTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise QueueFull("it is full")

    monkeypatch.setattr("inspectbus.bus.embedded.EmbeddedBus.publish", full)
    with open_one(training) as service:
        training.succeed()
        done = service.outcome(service.start().job_id)

        assert (done.state, done.not_promoted) == (pb.JOB_STATE_SUCCEEDED, "")
