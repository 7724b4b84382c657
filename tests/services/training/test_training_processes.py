"""Several processes, one database: who holds a job, and what becomes of those whose process died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, select, update

from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.stores.database import open_database, reading, writing
from inspectbus.training.jobs import Jobs, JobState, LeaseLost
from inspectbus.training.plan import Plan, Progress
from inspectbus.training.tables import jobs as table
from inspectbus.training.tables import metadata
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.training_service import PATIENCE_S, Open

WORK_AND_HANG = """
import sys, threading
from pathlib import Path
from inspectbus.bus import connect
from inspectbus.runtime import logs
from inspectbus.training.service import open_service
from inspectbus.training.settings import TrainingSettings

def train(plan, out_dir, checkpoint_dir, on_progress, cancel):
    checkpoint_dir.mkdir(parents=True)
    (checkpoint_dir / "epoch").write_text("3")
    (out_dir / "litter").write_text("half a version")
    print(checkpoint_dir.parent.name, flush=True)
    threading.Event().wait(120)

logs.configure("warning", "text")
settings = TrainingSettings(
    database_url=sys.argv[1], state_dir=Path(sys.argv[2]), port=0, metrics_port=0, lease_s=1.0, role="worker"
)
with connect(f"embedded://{sys.argv[1]}") as bus, open_service(settings, bus, train=train):
    threading.Event().wait(120)
"""
OPEN = """
import sys
from inspectbus.stores.database import open_database
sys.stdin.read(1)
open_database(sys.argv[1], "training").dispose()
"""

PLAN = Plan(data="parts", model="parts", backbone="test_efficientnet", epochs=1, seed=0, input_size=32)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url, "training")
    yield engine
    engine.dispose()


@pytest.fixture
def jobs(engine: Engine) -> Jobs:
    return Jobs(engine, max_queued=9, lease_s=30, max_attempts=2)


@pytest.fixture
def brief(engine: Engine) -> Jobs:
    """The same table, with leases that are over at once."""
    return Jobs(engine, max_queued=9, lease_s=0, max_attempts=2)


def test_the_job_of_a_killed_worker_is_taken_over_in_its_work_folder(
    folder: Path, database_url: str, open_one: Open, engine: Engine, jobs: Jobs, training: ScriptedTraining
) -> None:
    # given a job that a worker in another process has begun, until it is killed
    job = jobs.enqueue(PLAN, "somebody")
    with _python(WORK_AND_HANG, database_url, str(folder / "state")) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == job.job_id
        other.send_signal(signal.SIGKILL)
    assert jobs.get(job.job_id).state is JobState.RUNNING

    # when
    with open_one(training, lease_s=1.0) as service:
        assert training.begun.get(timeout=PATIENCE_S) == PLAN

        # then it goes on where the other one was, with a folder of its own for the version
        assert training.checkpoint_dir is not None
        assert (training.checkpoint_dir / "epoch").read_text() == "3"
        training.succeed()
        done = service.outcome(job.job_id)
        assert (done.state, done.attempts) == (pb.JOB_STATE_SUCCEEDED, 2)
        assert service.model("parts", alias="production").version == done.model_version
        # And what both left behind is gone when the next one runs.
        service.start()
        training.begun.get(timeout=PATIENCE_S)
        assert not (folder / "state/training" / job.job_id).exists()


def test_a_job_that_dies_while_we_run_is_taken_over_without_a_restart(
    open_one: Open, jobs: Jobs, brief: Jobs, training: ScriptedTraining
) -> None:
    job = jobs.enqueue(PLAN, "somebody")
    assert brief.claim("one that stops renewing") is not None
    with open_one(training, lease_s=0.3) as service:
        training.succeed()
        assert service.outcome(job.job_id).state == pb.JOB_STATE_SUCCEEDED


def test_a_job_whose_process_dies_again_and_again_has_failed(jobs: Jobs, brief: Jobs) -> None:
    job = jobs.enqueue(PLAN, "somebody")
    brief.claim("the first")
    brief.report(job.job_id, "the first", Progress(stage="training", done=3))

    (waiting,) = jobs.take_back()
    assert (waiting.state, waiting.attempts, waiting.progress) == (JobState.QUEUED, 1, Progress())
    begun = jobs.get(job.job_id).started_at
    brief.claim("the second")
    (failed,) = jobs.take_back()

    assert (failed.state, failed.attempts, failed.started_at) == (JobState.FAILED, 2, begun)
    assert "begun 2 times, and each time its process ended without a word, at last that of the second" in failed.error
    assert jobs.claim("the third") is None


def test_a_job_that_was_cancelled_and_whose_process_died_is_cancelled(jobs: Jobs, brief: Jobs) -> None:
    job = jobs.enqueue(PLAN, "somebody")
    brief.claim("one that dies")
    jobs.cancel(job.job_id, "an engineer")

    (cancelled,) = jobs.take_back()

    assert (cancelled.state, cancelled.error) == (JobState.CANCELLED, "cancelled by an engineer")


def test_a_job_that_is_given_back_waits_again_unless_it_was_cancelled(jobs: Jobs) -> None:
    kept, cancelled = jobs.enqueue(PLAN, "somebody"), jobs.enqueue(PLAN, "somebody")
    jobs.claim("mine")
    jobs.claim("mine")
    jobs.cancel(cancelled.job_id, "an engineer")

    for job in (kept, cancelled):
        jobs.give_back(job.job_id, "mine")

    assert (jobs.get(kept.job_id).state, jobs.get(kept.job_id).attempts) == (JobState.QUEUED, 0)
    assert jobs.get(cancelled.job_id).error == "cancelled by an engineer"
    with pytest.raises(LeaseLost):
        jobs.give_back(kept.job_id, "mine")


def test_a_training_longer_than_its_lease_is_not_taken_for_dead(
    open_one: Open, engine: Engine, training: ScriptedTraining
) -> None:
    with ExitStack() as house:
        service = house.enter_context(open_one(training, lease_s=1.0))
        house.enter_context(open_one(ScriptedTraining(), lease_s=1.0))
        job = service.start()
        training.begun.get(timeout=PATIENCE_S)
        begun = service.get(job.job_id).started_at.ToMicroseconds()

        _until(lambda: (_lease(engine, job.job_id) or 0) > begun + 3_000_000)
        assert service.get(job.job_id).state == pb.JOB_STATE_RUNNING
        training.succeed()
        assert service.outcome(job.job_id).state == pb.JOB_STATE_SUCCEEDED


def test_a_worker_that_lost_its_job_registers_nothing(
    open_one: Open, engine: Engine, training: ScriptedTraining
) -> None:
    with open_one(training, lease_s=60) as service:
        job = service.start()
        training.begun.get(timeout=PATIENCE_S)
        with writing(engine) as connection:
            connection.execute(update(table).values(state=JobState.FAILED, error="taken for dead"))

        training.succeed()

        training.succeed()  # of the next, which shows that the first has come to its end
        after = service.outcome(service.start(model="after").job_id)
        assert after.state == pb.JOB_STATE_SUCCEEDED
        assert service.get(job.job_id).error == "taken for dead"
        assert [each.name for each in service.list_models()] == ["after"]


def test_every_write_of_a_worker_without_its_lease_is_refused(jobs: Jobs) -> None:
    job = jobs.enqueue(PLAN, "somebody")
    assert jobs.claim("mine") is not None

    for write in (
        lambda: jobs.renew(job.job_id, "other"),
        lambda: jobs.report(job.job_id, "other", Progress(stage="training")),
        lambda: jobs.end(job.job_id, "other", JobState.FAILED, "no"),
        lambda: jobs.give_back(job.job_id, "other"),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert jobs.get(job.job_id).state is JobState.RUNNING


def test_a_waiting_job_is_claimed_by_one_of_many(jobs: Jobs) -> None:
    wanted = {jobs.enqueue(PLAN, "somebody").job_id for _ in range(4)}

    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(jobs.claim, [f"worker {number}" for number in range(8)]))

    assert sorted(job.job_id for job in claims if job) == sorted(wanted)


def test_figures_that_are_no_numbers_survive_being_written_down(jobs: Jobs) -> None:
    job = jobs.enqueue(PLAN, "somebody")
    jobs.claim("mine")

    jobs.report(job.job_id, "mine", Progress(stage="training", figures={"loss": float("nan"), "peak": float("inf")}))

    figures = jobs.get(job.job_id).progress.figures
    assert figures["loss"] != figures["loss"]
    assert figures["peak"] == float("inf")


def test_two_services_open_one_new_database_at_once_and_share_its_jobs(open_one: Open) -> None:
    trainings = [ScriptedTraining(), ScriptedTraining()]
    together = threading.Barrier(2)

    def run(training: ScriptedTraining) -> str:
        together.wait(PATIENCE_S)
        with open_one(training) as service:
            training.succeed()
            trainings[1 - trainings.index(training)].succeed()
            done = service.outcome(service.start().job_id)
            together.wait(PATIENCE_S)
            assert done.state == pb.JOB_STATE_SUCCEEDED, done.error
            return done.model_version

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run, training) for training in trainings]:
            assert future.result(60)


def test_two_processes_open_one_new_database_at_once(database_url: str) -> None:
    with ExitStack() as house:
        others = [house.enter_context(_python(OPEN, database_url)) for _ in range(3)]
        for other in others:
            assert other.stdin is not None
            other.stdin.write("!")
            other.stdin.flush()
        assert [other.wait(60) for other in others] == [0, 0, 0]


def test_the_migrations_make_the_tables_that_the_code_knows(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, kind, _: kind != "table" or name in metadata.tables}
        )
        assert compare_metadata(context, metadata) == []


def test_the_jobs_of_each_state_and_the_time_they_took_are_measured(open_one: Open, training: ScriptedTraining) -> None:
    with open_one(training) as service:
        training.epoch()
        training.succeed()
        service.outcome(service.start().job_id)
        training.fail(ValueError("no"))
        service.outcome(service.start().job_id)

        with urllib.request.urlopen(f"http://{service.door.metrics_address}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()

    assert 'inspectbus_training_jobs{state="succeeded"} 1.0' in lines
    assert 'inspectbus_training_jobs{state="failed"} 1.0' in lines
    assert 'inspectbus_training_jobs{state="running"} 0.0' in lines
    assert 'inspectbus_training_stage_seconds_count{stage="training"} 1.0' in lines
    assert "inspectbus_training_epoch_seconds_count 1.0" in lines


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _lease(engine: Engine, job_id: str) -> int | None:
    with reading(engine) as connection:
        return connection.scalar(select(table.c.lease_until).where(table.c.job_id == job_id))


def _until(condition: Callable[[], bool]) -> None:
    """For what no event tells."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it never came to be")
