"""A preprocessing service on its own bus, with a model owner beside it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest

from inspectbus.api.v1 import preprocessing_pb2 as pb
from inspectbus.api.v1.decision_pb2 import Decision
from inspectbus.api.v1.frame_pb2 import LABEL_GOOD, Frame
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.api.v1.preprocessing_pb2_grpc import PreprocessingServiceStub
from inspectbus.bus import Bus, Delivery, Lane, Message, Subscription, topics
from inspectbus.bus.embedded import EmbeddedBus, Limits
from inspectbus.domain.preparation import Preparation
from inspectbus.preprocessing.service import open_service
from inspectbus.preprocessing.settings import PreprocessingSettings
from inspectbus.runtime.rpc_server import Door
from inspectbus.stores.frames import FrameStore
from tests.doubles.model_owner import ModelOwner, card_for, model_owner
from tests.doubles.pictures import encoded, textured

PREPARATION = Preparation(colour="grey", width=64, height=48)
PATIENCE_S = 20.0


@dataclass
class Line:
    """What stands around the service: the cameras before it, inference and results after it."""

    bus: Bus
    inference: Subscription
    door: Door
    stub: PreprocessingServiceStub
    models: ModelOwner
    store: FrameStore
    prepared: Queue[tuple[Message, PreparedFrame]]
    decisions: Queue[tuple[Message, Decision]]
    dead: Queue[Message]

    def put_recipe(self, yaml: str = "name: cells\nmodel: cells\n") -> pb.RecipeVersion:
        return self.stub.PutRecipe(pb.PutRecipeRequest(yaml=yaml), timeout=PATIENCE_S).recipe

    def send(self, frame: Frame, lane: Lane = Lane.LIVE) -> None:
        """Publishes and waits until the bus confirms."""
        message = Message(frame.SerializeToString(), ("line-1", "top"), "test", frame.frame_id, lane)
        self.bus.publish(topics.FRAMES, message).result(PATIENCE_S)


@pytest.fixture
def bus() -> Iterator[Bus]:
    limits = Limits(retry_delay_s=0.01, max_attempts=3, publish_patience_s=5)
    with EmbeddedBus(f"preprocessing-{uuid.uuid4()}", limits) as bus:
        yield bus


@pytest.fixture
def models() -> Iterator[tuple[ModelOwner, str]]:
    with model_owner() as (owner, address):
        owner.cards["cells", "production"] = card_for(PREPARATION)
        yield owner, address


@pytest.fixture
def settings(tmp_path: Path, models: tuple[ModelOwner, str]) -> PreprocessingSettings:
    return PreprocessingSettings.load(state_dir=tmp_path, port=0, metrics_port=0, models_address=models[1], drain_s=5)


@pytest.fixture
def line(bus: Bus, settings: PreprocessingSettings, models: tuple[ModelOwner, str]) -> Iterator[Line]:
    prepared: Queue[tuple[Message, PreparedFrame]] = Queue()
    decisions: Queue[tuple[Message, Decision]] = Queue()
    dead: Queue[Message] = Queue()

    def infer(delivery: Delivery) -> None:
        prepared.put((delivery.message, PreparedFrame.FromString(delivery.message.body)))
        delivery.done()

    def record(delivery: Delivery) -> None:
        decisions.put((delivery.message, Decision.FromString(delivery.message.body)))
        delivery.done()

    inference = bus.subscribe(topics.PREPARED, "inference", infer)
    bus.subscribe(topics.DECISIONS, "results", record)
    bus.follow(topics.DEAD, dead.put)
    with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
        store = FrameStore((settings.state_dir / "frames").as_uri())
        stub = PreprocessingServiceStub(channel)
        yield Line(bus, inference, door, stub, models[0], store, prepared, decisions, dead)


def a_frame(image: bytes | None = None, /, **fields: Any) -> Frame:
    frame = Frame(
        frame_id=str(uuid.uuid4()),
        line="line-1",
        station="top",
        run_id="run-1",
        source_item="cell.png",
        recipe="cells",
        image=encoded(textured()) if image is None else image,
        truth=LABEL_GOOD,
    )
    frame.captured_at.GetCurrentTime()
    for name, value in fields.items():
        setattr(frame, name, value)
    return frame
