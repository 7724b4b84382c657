"""The real training behind the door: rendered images in, a version that can be asked for and fetched out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file
from structlog.testing import capture_logs

from inspectbus.api.v1 import model_pb2
from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.domain.model_version import Architecture, ModelCard, Normalisation
from inspectbus.networks.classifier import build
from inspectbus.stores import models
from tests.doubles.training_service import PATIENCE_S, Service, open_training_service, render_parts

BACKBONE = "test_efficientnet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with weights for the backbone, in place of the hub's."""
    network = build(Architecture(backbone=BACKBONE), Normalisation(mean=(127, 127, 127), std=(128, 128, 128)))
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(
        {name: value.contiguous() for name, value in network.backbone.state_dict().items()},
        folder / f"{BACKBONE}.safetensors",
    )
    return folder


@pytest.fixture
def real_service(folder: Path, weights: Path) -> Iterator[Service]:
    render_parts(folder / "data/plates", count=24, side=64)
    with open_training_service(folder, None, weights=weights, threads=1) as service:
        yield service


def test_a_real_training_gives_a_version_that_is_told_stored_and_recorded(real_service: Service) -> None:
    # when
    job = real_service.start("plates", backbone=BACKBONE, epochs=2, input_size=64, seed=3)
    told = list(real_service.watch(job.job_id))

    # then the watcher saw it train
    assert told[-1].state == pb.JOB_STATE_SUCCEEDED, told[-1].error
    stages = [each.progress.stage for each in told]
    assert [stage for stage in dict.fromkeys(stages) if stage] == [
        "reading",
        "features",
        "training",
        "threshold",
        "exporting",
        "registering",
    ]
    assert any("train_loss" in each.progress.figures for each in told)

    # and the registry names the version, whose bytes the store has whole
    model = real_service.model("plates", alias="production")
    assert model.version == told[-1].model_version
    card = ModelCard.model_validate_json(model.card_json)
    assert (card.version, card.seed, card.preparation.width) == (model.version, 3, 64)
    state_dir = real_service.settings.state_dir
    store = models.ModelStore(models.default_url(state_dir), state_dir / "fetched")
    assert models.read_card(store.fetch("plates", model.version)) == card

    # and thresholds are advised by what it said of its validation part
    asked = model_pb2.AdviseThresholdRequest(name="plates", alias="production", escape_ppm=9e5)
    advised = real_service.models.AdviseThreshold(asked, timeout=PATIENCE_S)
    assert (advised.good, advised.defective) == (card.data.validation_good, card.data.validation_defective)
    assert 0 < advised.advice.escape.at_most <= 0.9

    # and nothing was learnt from the held-out quarter
    counts = card.data
    learnt = counts.train_good + counts.train_defective + counts.validation_good + counts.validation_defective
    assert learnt == 36


def test_a_real_training_can_be_cancelled_in_its_middle(real_service: Service) -> None:
    job = real_service.start("plates", backbone=BACKBONE, epochs=1000, input_size=64)

    for each in real_service.watch(job.job_id):
        if each.progress.stage == "training" and each.state == pb.JOB_STATE_RUNNING:
            real_service.cancel(job.job_id)
    done = real_service.get(job.job_id)

    assert done.state == pb.JOB_STATE_CANCELLED
    assert real_service.list_models() == []


def test_a_real_training_whose_service_ends_goes_on_in_the_next_from_its_last_epoch(
    folder: Path, weights: Path
) -> None:
    # given a service that ends in the middle of a training longer than any test
    render_parts(folder / "data/plates", count=24, side=64)
    with open_training_service(folder, None, weights=weights, threads=1) as service:
        job = service.start("plates", backbone=BACKBONE, epochs=1000, input_size=64)
        before = _first_epoch(service, job.job_id, at_least=3)

    # when the next one opens
    with capture_logs() as told, open_training_service(folder, None, weights=weights, threads=1) as service:
        _first_epoch(service, job.job_id, at_least=before + 1)
        service.cancel(job.job_id)

        # then it did not begin anew
        assert service.outcome(job.job_id).state == pb.JOB_STATE_CANCELLED
    (resumed,) = [each for each in told if each["event"] == "going on from a checkpoint"]
    assert resumed["epoch"] >= before


def _first_epoch(service: Service, job_id: str, at_least: float) -> float:
    for each in service.watch(job_id):
        if (epoch := each.progress.figures.get("epoch", 0)) >= at_least:
            return epoch
    pytest.fail(f"the training ended before epoch {at_least}: {service.get(job_id)}")


def test_a_real_training_on_too_few_images_fails_in_words(real_service: Service) -> None:
    render_parts(real_service.settings.data_root / "pair", count=1, side=32)

    failed = real_service.outcome(real_service.start("pair", backbone=BACKBONE, epochs=1, input_size=32).job_id)

    assert failed.state == pb.JOB_STATE_FAILED
    assert "image" in failed.error
    assert "Traceback" not in failed.error
