"""A training service whose trainings go as the test says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import Counter

from inspectbus.training.tracking import Tracker
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.training_service import Open, Service, open_training_service, render_parts


@pytest.fixture
def training() -> ScriptedTraining:
    return ScriptedTraining()


@pytest.fixture(scope="session")
def empty_tracking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store with its tables made, which takes seconds, and one empty run."""
    file = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    with Tracker(f"sqlite:///{file}", file.parent, Counter("failures", "", registry=None), patience_s=60) as tracker:
        tracker.begin("none", "none", {}, {}).end("FINISHED")
    return file


@pytest.fixture
def folder(tmp_path: Path, empty_tracking: Path) -> Path:
    """Where the service's state will lie, with one data set of eight images, 'parts', below its data root."""
    render_parts(tmp_path / "data/parts", count=4, side=32)
    (tmp_path / "state").mkdir()
    shutil.copy(empty_tracking, tmp_path / "state/mlflow.db")
    return tmp_path


@pytest.fixture
def open_one(folder: Path, database_url: str) -> Open:
    return partial(open_training_service, folder, database_url=database_url)


@pytest.fixture
def service(open_one: Open, training: ScriptedTraining) -> Iterator[Service]:
    with open_one(training) as service:
        yield service
