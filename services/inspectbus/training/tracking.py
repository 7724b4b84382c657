"""Runs, for the people who compare them: parameters, curves and final figures of every training, in MLflow.

worker ─> Run.log, Run.end ─> a bounded queue ─> one thread ─> MLflow's store

A convenience and never the registry. MLflow is slow to import, slower to make its tables, and may fail: all that
happens on a thread of its own, where a failure is logged and counted, and no training waits or fails because of it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import structlog
from prometheus_client import Counter
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from inspectbus.errors import StorageAway
from inspectbus.stores.database import migrating, take_turn

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = structlog.get_logger(__name__)

MAX_WAITING = 1000
"""Entries that may wait for a slow store: some hundred epochs. More are dropped and counted."""

TABLES_S = 120.0
"""How long another process may take to make MLflow's tables: dozens of migrations, seconds on a machine at rest."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


def default_url(state_dir: Path) -> str:
    """The MLflow store of a machine that was told none; a file of its own, because its tables are MLflow's."""
    return f"sqlite:///{(state_dir / 'mlflow.db').absolute()}"


class Tracker:
    """Writes runs while entered. Leaving writes what waits, for at most `patience_s`."""

    def __init__(self, url: str, artifacts: Path, failures: Counter, *, patience_s: float) -> None:
        self._url = url
        self._artifacts = artifacts
        self._failures = failures
        self._patience_s = patience_s
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_WAITING)
        self._client: MlflowClient | None = None
        # A daemon, because a store that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._write, name="training-tracker", daemon=True)

    def __enter__(self) -> Tracker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + self._patience_s
        try:
            self._waiting.put(None, timeout=self._patience_s)
        except queue.Full:
            log.warning("MLflow's store hangs; its last entries are lost", entries=self._waiting.qsize())
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def begin(self, experiment: str, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> Run:
        """A new run, which is under way until its `end`."""
        return Run(self, experiment, name, params, tags)

    def send(self, write: Callable[[], None]) -> None:
        """Has the thread do it, when its turn comes."""
        try:
            self._waiting.put_nowait(write)
        except queue.Full:
            self._failures.inc()

    def client(self) -> MlflowClient:
        """MLflow's client; the first call imports the library and makes the tables. Tracker's thread only."""
        if self._client is None:
            # MLflow would report its use to its makers, and tell on standard error of the tables it makes.
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("DO_NOT_TRACK", "true")
            # It would ask a tracking server that is away seven times, longer each time: minutes for each entry.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.ERROR)
            # Its tables are made by Alembic too.
            with self._alone(), migrating:
                client = MlflowClient(tracking_uri=self._url)
                client.search_experiments(max_results=1)
            self._client = client
        return self._client

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, made where there is none. Tracker's thread only."""
        client = self.client()
        found = client.get_experiment_by_name(name)
        if found is None:
            from mlflow.exceptions import MlflowException

            try:
                return str(client.create_experiment(name, artifact_location=(self._artifacts / name).as_uri()))
            except MlflowException as error:
                # Unless another process was quicker.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(name)
            assert found is not None, "it exists, as MLflow has said"
        return str(found.experiment_id)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The database answers, and no other process of ours makes MLflow's tables in it: MLflow does so wherever it
        misses one, and of two that do it at once one fails. A tracking server has made its own."""
        if self._url.startswith(("http://", "https://")):
            yield
            return
        url = make_url(self._url)
        with ExitStack() as turn:
            if url.get_backend_name() == "sqlite" and url.database:
                file = Path(url.database)
                file.parent.mkdir(parents=True, exist_ok=True)
                _take(turn.enter_context(file.with_name(f"{file.name}.lock").open("a")))
            # MLflow asks a database that does not open for minutes, and we would hold the lock of all migrations
            # meanwhile.
            connection = turn.enter_context(create_engine(url, poolclass=NullPool).begin())
            take_turn(connection, "the tables of MLflow")
            yield

    def _write(self) -> None:
        while (write := self._waiting.get()) is not None:
            try:
                write()
            except Exception as error:
                # Broad, because MLflow's own errors, SQLAlchemy's and the disk's all mean the same here: not taken.
                self._failures.inc()
                log.warning("MLflow took no entry", error=f"{type(error).__name__}: {error}"[:500])


def _take(lock: IO[str]) -> None:
    """Until no other process has the file locked; ours as long as it is open. Raises StorageAway after TABLES_S."""
    deadline = time.monotonic() + TABLES_S
    pause = threading.Event()
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StorageAway(f"another process has locked {lock.name} for {TABLES_S:g} s") from None
        pause.wait(0.1)


class Run:
    """One training's run. Calls return at once; entries of a run that could not begin fail one by one."""

    def __init__(
        self, tracker: Tracker, experiment: str, name: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        self._tracker = tracker
        self._run_id = ""

        def write() -> None:
            client = tracker.client()
            run = client.create_run(tracker.experiment_id(experiment), run_name=name, tags=dict(tags))
            self._run_id = run.info.run_id
            for key, value in params.items():
                client.log_param(self._run_id, key, value)

        tracker.send(write)

    def log(self, figures: Mapping[str, float], step: int = 0) -> None:
        """Figures by name, as one point of each curve."""
        from_now = int(time.time() * 1000)

        def write() -> None:
            for name, value in figures.items():
                self._tracker.client().log_metric(self._run_id, name, value, timestamp=from_now, step=step)

        self._tracker.send(write)

    def attach(self, file: str, text: str) -> None:
        """A text file beside the run."""
        self._tracker.send(lambda: self._tracker.client().log_text(self._run_id, text, file))

    def end(self, status: Status, tags: Mapping[str, str] | None = None) -> None:
        def write() -> None:
            for name, value in (tags or {}).items():
                self._tracker.client().set_tag(self._run_id, name, value)
            self._tracker.client().set_terminated(self._run_id, status)

        self._tracker.send(write)
