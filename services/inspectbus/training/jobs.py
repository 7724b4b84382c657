"""Job rows: what was asked for, how far it is, how it ended. The row is the truth; threads and processes come and go.

            enqueue              claim               succeed
    (none) ─────────> QUEUED ──────────> RUNNING ──────────────> SUCCEEDED
                        │ └─ give back, take back ─┤
                        │                          ├─ fail ─────> FAILED
                        └─ cancel ─────────────────┴─ stopped ──> CANCELLED

A running job belongs to one worker, which holds it by a lease it must renew. Every write of a worker asks for its
lease: one that was taken for dead and comes back finds that it owns nothing. A job whose lease is over is taken back,
for whoever claims it next, until it has been begun `max_attempts` times: it may be what kills its processes.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Update, func, insert, select, update

from inspectbus.errors import NotFound, QueueFull
from inspectbus.stores.database import reading, take_turn, writing
from inspectbus.training.comparison.terms import Terms
from inspectbus.training.plan import Plan, Progress
from inspectbus.training.tables import jobs as table
from inspectbus.training.tables import now_us

WATCH_POLL_S = 1.0
"""A watcher hears of this process's changes at once, and of another's (or of its own client's leaving) after this."""
MAX_ERROR_CHARS = 2000


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """One row. Moments are microseconds since the epoch, None while they have not come."""

    number: int
    job_id: str
    state: JobState
    revision: int
    plan: Plan
    """What is trained; by a comparison, its CNN."""
    comparison: Terms | None
    """None for a training."""
    progress: Progress
    error: str
    model: str
    model_version: str
    attempts: int
    """How often it was begun; a worker that stopped in peace and gave it back is not counted."""
    not_promoted: str
    """Why production stays with another version; empty when it names this one."""
    requested_by: str
    created_at: int
    started_at: int | None
    ended_at: int | None

    @property
    def kind(self) -> str:
        """In a word, for people."""
        return "training" if self.comparison is None else "comparison"


class LeaseLost(Exception):
    """The job no longer belongs to this worker: it was taken for dead, and what it would write no longer counts."""


class Jobs:
    """The job table. Thread-safe; several processes may share one database."""

    def __init__(self, engine: Engine, *, max_queued: int, lease_s: float, max_attempts: int) -> None:
        self._engine = engine
        self._max_queued = max_queued
        self._lease_us = int(lease_s * 1e6)
        self._max_attempts = max_attempts
        self._changed = threading.Condition()
        self._changes = 0
        self._stopping = False

    # --- for the door

    def enqueue(self, plan: Plan, requested_by: str, *, join: bool = False) -> Job:
        """Writes a training down, or with `join` gives one of this very plan that has not ended.

        Raises QueueFull when as many jobs wait as may.
        """
        return self._enqueue(plan, None, requested_by, join)

    def enqueue_comparison(self, terms: Terms, requested_by: str) -> Job:
        """Writes a comparison down. Raises QueueFull when as many jobs wait as may."""
        return self._enqueue(terms.plan, terms, requested_by, join=False)

    def _enqueue(self, plan: Plan, terms: Terms | None, requested_by: str, join: bool) -> Job:
        job_id = str(uuid.uuid4())
        with writing(self._engine) as connection:
            take_turn(connection, "training queue")
            if join and (job := _unfinished(connection, plan)) is not None:
                return job
            waiting = connection.scalar(select(func.count()).where(table.c.state == JobState.QUEUED)) or 0
            if waiting >= self._max_queued:
                raise QueueFull(f"{waiting} jobs are waiting already, which is as many as may; try again later")
            connection.execute(
                insert(table).values(
                    job_id=job_id,
                    state=JobState.QUEUED,
                    revision=1,
                    plan=plan.model_dump_json(),
                    progress=Progress().model_dump_json(),
                    error="",
                    model="",
                    model_version="",
                    not_promoted="",
                    comparison="" if terms is None else terms.model_dump_json(),
                    requested_by=requested_by,
                    cancelled_by="",
                    created_at=now_us(),
                    worker="",
                    attempts=0,
                )
            )
            job = _job(_row(connection, job_id))
        self.announce()
        return job

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        with reading(self._engine) as connection:
            return _job(_row(connection, job_id))

    def page(self, size: int, before: int | None = None) -> list[Job]:
        """At most `size` jobs, newest first, of those older than job number `before`."""
        wanted = select(table).order_by(table.c.number.desc()).limit(size)
        if before is not None:
            wanted = wanted.where(table.c.number < before)
        with reading(self._engine) as connection:
            return [_job(row) for row in connection.execute(wanted)]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        counted = select(table.c.state, func.count()).group_by(table.c.state)
        with reading(self._engine) as connection:
            found = {JobState(state): number for state, number in connection.execute(counted)}
        return {state: found.get(state, 0) for state in JobState}

    def cancel(self, job_id: str, by: str) -> Job:
        """Ends a waiting job; asks the worker of a running one to stop; leaves one that has ended. Raises NotFound."""
        with writing(self._engine) as connection:
            # Held, so that no worker takes a waiting job between the look and the change.
            state = JobState(_row(connection, job_id, hold=True).state)
            if state is JobState.QUEUED:
                connection.execute(_change(job_id).values(cancelled_by=by, **_cancelled(by)))
            elif state is JobState.RUNNING:
                connection.execute(_change(job_id).values(cancelled_by=by))
            job = _job(_row(connection, job_id))
        self.announce()
        return job

    def watch(self, job_id: str, interested: Callable[[], bool]) -> Iterator[Job]:
        """The job now, then after every change, until it has ended, nobody is interested, or the service stops.

        A stopping service still tells how its own running job ended. Changes that come faster than they are taken are
        told as one. Raises NotFound.
        """
        told = 0
        while interested():
            seen = self._changes
            job = self.get(job_id)
            if job.revision != told:
                told = job.revision
                yield job
            if job.state.ended or (self._stopping and job.state is JobState.QUEUED):
                return
            self.wait(WATCH_POLL_S, seen)

    # --- for the worker

    def claim(self, worker: str) -> Job | None:
        """The oldest waiting job, now running and held by the worker; None when none waits."""
        oldest = (
            select(table.c.job_id)
            .where(table.c.state == JobState.QUEUED)
            .order_by(table.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with writing(self._engine) as connection:
            job_id = connection.scalar(oldest)
            if job_id is None:
                return None
            connection.execute(
                _change(job_id).values(
                    state=JobState.RUNNING,
                    worker=worker,
                    attempts=table.c.attempts + 1,
                    started_at=func.coalesce(table.c.started_at, now_us()),
                    lease_until=now_us() + self._lease_us,
                )
            )
            job = _job(_row(connection, job_id))
        self.announce()
        return job

    def renew(self, job_id: str, worker: str) -> str:
        """Another lease for the running job. Gives who asked to cancel it, '' when nobody. Raises LeaseLost."""
        with writing(self._engine) as connection:
            # Not a change that watchers should hear of, so the revision stays.
            renewed = connection.execute(
                update(table).where(*_held(job_id, worker)).values(lease_until=now_us() + self._lease_us)
            )
            if renewed.rowcount == 0:
                raise LeaseLost
            return str(_row(connection, job_id).cancelled_by)

    def report(self, job_id: str, worker: str, progress: Progress) -> None:
        """Writes down how far the job is. Raises LeaseLost."""
        with writing(self._engine) as connection:
            self._by_holder(connection, job_id, worker, progress=progress.model_dump_json())
        self.announce()

    def succeed(
        self,
        connection: Connection,
        job_id: str,
        worker: str,
        model: str = "",
        version: str = "",
        not_promoted: str = "",
    ) -> None:
        """Within the caller's transaction, which also registers a training's version; `announce` after it.

        Raises LeaseLost.
        """
        self._by_holder(
            connection,
            job_id,
            worker,
            state=JobState.SUCCEEDED,
            model=model,
            model_version=version,
            not_promoted=not_promoted[:MAX_ERROR_CHARS],
            ended_at=now_us(),
        )

    def end(self, job_id: str, worker: str, state: JobState, why: str) -> None:
        """FAILED or CANCELLED, with the reason in words. Raises LeaseLost."""
        with writing(self._engine) as connection:
            self._by_holder(connection, job_id, worker, state=state, error=why[:MAX_ERROR_CHARS], ended_at=now_us())
        self.announce()

    def give_back(self, job_id: str, worker: str) -> None:
        """A worker that stops leaves its job to the next one, unless somebody cancelled it. Raises LeaseLost."""
        with writing(self._engine) as connection:
            # Held, so that nobody cancels between the look and the change.
            cancelled_by = _row(connection, job_id, hold=True).cancelled_by
            waiting = {**_WAITING, "attempts": table.c.attempts - 1}
            self._by_holder(connection, job_id, worker, **(_cancelled(cancelled_by) if cancelled_by else waiting))
        self.announce()

    def take_back(self) -> list[Job]:
        """Takes jobs from workers that are dead, and gives what became of each: waiting again, failed or cancelled."""
        dead = select(table.c.job_id, table.c.worker, table.c.attempts, table.c.cancelled_by).where(
            table.c.state == JobState.RUNNING, table.c.lease_until < now_us()
        )
        with reading(self._engine) as connection:
            # Nearly always nobody is dead, and asking must not take the write lock.
            if connection.execute(dead.limit(1)).first() is None:
                return []
        with writing(self._engine) as connection:
            found = connection.execute(dead.with_for_update(skip_locked=True)).all()
            for job_id, worker, attempts, cancelled_by in found:
                values = _WAITING
                if cancelled_by:
                    values = _cancelled(cancelled_by)
                elif attempts >= self._max_attempts:
                    why = (
                        f"begun {attempts} times, and each time its process ended without a word, at last that of "
                        f"{worker}: find out why (memory?) before you start it again"
                    )
                    values = {"state": JobState.FAILED, "error": why[:MAX_ERROR_CHARS], "ended_at": now_us()}
                connection.execute(_change(job_id).values(**values))
            taken = [_job(_row(connection, job_id)) for job_id, *_ in found]
        self.announce()
        return taken

    def ended(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the jobs that have ended."""
        over = [state for state in JobState if state.ended]
        with reading(self._engine) as connection:
            wanted = select(table.c.job_id).where(table.c.job_id.in_(job_ids), table.c.state.in_(over))
            return list(connection.scalars(wanted))

    # --- for both

    @property
    def changes(self) -> int:
        """Counts the changes made in this process; to be read before looking, and given to `wait`."""
        return self._changes

    def wait(self, patience_s: float, seen: int) -> None:
        """Until this process has changed any job after `seen`, or patience_s is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen, timeout=patience_s)

    def stop(self) -> None:
        """The service is about to stop: those who watch jobs that wait are let go."""
        self._stopping = True
        self.announce()

    def announce(self) -> None:
        """Wakes whoever waits for a change; `succeed` leaves it to its caller, who commits."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    @staticmethod
    def _by_holder(connection: Connection, job_id: str, holder: str, /, **values: object) -> None:
        if connection.execute(_change(job_id).where(*_held(job_id, holder)).values(**values)).rowcount == 0:
            raise LeaseLost


_WAITING: Mapping[str, object] = {
    "state": JobState.QUEUED,
    "worker": "",
    "lease_until": None,
    "progress": Progress().model_dump_json(),
}


def _cancelled(by: str) -> Mapping[str, object]:
    return {"state": JobState.CANCELLED, "error": f"cancelled by {by}", "ended_at": now_us()}


def _change(job_id: str) -> Update:
    return update(table).where(table.c.job_id == job_id).values(revision=table.c.revision + 1)


def _held(job_id: str, worker: str) -> tuple[ColumnElement[bool], ...]:
    return table.c.job_id == job_id, table.c.worker == worker, table.c.state == JobState.RUNNING


def _row(connection: Connection, job_id: str, *, hold: bool = False) -> Row[Any]:
    wanted = select(table).where(table.c.job_id == job_id)
    row = connection.execute(wanted.with_for_update() if hold else wanted).first()
    if row is None:
        raise NotFound(f"no job {job_id[:80]!r}", field="job_id")
    return row


def _unfinished(connection: Connection, plan: Plan) -> Job | None:
    going = [state for state in JobState if not state.ended]
    same = select(table).where(
        table.c.plan == plan.model_dump_json(), table.c.comparison == "", table.c.state.in_(going)
    )
    row = connection.execute(same.order_by(table.c.number).limit(1)).first()
    return None if row is None else _job(row)


def _job(row: Row[Any]) -> Job:
    return Job(
        number=row.number,
        job_id=row.job_id,
        state=JobState(row.state),
        revision=row.revision,
        plan=Plan.model_validate_json(row.plan),
        comparison=Terms.model_validate_json(row.comparison) if row.comparison else None,
        progress=Progress.model_validate_json(row.progress),
        error=row.error,
        model=row.model,
        model_version=row.model_version,
        attempts=row.attempts,
        not_promoted=row.not_promoted,
        requested_by=row.requested_by,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
