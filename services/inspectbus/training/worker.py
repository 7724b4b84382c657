"""The worker: takes the oldest waiting job, trains, registers what came out, and writes down how it ended.

claim ─> train (progress into the row, curves to the tracker) ─> publish bytes ─> one transaction: version, alias, success

Two threads: one trains, one at a time; the keeper renews the job's lease, hears of cancellations asked elsewhere, and
buries jobs whose process has died.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from inspectbus.api.v1 import training_pb2
from inspectbus.errors import Cancelled, InspectBusError
from inspectbus.stores.database import writing
from inspectbus.training.jobs import Job, Jobs, JobState, LeaseLost
from inspectbus.training.measures import Measures
from inspectbus.training.plan import Progress
from inspectbus.training.registry import Registry
from inspectbus.training.tracking import Tracker

log = structlog.get_logger(__name__)

REPORT_EVERY_S = 0.5
"""Progress within a stage is written down at most this often: each report is a transaction on the disk."""

Train = Callable[[training_pb2.TrainingPlan, Path, Callable[[Progress], None], threading.Event], Path]
"""(plan, an empty scratch folder, on_progress, cancel) -> the finished version's folder. Raises Cancelled soon after
`cancel` is set, unless it was nearly done; any other exception is the job's failure."""


class Worker:
    """Runs jobs while entered. Leaving stops the running one at its next step and waits for it, at most `drain_s`."""

    def __init__(
        self,
        engine: Engine,
        jobs: Jobs,
        registry: Registry,
        tracker: Tracker,
        measures: Measures,
        train: Train,
        *,
        scratch: Path,
        lease_s: float,
        drain_s: float,
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._registry = registry
        self._tracker = tracker
        self._measures = measures
        self._train = train
        self._scratch = scratch
        self._beat_s = lease_s / 3
        self._drain_s = drain_s
        # Names the process for the people who read why a job failed; the random part tells two of one process apart.
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._running: _Running | None = None
        # Daemons, because a training that does not heed its cancel event must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._work, name="training-worker", daemon=True),
            threading.Thread(target=self._keep, name="training-keeper", daemon=True),
        ]

    def __enter__(self) -> Worker:
        self._bury()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        deadline = time.monotonic() + self._drain_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.error("did not end in time and is left behind", thread=thread.name, waited_s=self._drain_s)

    def cancel(self, job_id: str, by: str) -> Job:
        """Asks for the job's end, wherever it runs. Raises NotFound."""
        job = self._jobs.cancel(job_id, by)
        with self._lock:
            if self._running and self._running.job.job_id == job_id:
                self._running.cancel(f"cancelled by {by}")
        return job

    def stop(self) -> None:
        """Takes no more jobs and tells the running one to stop; does not wait."""
        self._stop.set()
        with self._lock:
            if self._running:
                self._running.cancel("the service was stopped before the training was done; start it again")
        self._jobs.stop()

    # --- the thread that trains

    def _work(self) -> None:
        while not self._stop.is_set():
            seen = self._jobs.changes
            try:
                job = self._jobs.claim(self._name)
            except (InspectBusError, SQLAlchemyError) as error:
                log.warning("cannot ask for a training job; will ask again", error=str(error))
                job = None
            if job is None:
                # Jobs of this process wake us at once; those that another process took down are met at the next beat.
                self._jobs.wait(self._beat_s, seen)
            else:
                self._run(job)

    def _run(self, job: Job) -> None:
        running = _Running(job)
        with self._lock:
            self._running = running
        if self._stop.is_set():
            self.stop()
        scratch = self._scratch / job.job_id
        log.info("training", job=job.job_id, data=job.plan.data, model=job.plan.model)
        try:
            with self._tracker.run(job) as record:
                try:
                    # Somebody may have cancelled between the claim and now, when we did not listen yet.
                    self._renew(running)
                    version = self._train_and_register(running, scratch, record)
                    record.end("FINISHED")
                    log.info("training done", job=job.job_id, model=job.plan.model, version=version)
                except Cancelled:
                    record.end("KILLED")
                    self._jobs.end(job.job_id, self._name, JobState.CANCELLED, running.why or "cancelled")
                    log.info("training cancelled", job=job.job_id, why=running.why)
                except LeaseLost:
                    raise
                except Exception as error:
                    # Broad, because whatever training raises is how this job ended, and the next one must run.
                    record.end("FAILED")
                    log.exception("training failed", job=job.job_id)
                    self._jobs.end(job.job_id, self._name, JobState.FAILED, _in_words(error))
        except LeaseLost:
            log.error("this job was taken for dead while it ran; its outcome is dropped", job=job.job_id)
        except (InspectBusError, SQLAlchemyError) as error:
            # Left running in the row: once the lease is over, whoever can write buries it.
            log.error("cannot write down how the job ended", job=job.job_id, error=str(error))
        finally:
            with self._lock:
                self._running = None
            shutil.rmtree(scratch, ignore_errors=True)
