"""What MLflow is told, and what happens when it does not listen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import Counter

from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.training.augmentation import Augmentation
from inspectbus.training.tracking import Tracker, default_url
from tests.doubles.mlflow_runs import run_of, runs_of
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.training_service import Service, open_training_service

TRACK_IN_PEACE = """
import sys
from pathlib import Path
from prometheus_client import Counter
from inspectbus.training.tracking import Tracker, default_url
folder = Path(sys.argv[1])
failures = Counter("failures", "", registry=None)
with Tracker(default_url(folder), folder / "mlruns", failures, patience_s=100) as tracker:
    run = tracker.begin("parts", "a run", {"epochs": 1}, {})
    run.log({"loss": 1.0}, step=1)
    run.end("FINISHED")
assert failures._value.get() == 0
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
"""

TRACK_WHEN_TOLD = """
import os, sys
from pathlib import Path
from prometheus_client import Counter
from inspectbus.training.tracking import Tracker
os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
import mlflow.store.tracking.sqlalchemy_store
url, folder, name = sys.argv[1:]
failures = Counter("failures", "", registry=None)
print("ready", flush=True)
sys.stdin.read(1)
with Tracker(url, Path(folder), failures, patience_s=100) as tracker:
    run = tracker.begin("parts", name, {"epochs": 1}, {})
    run.log({"loss": 1.0}, step=1)
    run.end("FINISHED")
print(int(failures._value.get()))
"""


def test_a_run_holds_parameters_curves_final_figures_and_where_it_led(folder: Path, training: ScriptedTraining) -> None:
    # given a training of two epochs, recorded before the service has gone
    with open_training_service(folder, training) as service:
        job = service.start(epochs=2, seed=11)
        training.epoch()
        training.epoch()
        training.succeed()
        done = service.outcome(job.job_id)

    # then
    client, run = run_of(folder, "parts", job.job_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "data": "parts",
        "model": "parts",
        "backbone": "test_efficientnet",
        "epochs": "2",
        "seed": "11",
        "input_size": str(done.plan.input_size),
        "depth": "upper",
        "batch": "32",
        "precision": "auto",
        "views": "1",
        "dropout": "0.5",
        "augmentation": str(Augmentation().model_dump()),
    }
    curve = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in curve] == [(1, 1.0), (2, 0.5)]
    assert run.data.metrics["final_f1"] == 1.0
    assert run.data.metrics["threshold"] == 0.5
    assert run.data.tags["inspectbus.model_version"] == done.model_version
    assert run.data.tags["mlflow.user"] == "local"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["model.json"]


@pytest.mark.parametrize(("ending", "status"), [("fail", "FAILED"), ("cancel", "KILLED")])
def test_a_run_that_ends_otherwise_says_so(folder: Path, training: ScriptedTraining, ending: str, status: str) -> None:
    with open_training_service(folder, training) as service:
        job = service.start()
        if ending == "fail":
            training.fail(ValueError("no"))
        else:
            training.begun.get(timeout=30)
            service.cancel(job.job_id)
        service.outcome(job.job_id)

    assert run_of(folder, "parts", job.job_id)[1].info.status == status


def test_a_tracking_store_that_fails_is_counted_and_fails_no_training(folder: Path, training: ScriptedTraining) -> None:
    (folder / "not-a-database").mkdir()
    url = f"sqlite:///{folder / 'not-a-database'}"
    with open_training_service(folder, training, tracking_url=url) as service:
        job = service.start()
        training.epoch()
        training.succeed()

        assert service.outcome(job.job_id).state == pb.JOB_STATE_SUCCEEDED
        _until_metric(service, "inspectbus_training_tracking_failures_total", above=3)


def test_the_tracker_writes_nothing_to_the_terminal_and_reports_to_nobody(tmp_path: Path) -> None:
    # In a process of its own: MLflow decides on import, and never reports from where it sees pytest or a CI.
    done = subprocess.run(
        [sys.executable, "-c", TRACK_IN_PEACE, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert (tmp_path / "mlflow.db").stat().st_size > 0


def test_two_first_trainings_at_once_both_have_their_runs(database_url: str, tmp_path: Path) -> None:
    # given two processes that have MLflow in memory, and a database where nobody has made its tables
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as both:
        processes = [
            both.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", TRACK_WHEN_TOLD, url, str(tmp_path), name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for name in ("one", "other")
        ]
        for process in processes:
            both.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

        # when
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        failures = [process.communicate(timeout=120)[0] for process in processes]

    # then
    assert failures == ["0\n", "0\n"]
    assert {run.info.run_name: run.info.status for run in runs_of(url, "parts")} == {
        "one": "FINISHED",
        "other": "FINISHED",
    }


def test_what_mlflow_imports_of_sqlalchemy_is_there_before_any_service_works() -> None:
    # Or statements on other threads fail while MLflow is being imported; the moment is too short to be met in a test.
    code = "import sys, inspectbus.stores.database; sys.exit('sqlalchemy.orm' not in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60).returncode == 0


def test_a_tracker_that_hangs_is_left_after_its_patience_and_drops_what_is_too_much(tmp_path: Path) -> None:
    # given a store whose first entry never ends
    failures = Counter("failures", "", registry=None)
    hanging = threading.Event()

    def hang() -> None:
        hanging.wait(60)

    tracker = Tracker(default_url(tmp_path), tmp_path / "mlruns", failures, patience_s=0.2)
    with tracker:
        tracker.send(hang)

        # when more comes than may wait
        for _ in range(1100):
            tracker.send(lambda: None)

    # then we are here, and what did not fit was counted
    assert failures._value.get() >= 99
    hanging.set()


def _until_metric(service: Service, name: str, above: float) -> None:
    pause = threading.Event()
    for _ in range(300):
        with urllib.request.urlopen(f"http://{service.door.metrics_address}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        values = [float(line.split()[-1]) for line in lines if line.startswith(name)]
        if values and values[0] > above:
            return
        pause.wait(0.1)
    raise AssertionError(f"{name} never rose above {above}")
