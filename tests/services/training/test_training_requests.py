"""What StartTraining refuses, and how it names the fault."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest

from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.training.augmentation import Augmentation
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.training_service import PATIENCE_S, Service, named_fields, open_training_service


@pytest.mark.parametrize("data", ["../secret", "parts/../../secret", "{folder}/secret", "link-out", "..", "/", "/etc"])
def test_data_outside_the_data_root_is_refused(folder: Path, service: Service, data: str) -> None:
    # given a folder that would do, if only it lay inside
    _render_classes(folder / "secret")
    (folder / "data/link-out").symlink_to(folder / "secret")

    refusal = _refusal(service, data=data.format(folder=folder))

    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named_fields(refusal) == ["plan.data"]
    assert "lies outside" in str(refusal.details())


def test_a_folder_inside_the_data_root_may_be_named_relative_or_absolute(
    folder: Path, service: Service, training: ScriptedTraining
) -> None:
    for data in ("parts", "./parts", str(folder / "data/parts")):
        assert service.start(data).model == ""
        assert training.begun.get(timeout=PATIENCE_S).model == "parts"
        training.succeed()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"data": ""}, "plan.data"),
        ({"data": "no-such-folder"}, "plan.data"),
        ({"data": "unlabelled"}, "plan.data"),
        ({"data": "parts/good/0.png"}, "plan.data"),
        ({"data": "parts\0x"}, "plan.data"),
        ({"data": "é" * 20_000}, "plan.data"),
        ({"data": "link-to-latin"}, "plan.data"),
        ({"data": "pipe"}, "plan.data"),
        ({"epochs": 1001}, "plan.epochs"),
        ({"input_size": 31}, "plan.input_size"),
        ({"input_size": 2049}, "plan.input_size"),
        ({"seed": 2**32}, "plan.seed"),
        ({"depth": "deep"}, "plan.depth"),
        ({"batch": 1}, "plan.batch"),
        ({"precision": "fp16"}, "plan.precision"),
        ({"views": 3}, "plan.views"),
        ({"dropout": 1.0}, "plan.dropout"),
        ({"augmentation": pb.Augmentation(noise=-1)}, "plan.augmentation.noise"),
        ({"augmentation": pb.Augmentation(light=float("nan"))}, "plan.augmentation.light"),
        ({"backbone": "resnet-of-my-dreams"}, "plan.backbone"),
        ({"backbone": "x" * 101}, "plan.backbone"),
        ({"backbone": "../../etc/passwd"}, "plan.backbone"),
        ({"model": "My Model"}, "plan.model"),
        ({"model": "a.b"}, "plan.model"),
        ({"model": "trailing\n"}, "plan.model"),
    ],
)
def test_a_wrong_plan_is_refused_by_its_field_and_leaves_no_job(
    folder: Path, service: Service, fields: dict[str, Any], named: str
) -> None:
    unlabelled = folder / "data/unlabelled"
    unlabelled.mkdir()
    latin = folder / "data" / os.fsdecode(b"m\xfcller")
    _render_classes(folder / "data/later-latin")  # OpenCV writes to no such path
    (folder / "data/later-latin").rename(latin)
    (folder / "data/link-to-latin").symlink_to(latin)
    _render_classes(folder / "data/pipe")
    os.mkfifo(folder / "data/pipe/good/9.png")
    cv2.imwrite(str(unlabelled / "0.png"), np.zeros((32, 32, 3), np.uint8))

    refusal = _refusal(service, **fields)

    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named_fields(refusal) == [named]
    assert refusal.details()
    assert not service.trainings.ListJobs(pb.ListJobsRequest(), timeout=PATIENCE_S).jobs


def test_an_empty_request_names_the_data(service: Service) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        service.trainings.StartTraining(pb.StartTrainingRequest(), timeout=PATIENCE_S)
    assert named_fields(refused.value) == ["plan.data"]


def test_a_seed_of_zero_is_a_seed_and_not_the_default(folder: Path, training: ScriptedTraining) -> None:
    with open_training_service(folder, training, seed=7) as service:
        assert service.start(seed=0).plan.seed == 0
        assert service.start().plan.seed == 7


def test_how_deep_and_how_to_learn_reach_the_training_as_asked(service: Service, training: ScriptedTraining) -> None:
    varied = pb.Augmentation(flips=False, turns=False, light=0.1)
    service.start(depth="whole", batch=16, precision="bf16", views=4, dropout=0.0, augmentation=varied)

    plan = training.begun.get(timeout=PATIENCE_S)

    assert (plan.depth, plan.batch, plan.precision, plan.views, plan.dropout) == ("whole", 16, "bf16", 4, 0.0)
    assert plan.augmentation == Augmentation(flips=False, turns=False, light=0.1)
    assert plan.epochs == service.settings.whole_epochs
    training.succeed()


def test_the_models_name_is_made_from_the_datas(folder: Path, service: Service) -> None:
    _render_classes(folder / "data/My Parts_2")

    assert service.start("My Parts_2").plan.model == "my-parts-2"
    assert service.start("My Parts_2", model="brackets").plan.model == "brackets"


def _refusal(service: Service, **fields: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        service.start(**fields)
    return refused.value


def _render_classes(folder: Path) -> None:
    for label in ("good", "defective"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / label / "0.png"), np.zeros((32, 32, 3), np.uint8))
