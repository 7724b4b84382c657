"""Which model versions exist, and which one an alias names now."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from inspectbus.api.v1 import model_pb2
from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import ModelNotReady
from inspectbus.stores.database import open_database, writing
from inspectbus.stores.model_directory import ModelDirectory
from inspectbus.stores.models import ModelStore
from inspectbus.training.jobs import LeaseLost
from inspectbus.training.registry import Registry
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.tiny_model import tiny_version
from tests.doubles.training_service import PATIENCE_S, Service, named_fields


def test_production_names_the_newest_training_and_older_versions_stay(
    service: Service, training: ScriptedTraining
) -> None:
    older, newer = (_trained(service, training) for _ in range(2))

    assert service.model("parts", alias="production").version == newer
    assert service.model("parts", version=older).aliases == []
    assert [(each.version, list(each.aliases)) for each in service.list_models()] == [
        (newer, ["production"]),
        (older, []),
    ]


def test_models_are_listed_by_name(service: Service, training: ScriptedTraining) -> None:
    _trained(service, training, model="one")
    two = _trained(service, training, model="two")

    assert [each.version for each in service.list_models("two")] == [two]
    assert [each.name for each in service.list_models()] == ["two", "one"]
    assert service.list_models("three") == []


def test_the_card_is_told_as_it_was_registered(service: Service, training: ScriptedTraining) -> None:
    version = _trained(service, training)

    model = service.model("parts", version=version)

    assert ModelCard.model_validate_json(model.card_json).version == version
    assert model.registered_at.ToMicroseconds() > 0


def test_other_services_resolve_the_alias_through_the_door(
    service: Service, training: ScriptedTraining, tmp_path: Path
) -> None:
    with ModelDirectory(service.door.address, tmp_path / "directory", fresh_s=0) as directory:
        with pytest.raises(ModelNotReady):
            directory.resolve("parts", "production")
        version = _trained(service, training)
        assert directory.resolve("parts", "production").version == version


@pytest.mark.parametrize(
    "request_",
    [
        model_pb2.GetModelRequest(name="parts", alias="production"),
        model_pb2.GetModelRequest(name="parts", version="0123456789abcdef"),
        model_pb2.GetModelRequest(name="parts", version="x" * 10_000),
    ],
)
def test_an_unknown_model_is_not_found(service: Service, request_: model_pb2.GetModelRequest) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        service.models.GetModel(request_, timeout=PATIENCE_S)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (model_pb2.GetModelRequest(alias="production"), "name"),
        (model_pb2.GetModelRequest(name="a/b", alias="production"), "name"),
        (model_pb2.GetModelRequest(name="parts", alias="Produktion"), "alias"),
        (model_pb2.GetModelRequest(name="parts"), "which"),
    ],
)
def test_a_wrong_question_is_refused_by_its_field(
    service: Service, request_: model_pb2.GetModelRequest, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        service.models.GetModel(request_, timeout=PATIENCE_S)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named_fields(refused.value) == [field]


def test_a_version_recorded_twice_is_one_version(database_url: str, tmp_path: Path) -> None:
    # given
    engine = open_database(database_url, "training")
    registry = Registry(engine, ModelStore(f"file://{tmp_path / 'store'}", tmp_path / "cache"))
    card = registry.publish(tiny_version(tmp_path, "parts"))

    # when
    for _ in range(2):
        with writing(engine) as connection:
            registry.record(connection, card)

    # then
    assert [each.version for each in registry.list_models()] == [card.version]
    engine.dispose()


def test_a_record_that_is_rolled_back_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    engine = open_database(database_url, "training")
    registry = Registry(engine, ModelStore(f"file://{tmp_path / 'store'}", tmp_path / "cache"))
    card = registry.publish(tiny_version(tmp_path, "parts"))

    def record_and_break() -> None:
        with writing(engine) as connection:
            registry.record(connection, card)
            raise LeaseLost

    with pytest.raises(LeaseLost):
        record_and_break()

    assert registry.list_models() == []
    engine.dispose()


def _trained(service: Service, training: ScriptedTraining, **fields: str) -> str:
    training.succeed()
    job = service.outcome(service.start(**fields).job_id)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    return job.model_version
