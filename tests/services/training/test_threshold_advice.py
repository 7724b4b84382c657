"""AdviseThreshold: a version's own validation scores in, thresholds with bounds out; and why not, where not."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest

from inspectbus.api.v1 import model_pb2
from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.training.advice import advise, trade_off
from inspectbus.training.calibration import Floats, Labels
from inspectbus_client import Client
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.tiny_model import tiny_version
from tests.doubles.training_service import PATIENCE_S, Service, named_fields


def judged(good: int = 400, defective: int = 200) -> tuple[Labels, Floats]:
    """Labels and scores of a validation part."""
    labels = np.array([0] * good + [1] * defective)
    return labels, 1 / (1 + np.exp(-np.random.default_rng(0).normal(3 * labels - 2, 1)))


def trained(service: Service, training: ScriptedTraining, folder: Path, labels: Labels, scores: Floats) -> str:
    """A version, registered and in production, that said this of its validation part."""
    words = ["defective" if label else "good" for label in labels]
    training.give(tiny_version(folder, "parts", validation=list(zip(words, scores.tolist(), strict=True))))
    job = service.outcome(service.start().job_id)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    return job.model_version


def test_the_advice_is_that_of_the_versions_validation_scores(
    service: Service, training: ScriptedTraining, tmp_path: Path
) -> None:
    labels, scores = judged()
    version = trained(service, training, tmp_path, labels, scores)

    with Client.connect({"training": service.door.address}) as client:
        found = client.advise_threshold("parts", escape_ppm=50_000, held_limit=0.1)
        by_version = client.advise_threshold("parts", escape_ppm=50_000, held_limit=0.1, version=version)

    expected = advise(labels, scores, 50_000, 0.1)
    assert by_version == found
    assert (found.name, found.version, found.good, found.defective) == ("parts", version, 400, 200)
    assert found.advice.qualified_below == expected.thresholds.qualified_below
    assert found.advice.threshold == expected.thresholds.defective_from
    assert found.advice.qualified_below < found.advice.threshold
    for share in ("escape", "overkill", "held"):
        assert vars(getattr(found.advice, share)) == vars(getattr(expected, share))
    assert found.advice.held_defective == expected.held_defective
    assert [each.threshold for each in found.curve] == [
        each.thresholds.defective_from for each in trade_off(labels, scores, 0.1)
    ]


@pytest.mark.parametrize(
    ("asked", "code", "field", "words"),
    [
        ({"escape_ppm": 500}, grpc.StatusCode.FAILED_PRECONDITION, "escape_ppm", "500 ppm takes 5,990 of them"),
        (
            {"escape_ppm": 5e4, "held_limit": 0.001},
            grpc.StatusCode.FAILED_PRECONDITION,
            "held_limit",
            "with 400 good images",
        ),
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "escape_ppm", "escape_ppm is 0"),
        ({"escape_ppm": float("nan")}, grpc.StatusCode.INVALID_ARGUMENT, "escape_ppm", "is nan"),
        ({"escape_ppm": 5e4, "held_limit": 1.5}, grpc.StatusCode.INVALID_ARGUMENT, "held_limit", "is 1.5"),
        ({"escape_ppm": 5e4, "name": "a/b"}, grpc.StatusCode.INVALID_ARGUMENT, "name", ""),
        ({"escape_ppm": 5e4, "alias": "canary"}, grpc.StatusCode.NOT_FOUND, "alias", "canary"),
        ({"escape_ppm": 5e4, "version": "0" * 16}, grpc.StatusCode.NOT_FOUND, "version", "0000"),
    ],
    ids=str,
)
def test_limits_that_cannot_be_shown_and_wrong_questions_are_refused_by_their_field(
    service: Service,
    training: ScriptedTraining,
    tmp_path: Path,
    asked: dict[str, str | float],
    code: grpc.StatusCode,
    field: str,
    words: str,
) -> None:
    trained(service, training, tmp_path, *judged())
    which = {} if "version" in asked else {"alias": "production"}
    request = model_pb2.AdviseThresholdRequest(**{"name": "parts", **which, **asked})  # type: ignore[arg-type]

    with pytest.raises(grpc.RpcError) as refused:
        service.models.AdviseThreshold(request, timeout=PATIENCE_S)

    assert refused.value.code() == code
    assert named_fields(refused.value) == [field]
    assert words in (refused.value.details() or "")


@pytest.mark.parametrize(
    ("good", "defective", "words"),
    [(0, 0, "train it again"), (20, 0, "only good images"), (0, 20, "only defective images")],
)
def test_a_version_that_cannot_say_is_refused_with_the_reason(
    service: Service, training: ScriptedTraining, tmp_path: Path, good: int, defective: int, words: str
) -> None:
    trained(service, training, tmp_path, *judged(good, defective))
    request = model_pb2.AdviseThresholdRequest(name="parts", alias="production", escape_ppm=5e5)

    with pytest.raises(grpc.RpcError) as refused:
        service.models.AdviseThreshold(request, timeout=PATIENCE_S)

    assert words in (refused.value.details() or "")


def test_a_version_whose_scores_were_changed_in_the_store_is_not_believed(
    service: Service, training: ScriptedTraining, tmp_path: Path
) -> None:
    version = trained(service, training, tmp_path, *judged())
    (file,) = (tmp_path / "state").glob(f"models/parts/{version}/validation.csv")
    file.write_text(file.read_text().replace("defective", "good", 50))
    request = model_pb2.AdviseThresholdRequest(name="parts", version=version, escape_ppm=5e4)

    with pytest.raises(grpc.RpcError) as refused:
        service.models.AdviseThreshold(request, timeout=PATIENCE_S)

    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert named_fields(refused.value) == ["version"]
    assert f"version {version}: model file validation.csv" in (refused.value.details() or "")
