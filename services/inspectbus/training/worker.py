"""The worker: takes the oldest waiting job, trains, registers what came out, and writes down how it ended.

claim ─┬─> train (progress to the row, curves to the tracker) ─> publish bytes ─> judged beside production's version
       │     ─> one transaction: version, alias where it is not worse, success
       └─> compare (progress to the row) ─> publish the report ─> success

Two threads: one works, one job at a time; the keeper renews that job's lease, hears of cancellations asked elsewhere,
and takes jobs back whose process has died. Their work folder stays, so that a worker on the same machine goes on from
the checkpoint in it.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from inspectbus.bus import Delivery
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import InspectBusError, StorageAway, StorageFull
from inspectbus.stores.database import writing
from inspectbus.training.aliases import Aliases, Moved
from inspectbus.training.comparison.terms import Terms
from inspectbus.training.jobs import Job, Jobs, JobState, LeaseLost
from inspectbus.training.metrics import Stopwatch, TrainingMetrics
from inspectbus.training.plan import Cancelled, Plan, Progress
from inspectbus.training.registry import Registry
from inspectbus.training.reports import Reports
from inspectbus.training.tracking import Run, Tracker

log = structlog.get_logger(__name__)

END_PATIENCE_S = 120.0
"""How long the end of a job waits for a database or store that is away: its restart takes less, another job more."""
REPORT_EVERY_S = 0.5
"""Progress within a stage is written down at most this often: each report is a transaction on the disk."""

OnProgress = Callable[[Progress], None]
Train = Callable[[Plan, Path, Path, OnProgress, threading.Event], object]
"""(plan, out_dir, checkpoint_dir, on_progress, cancel) writes a whole version into the empty folder out_dir; going on
from what checkpoint_dir holds, where an earlier call for the same job was killed. Raises Cancelled soon after `cancel`
is set, unless it was nearly done; any other exception is the job's failure."""
Compare = Callable[[Terms, Path, OnProgress, threading.Event], Mapping[str, Any]]
"""(terms, out_dir, on_progress, cancel) writes a whole report into the empty folder out_dir, and gives what its
report.json says. Raises as a Train does."""
MEASURES = ("f1", "average_precision")
"""Of every compared model, for MLflow; the others stand in the report."""


class Worker:
    """Runs jobs while entered. Leaving stops the running one at its next step and waits for it, at most `drain_s`."""

    def __init__(
        self,
        engine: Engine,
        jobs: Jobs,
        registry: Registry,
        aliases: Aliases,
        reports: Reports,
        tracker: Tracker,
        metrics: TrainingMetrics,
        train: Train,
        compare: Compare,
        *,
        scratch: Path,
        lease_s: float,
        drain_s: float,
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._registry = registry
        self._aliases = aliases
        self._reports = reports
        self._tracker = tracker
        self._metrics = metrics
        self._train = train
        self._compare = compare
        self._scratch = scratch
        self._beat_s = lease_s / 3
        self._drain_s = drain_s
        # For the people who read why a job failed; the random part tells two workers of one process apart.
        self._name = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._wake: Delivery | None = None
        """The message that woke us, until we have looked at the rows."""
        self._stopping = threading.Event()
        self._drained = threading.Event()
        # Daemons, because a training that does not heed its cancel event must not keep the process alive.
        self._trainer = threading.Thread(target=self._work, name="training-worker", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="training-keeper", daemon=True)

    def __enter__(self) -> Worker:
        self._sweep()
        self._take_back()
        self._trainer.start()
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._trainer.join(self._drain_s)
        if self._trainer.is_alive():
            log.error("the training did not stop in time and is left behind", waited_s=self._drain_s)
        self._drained.set()
        self._keeper.join(self._drain_s)

    def cancel(self, job_id: str, by: str) -> Job:
        """Asks for the job's end, whoever runs it. Raises NotFound."""
        job = self._jobs.cancel(job_id, by)
        with self._lock:
            if self._running is not None and self._running.job.job_id == job_id:
                self._running.cancel(f"cancelled by {by}")
        return job

    def wake(self, delivery: Delivery) -> None:
        """A job was asked for. The message is let go once we have taken a job, or found that there is none.

        A worker with its hands full lets it go at once: it looks at the rows when they are free, and others at every
        beat of theirs. Held until then, the broker would take this worker for dead.
        """
        with self._lock:
            if self._running is None and not self._stopping.is_set():
                self._wake, delivery_before = delivery, self._wake
            else:
                delivery_before = delivery
        if delivery_before is not None:
            delivery_before.done()
        self._jobs.announce()

    def stop(self) -> None:
        """Takes no more jobs and tells the running one to stop, for another worker to go on; does not wait."""
        with self._lock:
            self._stopping.set()
            if self._running is not None:
                self._running.stop()
        self._jobs.stop()

    # --- the thread that trains

    def _work(self) -> None:
        while not self._stopping.is_set():
            seen = self._jobs.changes
            try:
                job = self._jobs.claim(self._name)
                self._looked()
                if job is not None:
                    self._run(_Running(job))
                    continue
            except Exception as error:
                # Broad, because without this thread every job would wait for ever. A job that could not be ended in its
                # row stays running there; once its lease is over, whoever can write takes it back.
                ours = isinstance(error, InspectBusError)
                log.error(
                    "cannot take up or end a training job, will try again", error=_in_words(error), exc_info=not ours
                )
            if not self._stopping.is_set():
                # This process's jobs wake us at once, another's by a message; if that is lost, they are met at a beat.
                self._jobs.wait(self._beat_s, seen)
        self._looked()

    def _looked(self) -> None:
        with self._lock:
            delivery, self._wake = self._wake, None
        if delivery is not None:
            delivery.done()

    def _run(self, running: _Running) -> None:
        job = running.job
        with self._lock:
            self._running = running
            if self._stopping.is_set():
                running.stop()
        # One that came between the claim and now must not wait until this job has ended.
        self._looked()
        log.info(job.kind, job=job.job_id, data=job.plan.data, model=job.plan.model)
        record = self._tracker.begin(
            job.plan.model,
            name=job.job_id,
            params=_parameters(job),
            tags={"inspectbus.job_id": job.job_id, "mlflow.user": job.requested_by},
        )
        try:
            # Somebody may have cancelled between the claim and now, when nobody listened yet.
            self._renew(running)
            if job.comparison is not None:
                self._compare_and_publish(running, job.comparison, record)
                log.info("comparison done", job=job.job_id)
            else:
                card = self._train_and_register(running, record)
                log.info("training done", job=job.job_id, model=card.name, version=card.version)
        except LeaseLost:
            record.end("FAILED")
            log.error("this job was taken for dead while it ran; its outcome is dropped", job=job.job_id)
        except Cancelled:
            record.end("KILLED")
            if running.why:
                log.info(f"{job.kind} cancelled", job=job.job_id, why=running.why)
                self._end(job, JobState.CANCELLED, running.why)
            else:
                log.info(f"this worker stops; another goes on with the {job.kind}", job=job.job_id)
                self._settle(job, partial(self._jobs.give_back, job.job_id, self._name))
        except Exception as error:
            # Broad, because whatever a job raises is how this job ended, and the next one must run.
            record.end("FAILED")
            why = _in_words(error)
            log.error(f"{job.kind} failed", job=job.job_id, why=why, exc_info=not isinstance(error, InspectBusError))
            self._end(job, JobState.FAILED, why)
        finally:
            with self._lock:
                self._running = None

    def _train_and_register(self, running: _Running, record: Run) -> ModelCard:
        job = running.job
        stopwatch = Stopwatch(self._metrics)
        folder = self._scratch / job.job_id
        # One that was taken for dead may still write into its own.
        out_dir = folder / f"version-{job.attempts}-{uuid.uuid4().hex[:8]}"

        def on_progress(progress: Progress) -> None:
            stopwatch.see(progress)
            if progress.stage == "training" and progress.figures != running.told.figures:
                record.log(progress.figures, step=progress.done)
            self._report(running, progress)

        try:
            if running.cancelled.is_set():
                raise Cancelled
            out_dir.mkdir(parents=True)
            self._train(job.plan, out_dir, folder / "checkpoint", on_progress, running.cancelled)
            card = self._registry.publish(out_dir)
            self._patiently(partial(self._register, job, card))
            self._jobs.announce()
        finally:
            stopwatch.stop()
            shutil.rmtree(out_dir, ignore_errors=True)
            self._sweep()
        record.log({f"final_{name}": value for name, value in card.validation_scores.items()})
        record.log({"threshold": card.threshold})
        record.attach("model.json", card.model_dump_json(indent=2))
        record.end("FINISHED", {"inspectbus.model_version": card.version, "inspectbus.data": card.data.sha256})
        return card

    def _register(self, job: Job, card: ModelCard) -> None:
        while True:
            standing = self._aliases.standing(card)
            not_promoted = standing.objection.message if standing.objection else ""
            try:
                with writing(self._engine) as connection:
                    self._registry.record(connection, card)
                    change = self._aliases.promote(connection, standing, job.requested_by, f"training {job.job_id}")
                    self._jobs.succeed(connection, job.job_id, self._name, card.name, card.version, not_promoted)
            except Moved:
                # Somebody put another version into production meanwhile; that is the one to compare with now.
                continue
            if not_promoted:
                log.warning("production stays", job=job.job_id, why=not_promoted)
            self._aliases.tell(change)
            return

    def _compare_and_publish(self, running: _Running, terms: Terms, record: Run) -> None:
        job = running.job
        # A stage's name has a seed in it, so the metrics of stages, which know a fixed few, are for trainings alone.
        on_progress = partial(self._report, running)
        out_dir = self._scratch / job.job_id / f"report-{job.attempts}-{uuid.uuid4().hex[:8]}"
        try:
            if running.cancelled.is_set():
                raise Cancelled
            out_dir.mkdir(parents=True)
            found = self._compare(terms, out_dir, on_progress, running.cancelled)
            for page in ("report.html", "report.json"):
                record.attach(page, (out_dir / page).read_text(encoding="utf-8"))
            self._patiently(partial(self._reports.publish, job.job_id, out_dir))
            self._patiently(partial(self._succeed, job))
            self._jobs.announce()
        finally:
            shutil.rmtree(out_dir, ignore_errors=True)
            self._sweep()
        record.log(_compared_figures(found))
        record.end("FINISHED", {"inspectbus.data": found["data"]["sha256"]})

    def _succeed(self, job: Job) -> None:
        with writing(self._engine) as connection:
            self._jobs.succeed(connection, job.job_id, self._name)

    def _patiently(self, write: Callable[[], None]) -> None:
        """Writes down how a job ended, again and again while database or store are away and nobody stops us."""
        deadline = time.monotonic() + END_PATIENCE_S
        while True:
            try:
                return write()
            except (StorageAway, StorageFull) as error:
                if self._stopping.is_set() or time.monotonic() > deadline:
                    raise
                log.warning("the end of a job waits for its storage", error=error.message)
            self._stopping.wait(1.0)

    def _report(self, running: _Running, progress: Progress) -> None:
        now = time.monotonic()
        new = progress.stage != running.told.stage or progress.figures != running.told.figures
        if not new and progress.done < progress.total and now - running.told_at < REPORT_EVERY_S:
            return
        running.told, running.told_at = progress, now
        try:
            self._jobs.report(running.job.job_id, self._name, progress)
        except (InspectBusError, SQLAlchemyError) as error:
            # The training is worth more than its progress bar; the lease tells whether the job is still ours.
            log.warning("cannot write down the progress", job=running.job.job_id, error=str(error))

    def _end(self, job: Job, state: JobState, why: str) -> None:
        self._settle(job, partial(self._jobs.end, job.job_id, self._name, state, why))
        self._sweep()

    def _settle(self, job: Job, write: Callable[[], None]) -> None:
        try:
            self._patiently(write)
        except LeaseLost:
            log.error("this job was taken for dead before its end could be written down", job=job.job_id)

    def _sweep(self) -> None:
        """Removes the work folders of jobs that have ended, here or elsewhere."""
        try:
            ended = self._jobs.ended([folder.name for folder in self._scratch.glob("*")])
        except InspectBusError as error:
            log.warning("cannot tidy up after trainings, will try again after the next", error=error.message)
            return
        for job_id in ended:
            shutil.rmtree(self._scratch / job_id, ignore_errors=True)

    # --- the keeper's thread

    def _keep(self) -> None:
        while not self._drained.wait(self._beat_s):
            with self._lock:
                running = self._running
            try:
                if running is not None:
                    self._renew(running)
                self._take_back()
            except Exception as error:
                # Broad, because a keeper that died would let the running job be taken for dead.
                log.warning("cannot renew the lease of the training, will try again", error=str(error))

    def _renew(self, running: _Running) -> None:
        try:
            if cancelled_by := self._jobs.renew(running.job.job_id, self._name):
                running.cancel(f"cancelled by {cancelled_by}")
        except LeaseLost:
            # The trainer's thread finds the same when it writes, and says so; no need to train until then.
            running.cancel("taken for dead")

    def _take_back(self) -> None:
        for job in self._jobs.take_back():
            log.warning(f"the process of a {job.kind} had died", job=job.job_id, state=job.state, attempts=job.attempts)


class _Running:
    """The job in hand: the event that cancels it, why, and what was last told of its progress."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cancelled = threading.Event()
        self.why = ""
        self.told = Progress()
        self.told_at = 0.0

    def cancel(self, why: str) -> None:
        """The first reason is the one that is told."""
        self.why = self.why or why
        self.cancelled.set()

    def stop(self) -> None:
        """Ends it here, for another worker to go on: without a reason it is not cancelled."""
        self.cancelled.set()


def _parameters(job: Job) -> dict[str, object]:
    """For MLflow. A comparison's seeds are 0, 1, ..., and it makes no version that has a name."""
    if job.comparison is None:
        return job.plan.model_dump()
    return {**job.plan.model_dump(exclude={"seed", "model"}), **job.comparison.model_dump(exclude={"plan"})}


def _compared_figures(found: Mapping[str, Any]) -> dict[str, float]:
    """The means over seeds, such as "svm_f1" on frozen features and "raw_svm_f1" on pixels."""
    return {
        f"{form}{name}_{measure}": float(each[measure]["mean"])
        for form, part in (("", "models"), ("raw_", "raw_models"))
        for name, each in found[part].items()
        for measure in MEASURES
    }


def _in_words(error: Exception) -> str:
    """Our own errors are written for people; of a foreign one, the kind says as much as the text."""
    words = error.message if isinstance(error, InspectBusError) else f"{type(error).__name__}: {error}"
    # They may name a file whose name is no UTF-8, which neither the database nor a message takes.
    return words.encode(errors="backslashreplace").decode()
