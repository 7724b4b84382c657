"""The training service behind its real door, for tests that talk to it as everybody does."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from inspectbus.api.v1 import model_pb2, model_pb2_grpc, training_pb2, training_pb2_grpc
from inspectbus.bus import connect
from inspectbus.runtime.rpc_server import Door
from inspectbus.training.service import open_service
from inspectbus.training.settings import TrainingSettings
from inspectbus.training.worker import Compare, Train

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Service:
    """An open service, and the stubs of its door."""

    settings: TrainingSettings
    door: Door
    trainings: training_pb2_grpc.TrainingServiceStub
    models: model_pb2_grpc.ModelServiceStub

    def start(self, data: str = "parts", **fields: Any) -> training_pb2.Job:
        plan = training_pb2.TrainingPlan(data=data, **{"backbone": "test_efficientnet", **fields})
        return self.trainings.StartTraining(training_pb2.StartTrainingRequest(plan=plan), timeout=PATIENCE_S).job

    def compare(self, data: str = "parts", **fields: Any) -> training_pb2.Job:
        plan = training_pb2.ComparisonPlan(data=data, **{"backbone": "test_efficientnet", **fields})
        return self.trainings.CompareModels(training_pb2.CompareModelsRequest(plan=plan), timeout=PATIENCE_S).job

    def report(self, job_id: str) -> list[bytes]:
        """The parts of the file, as they came."""
        request = training_pb2.ReadReportRequest(job_id=job_id)
        return [answer.zip for answer in self.trainings.ReadReport(request, timeout=PATIENCE_S)]

    def get(self, job_id: str) -> training_pb2.Job:
        return self.trainings.GetJob(training_pb2.GetJobRequest(job_id=job_id), timeout=PATIENCE_S).job

    def cancel(self, job_id: str) -> training_pb2.Job:
        return self.trainings.CancelJob(training_pb2.CancelJobRequest(job_id=job_id), timeout=PATIENCE_S).job

    def watch(self, job_id: str, patience_s: float = PATIENCE_S) -> Iterator[training_pb2.Job]:
        """Every state of the job that the door tells, until the stream ends."""
        request = training_pb2.WatchJobRequest(job_id=job_id)
        for answer in self.trainings.WatchJob(request, timeout=patience_s):
            yield answer.job

    def model(self, name: str, **which: Any) -> model_pb2.Model:
        return self.models.GetModel(model_pb2.GetModelRequest(name=name, **which), timeout=PATIENCE_S).model

    def list_models(self, name: str = "") -> list[model_pb2.Model]:
        return list(self.models.ListModels(model_pb2.ListModelsRequest(name=name), timeout=PATIENCE_S).models)

    def set_alias(self, alias: str, version: str, name: str = "parts", **fields: Any) -> model_pb2.AliasChange:
        """The change; empty when there was none."""
        request = model_pb2.SetAliasRequest(name=name, alias=alias, version=version, **fields)
        return self.models.SetAlias(request, timeout=PATIENCE_S).change

    def rollback(self, alias: str = "production", name: str = "parts", **fields: Any) -> model_pb2.AliasChange:
        request = model_pb2.RollbackRequest(name=name, alias=alias, **fields)
        return self.models.Rollback(request, timeout=PATIENCE_S).change

    def alias_history(self, name: str = "parts", **fields: Any) -> list[model_pb2.AliasChange]:
        request = model_pb2.ListAliasHistoryRequest(name=name, **fields)
        return list(self.models.ListAliasHistory(request, timeout=PATIENCE_S).changes)

    def outcome(self, job_id: str, patience_s: float = PATIENCE_S) -> training_pb2.Job:
        """The job, once it has ended."""
        *_, last = self.watch(job_id, patience_s)
        return last


Open = Callable[..., AbstractContextManager[Service]]
"""Opens one more service with a training and settings of its own, as another replica would."""


@contextmanager
def open_training_service(
    folder: Path, train: Train | None, compare: Compare | None = None, **settings: Any
) -> Iterator[Service]:
    """A service on folder/state, which reads its data below folder/data."""
    told = TrainingSettings(
        **{
            "state_dir": folder / "state",
            "data_root": folder / "data",
            "port": 0,
            "metrics_port": 0,
            "drain_s": 10.0,
            "lease_s": 3.0,
            "bus_url": f"embedded://{uuid.uuid4()}",
            **settings,
        }
    )
    with ExitStack() as house:
        bus = house.enter_context(connect(told.bus_url))
        door = house.enter_context(open_service(told, bus, train=train, compare=compare))
        channel = house.enter_context(grpc.insecure_channel(door.address))
        yield Service(
            told, door, training_pb2_grpc.TrainingServiceStub(channel), model_pb2_grpc.ModelServiceStub(channel)
        )


def render_parts(folder: Path, count: int, side: int) -> None:
    """`count` good and as many defective images: noise, and noise with a bright scratch."""
    random = np.random.default_rng(7)
    for label in ("good", "defective"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = random.normal(100, 8, (side, side, 3)).clip(0, 255).astype(np.uint8)
            if label == "defective":
                x, y = (int(at) for at in random.integers(side // 4, side // 2, 2))
                cv2.line(image, (x, y), (x + side // 3, y + side // 4), (255, 255, 255), max(2, side // 12))
            cv2.imwrite(str(folder / label / f"{number}.png"), image)


def named_fields(error: grpc.RpcError) -> list[str]:
    """The request fields that a refused call's details name."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None
    fields = []
    for detail in status.details:
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            fields += [violation.field for violation in request.field_violations]
    return fields
