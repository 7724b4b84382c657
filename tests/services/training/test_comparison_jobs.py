"""Comparisons as jobs: asked for, followed, cancelled, taken over, and read back as a report."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from sqlalchemy import create_engine, text

from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.errors import BadField
from inspectbus.stores.database import open_database
from inspectbus.training.comparison.terms import QUICK_IMAGES, Terms
from inspectbus.training.jobs import Jobs
from inspectbus.training.plan import Plan, Progress
from inspectbus.training.reports import PART_BYTES
from inspectbus.training.service import compare_on_whole_set
from inspectbus.training.settings import TrainingSettings
from inspectbus.training.worker import OnProgress
from tests.doubles.children import start_child
from tests.doubles.mlflow_runs import run_of
from tests.doubles.parts import TINY_BACKBONE, write_set, write_tiny_weights
from tests.doubles.scripted_comparison import PAGE, RECORD, ScriptedComparison
from tests.doubles.training_service import PATIENCE_S, Open, Service, named_fields, open_training_service

TINY = {"backbone": TINY_BACKBONE, "input_size": 64, "epochs": 1, "quick": True, "models": ["cnn", "svm"]}
PLAN = Plan(data="parts", model="parts", backbone=TINY_BACKBONE, epochs=1, seed=0, input_size=32)
"""A training, from before there were comparisons."""
REAL_PATIENCE_S = 240.0
"""Of a comparison that is no double: a quarter of a minute, and some minutes on a core that others want too."""
COMPARING = Path(__file__).with_name("comparing_process.py")


@pytest.fixture
def comparison() -> ScriptedComparison:
    return ScriptedComparison()


@pytest.fixture
def service(open_one: Open, comparison: ScriptedComparison) -> Iterator[Service]:
    with open_one(None, comparison) as service:
        yield service


# --- to its report


@pytest.mark.slow
def test_a_comparison_runs_to_the_report_of_the_command_and_registers_nothing(folder: Path) -> None:
    # given
    torch.set_num_threads(1)
    write_set(folder / "data/plates", good=40, defective=24)
    weights = write_tiny_weights(folder / f"{TINY_BACKBONE}.safetensors")

    # when
    with open_training_service(folder, None, weights=weights) as service:
        job = service.compare("plates", **TINY)
        seen = list(service.watch(job.job_id, REAL_PATIENCE_S))
        done = seen[-1]
        parts = service.report(job.job_id)
        models = service.list_models()

    # then
    assert (done.state, done.error) == (pb.JOB_STATE_SUCCEEDED, "")
    assert (done.model, done.model_version, models) == ("", "", [])
    assert done.comparison == pb.ComparisonPlan(
        data="plates",
        models=["cnn", "svm"],
        seeds=1,
        quick=True,
        images=QUICK_IMAGES,
        backbone=TINY_BACKBONE,
        epochs=1,
        input_size=64,
        depth="whole",
        turns=True,
    )
    assert "cnn, seed 0: training" in {each.progress.stage for each in seen}
    assert max(len(part) for part in parts) <= PART_BYTES
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as report:
        assert report.testzip() is None
        record = json.loads(report.read("report.json"))
        assert b"</html>" in report.read("report.html")
        assert "figure_6_f1.png" in report.namelist()
    assert {"data", "split", "models", "raw_models", "dimensions", "preprocessing"} <= set(record)
    assert set(record["models"]) == {"cnn", "svm", "floor"}
    f1 = record["models"]["cnn"]["f1"]
    assert 0 <= f1["low"] <= f1["mean"] <= f1["high"] <= 1
    # And MLflow has the same figures, and the pages.
    client, run = run_of(folder, "compared", job.job_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["cnn_f1"] == f1["mean"]
    assert run.data.metrics["raw_svm_average_precision"] == record["raw_models"]["svm"]["average_precision"]["mean"]
    assert run.data.params.items() >= {"data": "plates", "backbone": TINY_BACKBONE, "seeds": "1"}.items()
    assert {"report.html", "report.json"} == {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_report_is_read_through_every_door_of_the_store(
    open_one: Open, service: Service, comparison: ScriptedComparison
) -> None:
    job = service.compare()
    comparison.succeed()
    service.outcome(job.job_id)

    with open_one(None, role="door") as other:
        parts = other.report(job.job_id)

    assert len(parts) > 1, "what is sent in one part shows nothing of parts"
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as report:
        assert sorted(report.namelist()) == ["report.html", "report.json", "scores.png"]
        assert report.read("report.html").decode() == PAGE
        assert json.loads(report.read("report.json")) == RECORD


def test_a_watcher_hears_every_stage_of_a_comparison(service: Service, comparison: ScriptedComparison) -> None:
    job = service.compare(seeds=2)
    told = service.watch(job.job_id)
    comparison.begun.get(timeout=PATIENCE_S)

    for stage, done in (("reading", 3), ("cnn, seed 1: training", 1), ("bootstrap", 0)):
        comparison.tell(stage, done, total=4)
        heard = next(each for each in told if each.progress.stage == stage)
        assert heard.state == pb.JOB_STATE_RUNNING
        assert (heard.progress.done, heard.progress.total) == (done, 4)

    comparison.succeed()
    *_, last = told
    assert last.state == pb.JOB_STATE_SUCCEEDED


# --- what is asked for


def test_what_the_plan_leaves_open_is_as_the_command_has_it(service: Service, comparison: ScriptedComparison) -> None:
    job = service.compare(backbone="")

    assert job.comparison == pb.ComparisonPlan(
        data="parts",
        models=["cnn", "svm", "knn", "bpn", "mlp"],
        seeds=1,
        backbone=service.settings.backbone,
        epochs=14,
        input_size=300,
        depth="whole",
        turns=True,
    )
    terms = comparison.begun.get(timeout=PATIENCE_S)
    assert (terms, terms.plan.views) == (Terms.full(terms.plan), 4)


def test_what_is_asked_for_reaches_the_comparison(service: Service, comparison: ScriptedComparison) -> None:
    job = service.compare(models=["svm", "cnn", "svm"], seeds=3, images=90, turns=False, depth="upper", quick=True)

    terms = comparison.begun.get(timeout=PATIENCE_S)

    assert (terms.models, terms.seeds, terms.images, terms.shortened) == (("cnn", "svm"), 3, 90, True)
    assert (terms.plan.depth, terms.plan.views, terms.plan.augmentation.turns) == ("upper", 2, False)
    assert service.get(job.job_id).comparison == job.comparison
    assert (list(job.comparison.models), job.comparison.turns) == (["cnn", "svm"], False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"data": ""}, "plan.data"),
        ({"data": "no-such-folder"}, "plan.data"),
        ({"data": "../parts"}, "plan.data"),
        ({"models": ["cnn", "resnet"]}, "plan.models"),
        ({"seeds": 0}, "plan.seeds"),
        ({"seeds": 101}, "plan.seeds"),
        ({"epochs": 1001}, "plan.epochs"),
        ({"input_size": 31}, "plan.input_size"),
        ({"depth": "deep"}, "plan.depth"),
        ({"backbone": "resnet-of-my-dreams"}, "plan.backbone"),
    ],
)
def test_a_wrong_plan_is_refused_by_its_field_and_leaves_no_job(
    service: Service, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        service.compare(**fields)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named_fields(refused.value) == [named]
    assert not service.trainings.ListJobs(pb.ListJobsRequest(), timeout=PATIENCE_S).jobs


def test_a_training_never_joins_a_comparison_of_the_same_plan(database_url: str) -> None:
    engine = open_database(database_url, "training")
    jobs = Jobs(engine, max_queued=9, lease_s=30, max_attempts=2)
    compared = jobs.enqueue_comparison(Terms.full(PLAN), "somebody")

    training = jobs.enqueue(PLAN, "somebody", join=True)

    assert training.job_id != compared.job_id
    assert [job.kind for job in jobs.page(9)] == ["training", "comparison"]
    engine.dispose()


# --- how it ends otherwise


def test_a_cancelled_comparison_stops_and_has_no_report(service: Service, comparison: ScriptedComparison) -> None:
    job = service.compare()
    terms = comparison.begun.get(timeout=PATIENCE_S)

    service.cancel(job.job_id)

    assert comparison.stopped.get(timeout=PATIENCE_S) == terms
    done = service.outcome(job.job_id)
    assert (done.state, done.error) == (pb.JOB_STATE_CANCELLED, "cancelled by local")
    assert _no_report(service, job.job_id, grpc.StatusCode.NOT_FOUND).endswith("cancelled by local")


def test_a_comparison_that_fails_says_why_and_the_next_one_runs(
    folder: Path, open_one: Open, comparison: ScriptedComparison
) -> None:
    with open_one(None, comparison) as service:
        job = service.compare()
        comparison.fail(BadField("parts has one class only"))
        done = service.outcome(job.job_id)
        assert (done.state, done.error) == (pb.JOB_STATE_FAILED, "parts has one class only")
        assert _no_report(service, job.job_id, grpc.StatusCode.NOT_FOUND).endswith("parts has one class only")

        after = service.compare()
        comparison.succeed()
        assert service.outcome(after.job_id).state == pb.JOB_STATE_SUCCEEDED

    # A worker tidies up after it has told the outcome; once the service is closed it has.
    assert not list((folder / "state/training").glob("*"))


def test_there_is_no_report_while_a_comparison_is_under_way(service: Service, comparison: ScriptedComparison) -> None:
    running, waiting = service.compare(), service.compare()
    comparison.begun.get(timeout=PATIENCE_S)

    assert "is running" in _no_report(service, running.job_id, grpc.StatusCode.FAILED_PRECONDITION)
    assert "is queued" in _no_report(service, waiting.job_id, grpc.StatusCode.FAILED_PRECONDITION)


def test_there_is_no_report_of_an_unknown_job_of_a_training_or_once_it_was_removed(
    folder: Path, open_one: Open, comparison: ScriptedComparison
) -> None:
    with open_one(None, comparison, role="door") as service:
        assert "no job" in _no_report(service, "no-such-job", grpc.StatusCode.NOT_FOUND)
        training = service.start()
        assert "is a training" in _no_report(service, training.job_id, grpc.StatusCode.NOT_FOUND)
        service.cancel(training.job_id)
    with open_one(None, comparison) as service:
        job = service.compare()
        comparison.succeed()
        service.outcome(job.job_id)
        (folder / "state/models/_reports" / f"{job.job_id}.zip").unlink()
        assert "no longer" in _no_report(service, job.job_id, grpc.StatusCode.NOT_FOUND)
        with pytest.raises(grpc.RpcError) as refused:
            service.report("")
        assert named_fields(refused.value) == ["job_id"]


# --- what outlives a process


@pytest.mark.slow
def test_a_killed_workers_comparison_is_taken_over_and_goes_on_from_its_trainings(
    folder: Path, overheard: Callable[..., Any]
) -> None:
    # given a worker in another process, killed when it has trained the CNN
    torch.set_num_threads(1)
    write_set(folder / "data/plates", good=40, defective=24)
    weights = write_tiny_weights(folder / f"{TINY_BACKBONE}.safetensors")
    with open_training_service(folder, None, role="door") as service:
        job = service.compare("plates", **TINY)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(COMPARING), str(folder), str(weights), "dimensions"]
    with start_child(command, None, environ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().decode().strip() == "dimensions"
        other.send_signal(signal.SIGKILL)
        other.wait(PATIENCE_S)

    # when
    stages: list[str] = []
    with open_training_service(folder, None, overheard(stages, weights), weights=weights, lease_s=1.0) as service:
        done = service.outcome(job.job_id, REAL_PATIENCE_S)
        report = b"".join(service.report(job.job_id))

    # then no epoch was made twice
    assert (done.state, done.error, done.attempts) == (pb.JOB_STATE_SUCCEEDED, "", 2)
    assert "bootstrap" in stages
    assert not [stage for stage in stages if stage.startswith("cnn, seed 0")]
    with zipfile.ZipFile(io.BytesIO(report)) as pages:
        assert set(json.loads(pages.read("report.json"))["models"]) == {"cnn", "svm", "floor"}


def test_a_comparison_whose_worker_stops_is_given_back_for_the_next(
    open_one: Open, comparison: ScriptedComparison
) -> None:
    with open_one(None, comparison) as service:
        job = service.compare()
        terms = comparison.begun.get(timeout=PATIENCE_S)
    assert comparison.stopped.get(timeout=PATIENCE_S) == terms

    with open_one(None, comparison) as service:
        assert comparison.begun.get(timeout=PATIENCE_S) == terms
        comparison.succeed()
        done = service.outcome(job.job_id)
    assert (done.state, done.attempts) == (pb.JOB_STATE_SUCCEEDED, 1)


def test_jobs_from_before_there_were_comparisons_are_trainings(database_url: str) -> None:
    # given a database as the migration before left it, with a job that waits
    engine = open_database(database_url, "training")
    jobs = Jobs(engine, max_queued=9, lease_s=30, max_attempts=2)
    job = jobs.enqueue(PLAN, "somebody")
    engine.dispose()
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE training_jobs DROP COLUMN comparison"))
        connection.execute(text("UPDATE alembic_training SET version_num = '0003'"))
    engine.dispose()

    # when
    migrated = open_database(database_url, "training")
    jobs = Jobs(migrated, max_queued=9, lease_s=30, max_attempts=2)

    # then
    assert jobs.get(job.job_id) == job
    assert jobs.enqueue(PLAN, "somebody", join=True).job_id == job.job_id
    claimed = jobs.claim("mine")
    assert claimed is not None
    assert (claimed.plan, claimed.comparison) == (PLAN, None)
    migrated.dispose()


@pytest.fixture
def overheard(folder: Path) -> Callable[..., Any]:
    """Makes the service's own comparison, and keeps the names of its stages."""

    def make(stages: list[str], weights: Path) -> Callable[..., Mapping[str, Any]]:
        settings = TrainingSettings(state_dir=folder / "state", data_root=folder / "data", weights=weights)

        def compare(terms: Terms, out_dir: Path, on_progress: OnProgress, cancel: threading.Event) -> Mapping[str, Any]:
            def told(progress: Progress) -> None:
                stages.append(progress.stage)
                on_progress(progress)

            return compare_on_whole_set(settings, terms, out_dir, told, cancel)

        return compare

    return make


def _no_report(service: Service, job_id: str, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        service.report(job_id)
    assert (refused.value.code(), named_fields(refused.value)) == (code, ["job_id"])
    return str(refused.value.details())
