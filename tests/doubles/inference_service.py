"""A running inference service as tests see it, and an engine that can be hurt."""

from __future__ import annotations

import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from inspectbus.api.v1.decision_pb2 import Decision
from inspectbus.api.v1.inference_pb2 import GetEngineRequest, GetEngineResponse, ServedModel
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus import Bus, Delivery, Lane, connect, topics
from inspectbus.bus.messages import prepared_message
from inspectbus.inference.engine import Engine, Images, Output
from inspectbus.inference.service import open_service
from inspectbus.inference.settings import InferenceSettings
from inspectbus.runtime.rpc_server import Door
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.tiny_model import DARK

PATIENCE_S = 20.0


def comes_true(ask: Callable[[], bool]) -> bool:
    """Asks again and again, for as long as patience lasts."""
    until_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()  # who asks all the time keeps from work those whom it waits for
    while not (true := ask()) and time.monotonic() < until_s:
        pause.wait(0.002)
    return true


@dataclass
class Running:
    """The service, its doors, and every decision that came out of it."""

    settings: InferenceSettings
    door: Door
    stub: InferenceServiceStub
    bus: Bus
    decided: Queue[Decision]

    def judge(self, *frames: PreparedFrame, lane: Lane = Lane.LIVE) -> list[Decision]:
        """Publishes the frames, and gives their decisions in the order of the frames."""
        for future in [self.bus.publish(topics.PREPARED, prepared_message(frame, "test", lane)) for frame in frames]:
            future.result(PATIENCE_S)
        found = {(decision := self.decided.get(timeout=PATIENCE_S)).frame_id: decision for _ in frames}
        assert self.decided.empty(), "more decisions than frames"
        return [found[frame.frame.frame_id] for frame in frames]

    def engine(self, model: str = "") -> GetEngineResponse:
        return self.stub.GetEngine(GetEngineRequest(model=model), timeout=PATIENCE_S)

    def served(self, model: str, alias: str) -> ServedModel:
        """As the service tells of it; nothing where it serves no such thing."""
        return next(
            (each for each in self.engine().served if (each.model, each.alias) == (model, alias)), ServedModel()
        )

    def comes_to_serve(self, model: str, alias: str, version: str) -> bool:
        return comes_true(lambda: self.served(model, alias).model_version == version)

    def waits(self, count: int) -> bool:
        """Whether so many images come to wait."""
        return comes_true(lambda: self.engine().waiting == count)

    def comes_to_judge(self, version: str) -> bool:
        return comes_true(lambda: self.engine().model_version == version)

    def wait_ready(self) -> GetEngineResponse:
        """A frame from the bus waits for a first model, so its decision says that there is one."""
        self.judge(prepared_frame(DARK))
        engine = self.engine()
        assert engine.ready, engine.detail
        return engine

    def metric(self, name: str, **labels: str) -> float:
        """One sample of the service's metrics page; 0 where there is none yet."""
        url = f"http://{self.door.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        samples = (sample for family in families for sample in family.samples)
        return next((float(one.value) for one in samples if one.name == name and one.labels == labels), 0.0)


@contextmanager
def running(settings: InferenceSettings, bus_url: str = "") -> Iterator[Running]:
    """Opens the service, on a bus of its own where it is told none, and collects its decisions as results would."""
    decided: Queue[Decision] = Queue()

    def record(delivery: Delivery) -> None:
        decided.put(Decision.FromString(delivery.message.body))
        delivery.done()

    with connect(bus_url or f"embedded://{uuid.uuid4()}") as bus:
        bus.subscribe(topics.DECISIONS, "results", record)
        with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
            yield Running(settings, door, InferenceServiceStub(channel), bus, decided)


class TouchyEngine:
    """The real engine, but some grey levels hurt it: it raises on `poison`, gives NaN for `nonsense`, and stops while
    it is held.
    """

    def __init__(self, real: Engine) -> None:
        self._real = real
        self.name, self.device = real.name, real.device
        self.streams, self.best_batch = real.streams, real.best_batch
        self.poison: set[int] = set()
        self.nonsense: set[int] = set()
        self.seen: list[int] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, images: Images) -> Output:
        levels = images[:, 0, 0, 0].tolist()
        self.seen += levels
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if self.poison.intersection(levels):
            raise RuntimeError("out of memory, or so")
        output = self._real.infer(images)
        spoilt = [level in self.nonsense for level in levels]
        output.scores[spoilt] = np.nan
        if output.heatmaps is not None:
            output.heatmaps[spoilt] = np.nan
        return output


def field_of(error: grpc.RpcError) -> str:
    """The request field that a refusal names."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a failed call is both error and call
    assert status is not None
    bad = error_details_pb2.BadRequest()
    return next((bad.field_violations[0].field for detail in status.details if detail.Unpack(bad)), "")
