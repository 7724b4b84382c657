"""A job's life, as its door tells it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.api.v1 import training_pb2_grpc
from inspectbus.errors import BadField, CorruptModel, StorageAway
from inspectbus.training.jobs import Job, Jobs
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.tiny_model import tiny_version
from tests.doubles.training_service import PATIENCE_S, Open, Service, named_fields


def test_a_training_runs_to_a_registered_version(service: Service, training: ScriptedTraining) -> None:
    job = service.start("parts", epochs=2, seed=5)
    assert job.state == pb.JOB_STATE_QUEUED

    training.epoch()
    training.succeed()
    done = service.outcome(job.job_id)

    assert done.state == pb.JOB_STATE_SUCCEEDED
    assert (done.model, done.error) == ("parts", "")
    assert done.model_version == service.model("parts", alias="production").version
    assert done.created_at.ToMicroseconds() <= done.started_at.ToMicroseconds() <= done.ended_at.ToMicroseconds()
    assert service.get(job.job_id) == done


def test_what_the_plan_leaves_open_is_filled_in_with_the_services_defaults(
    service: Service, training: ScriptedTraining
) -> None:
    job = service.start("parts", backbone="", epochs=3)

    assert job.plan == pb.TrainingPlan(
        data="parts",
        model="parts",
        backbone=service.settings.backbone,
        epochs=3,
        seed=service.settings.seed,
        input_size=service.settings.input_size,
        depth="upper",
        batch=32,
        precision="auto",
        views=1,
        dropout=0.5,
        augmentation=pb.Augmentation(flips=True, turns=True, light=0, blur=0, noise=0, perspective=0),
    )
    trained = training.begun.get(timeout=PATIENCE_S)
    assert (trained.data, trained.epochs, trained.backbone) == ("parts", 3, service.settings.backbone)


def test_a_watcher_hears_the_present_state_at_once_and_every_epoch_until_the_end(
    service: Service, training: ScriptedTraining
) -> None:
    # given
    job = service.start("parts", epochs=3)
    told = service.watch(job.job_id)
    assert next(told).job_id == job.job_id
    training.begun.get(timeout=PATIENCE_S)

    # when, then
    for epoch in (1, 2, 3):
        training.epoch()
        heard = next(each for each in told if each.progress.stage == "training")
        assert heard.state == pb.JOB_STATE_RUNNING
        assert (heard.progress.done, heard.progress.total) == (epoch, 3)
        assert heard.progress.figures["train_loss"] == pytest.approx(1 / epoch)
    training.succeed()
    *_, last = told
    assert last.state == pb.JOB_STATE_SUCCEEDED


def test_watching_a_job_that_has_ended_tells_it_once(service: Service, training: ScriptedTraining) -> None:
    job = service.start()
    training.succeed()
    done = service.outcome(job.job_id)

    assert list(service.watch(job.job_id)) == [done]


def test_a_watcher_that_goes_frees_its_place(open_one: Open, training: ScriptedTraining) -> None:
    # Of two calls at once one may be a watcher.
    with open_one(training, rpc_threads=2) as service:
        job = service.start()
        training.begun.get(timeout=PATIENCE_S)

        def watched() -> Any:
            watcher = service.trainings.WatchJob(pb.WatchJobRequest(job_id=job.job_id), timeout=PATIENCE_S)
            next(watcher)
            return watcher

        first = watched()
        with pytest.raises(grpc.RpcError) as refused:
            watched()
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert service.get(job.job_id).job_id == job.job_id

        first.cancel()

        _until_answered(watched)


def test_a_training_of_the_same_plan_is_joined_until_it_has_ended(service: Service, training: ScriptedTraining) -> None:
    def start(join: bool, **fields: int) -> str:
        plan = pb.TrainingPlan(data="parts", backbone="test_efficientnet", **fields)  # type: ignore[arg-type]
        request = pb.StartTrainingRequest(plan=plan, join=join)
        return service.trainings.StartTraining(request, timeout=PATIENCE_S).job.job_id

    first = start(join=False)
    training.begun.get(timeout=PATIENCE_S)

    # What the plan leaves open counts with what it was filled in with.
    assert start(join=True, seed=service.settings.seed) == first
    other = start(join=True, seed=service.settings.seed + 1)
    assert other != first
    again = start(join=False)
    assert again not in (first, other)
    for _ in range(3):
        training.succeed()
    service.outcome(again)
    assert start(join=True) not in (first, other, again)


def test_jobs_run_one_at_a_time_in_the_order_of_their_asking(service: Service, training: ScriptedTraining) -> None:
    jobs = [service.start(model=name) for name in ("first", "second", "third")]

    for job in jobs:
        assert training.begun.get(timeout=PATIENCE_S).model == job.plan.model
        states = [service.get(each.job_id).state for each in jobs]
        assert states.count(pb.JOB_STATE_RUNNING) == 1
        training.succeed()
        assert service.outcome(job.job_id).state == pb.JOB_STATE_SUCCEEDED


def test_a_cancelled_training_stops_at_its_next_step_and_leaves_no_version(
    service: Service, training: ScriptedTraining
) -> None:
    # given a training in its first epoch
    job = service.start()
    training.epoch()
    training.begun.get(timeout=PATIENCE_S)

    # when
    service.cancel(job.job_id)

    # then
    done = service.outcome(job.job_id)
    assert (done.state, done.error) == (pb.JOB_STATE_CANCELLED, "cancelled by local")
    training.stopped.get(timeout=PATIENCE_S)
    assert service.list_models() == []


def test_a_cancelled_job_that_waits_never_begins(service: Service, training: ScriptedTraining) -> None:
    running, waiting, after = (service.start(model=name) for name in ("running", "waiting", "after"))

    cancelled = service.cancel(waiting.job_id)

    assert cancelled.state == pb.JOB_STATE_CANCELLED
    training.succeed()
    training.succeed()
    assert service.outcome(after.job_id).state == pb.JOB_STATE_SUCCEEDED
    assert [training.begun.get_nowait().model for _ in range(2)] == ["running", "after"]
    assert service.outcome(running.job_id).state == pb.JOB_STATE_SUCCEEDED


def test_cancelling_a_job_that_has_ended_changes_nothing(service: Service, training: ScriptedTraining) -> None:
    job = service.start()
    training.succeed()
    done = service.outcome(job.job_id)

    assert service.cancel(job.job_id) == done


def test_a_cancellation_asked_of_another_service_reaches_the_one_that_trains(
    open_one: Open, service: Service, training: ScriptedTraining
) -> None:
    job = service.start()
    training.begun.get(timeout=PATIENCE_S)

    with open_one(ScriptedTraining()) as other:
        other.cancel(job.job_id)
        assert other.outcome(job.job_id).state == pb.JOB_STATE_CANCELLED


def test_a_failed_training_says_why_leaves_no_version_and_the_next_one_runs(
    service: Service, training: ScriptedTraining
) -> None:
    # given
    job = service.start()
    training.fail(RuntimeError("the loss is not a number"))

    # when
    failed = service.outcome(job.job_id)

    # then
    assert (failed.state, failed.error) == (pb.JOB_STATE_FAILED, "RuntimeError: the loss is not a number")
    assert service.list_models() == []
    assert training.out_dir is not None
    assert not training.out_dir.exists()
    training.succeed()
    assert service.outcome(service.start().job_id).state == pb.JOB_STATE_SUCCEEDED


def test_a_version_with_a_changed_byte_is_not_registered(
    service: Service, training: ScriptedTraining, tmp_path: Path
) -> None:
    made = tiny_version(tmp_path / "made", "parts")
    (made / "weights.safetensors").write_bytes(b"others")
    training.give(made)

    failed = service.outcome(service.start().job_id)

    assert failed.state == pb.JOB_STATE_FAILED
    assert "weights.safetensors" in failed.error
    assert service.list_models() == []


def test_a_reason_that_names_a_file_in_latin_letters_is_told(service: Service, training: ScriptedTraining) -> None:
    job = service.start()
    latin = os.fsdecode(b"m\xfcller.png")

    training.fail(BadField(f"{latin} cannot be read", field="data"))

    failed = service.outcome(job.job_id)
    assert (failed.state, failed.error) == (pb.JOB_STATE_FAILED, "m\\udcfcller.png cannot be read")


def test_a_store_that_cannot_be_written_fails_the_job_and_leaves_no_row(
    folder: Path, open_one: Open, training: ScriptedTraining
) -> None:
    (folder / "store").write_text("a file where a folder should be")
    with open_one(training, model_store_url=f"file://{folder / 'store'}") as service:
        training.succeed()
        failed = service.outcome(service.start().job_id)

        assert failed.state == pb.JOB_STATE_FAILED
        assert failed.error
        assert service.list_models() == []


def test_our_own_errors_stand_in_the_job_without_their_python_name(
    service: Service, training: ScriptedTraining
) -> None:
    training.fail(CorruptModel("model file x is changed"))
    assert service.outcome(service.start().job_id).error == "model file x is changed"


def test_a_database_that_fails_for_a_while_does_not_end_the_worker(
    service: Service, training: ScriptedTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a job that cannot be ended in its row
    job = service.start()
    training.begun.get(timeout=PATIENCE_S)
    with monkeypatch.context() as broken:
        asked = threading.Event()

        def fail(*_: object) -> None:
            asked.set()
            raise RuntimeError("the database speaks in tongues")

        broken.setattr("inspectbus.training.jobs.Jobs.end", fail)
        training.fail(ValueError("no"))
        assert asked.wait(PATIENCE_S)

    # then it is begun again once its lease is over, and the next one runs
    training.succeed()
    assert service.outcome(job.job_id).attempts == 2
    training.succeed()
    assert service.outcome(service.start().job_id).state == pb.JOB_STATE_SUCCEEDED


def test_more_waiting_jobs_than_allowed_are_refused(open_one: Open, training: ScriptedTraining) -> None:
    with open_one(training, max_queued=2) as service:
        service.start()
        training.begun.get(timeout=PATIENCE_S)
        for _ in range(2):
            service.start()

        with pytest.raises(grpc.RpcError) as refused:
            service.start()

        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_service_that_stops_gives_its_training_back_and_tells_the_watcher(
    folder: Path, open_one: Open, training: ScriptedTraining
) -> None:
    # given a job that runs, with a watcher and something kept in its work folder, and one that waits
    with ExitStack() as outer:
        with open_one(training) as service:
            job, waiting = service.start(model="first"), service.start(model="second")
            training.begun.get(timeout=PATIENCE_S)
            assert training.checkpoint_dir is not None
            training.checkpoint_dir.mkdir()
            channel = outer.enter_context(grpc.insecure_channel(service.door.address))
            stub = training_pb2_grpc.TrainingServiceStub(channel)
            told = stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id), timeout=PATIENCE_S)
            next(told)

        # when the service has gone, then the watcher had been told
        *_, last = (answer.job for answer in told)
    assert (last.state, last.error) == (pb.JOB_STATE_QUEUED, "")

    # And both run when the service opens again, the one that was begun first, in its folder; no attempt was lost.
    assert training.checkpoint_dir.exists()
    training.succeed()
    training.succeed()
    with open_one(training) as again:
        done = again.outcome(waiting.job_id)
        first = again.get(job.job_id)
        assert (done.state, first.state) == (pb.JOB_STATE_SUCCEEDED,) * 2
        assert (first.attempts, first.ended_at.ToMicroseconds() < done.started_at.ToMicroseconds()) == (1, True)
        assert not (folder / "state/training" / job.job_id).exists()


def test_a_service_that_stops_lets_go_of_those_who_watch_a_job_that_waits(
    open_one: Open, training: ScriptedTraining
) -> None:
    with ExitStack() as outer:
        # A drain far longer than the test may last.
        with open_one(training, drain_s=200) as service:
            service.start()
            training.begun.get(timeout=PATIENCE_S)
            waiting = service.start()
            channel = outer.enter_context(grpc.insecure_channel(service.door.address))
            stub = training_pb2_grpc.TrainingServiceStub(channel)
            told = stub.WatchJob(pb.WatchJobRequest(job_id=waiting.job_id), timeout=PATIENCE_S)
            next(told)

        assert list(told) == []


def test_jobs_are_listed_newest_first_in_pages(service: Service, training: ScriptedTraining) -> None:
    started = [service.start(model=f"m{number}").job_id for number in range(5)]

    pages, token = [], ""
    while True:
        answer = service.trainings.ListJobs(pb.ListJobsRequest(page_size=2, page_token=token), timeout=PATIENCE_S)
        pages.append([job.job_id for job in answer.jobs])
        token = answer.next_page_token
        if not token:
            break

    newest_first = list(reversed(started))
    assert pages == [newest_first[0:2], newest_first[2:4], newest_first[4:5]]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListJobsRequest(page_size=1001), "page_size"),
        (pb.ListJobsRequest(page_token="x"), "page_token"),
        (pb.ListJobsRequest(page_token="9" * 19), "page_token"),
        (pb.ListJobsRequest(page_token="-1"), "page_token"),
    ],
)
def test_a_wrong_page_is_refused_by_its_field(service: Service, request_: pb.ListJobsRequest, field: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        service.trainings.ListJobs(request_, timeout=PATIENCE_S)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named_fields(refused.value) == [field]


def test_an_unknown_job_is_not_found_by_any_call(service: Service) -> None:
    for ask in (service.get, service.cancel, service.outcome):
        with pytest.raises(grpc.RpcError) as refused:
            ask("no-such-job")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def _until_answered(ask: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        try:
            ask()
        except grpc.RpcError:
            pause.wait(0.05)
        else:
            return
    raise AssertionError("the watcher's place was never given back")


@pytest.mark.parametrize(
    ("error", "words", "traceback"),
    [
        (StorageAway("the database does not answer: it restarts"), "the database does not answer: it restarts", False),
        (ZeroDivisionError("a fault of ours"), "ZeroDivisionError: a fault of ours", True),
    ],
)
def test_a_database_that_is_away_is_one_line_and_a_fault_of_ours_keeps_its_traceback(
    open_one: Open,
    training: ScriptedTraining,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: str,
    traceback: bool,
) -> None:
    claim, tries, again = Jobs.claim, 0, threading.Event()

    def refused_once(jobs: Jobs, by: str) -> Job | None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise error
        again.set()
        return claim(jobs, by)

    monkeypatch.setattr(Jobs, "claim", refused_once)
    with capture_logs() as logs, open_one(training, lease_s=1.0):
        assert again.wait(PATIENCE_S)

    (told,) = (line for line in logs if line["event"].startswith("cannot take up"))
    assert (told["error"], told["exc_info"]) == (words, traceback)
