"""What a training service told MLflow, once it has gone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inspectbus.training.tracking import default_url

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def runs_of(url: str, experiment: str) -> list[Run]:
    """All of the experiment in the store of that URL."""
    from mlflow import MlflowClient  # here, because the tracker must be the first that imports it

    client = MlflowClient(tracking_uri=url)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def run_of(folder: Path, experiment: str, job_id: str) -> tuple[MlflowClient, Run]:
    """The job's run in the store of the service on folder/state, and a client to ask for more."""
    from mlflow import MlflowClient  # here, because the tracker must be the first that imports it

    client = MlflowClient(tracking_uri=default_url(folder / "state"))
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id], f"tags.`inspectbus.job_id` = '{job_id}'")
    return client, run
