"""The training service: a job's way from the door to a registered model version, or to a report.

StartTraining ─┬─> job row ─> worker ─┬─> trainer ─> model store, registry ─> GetModel, asked by inference and
CompareModels ─┘                      │                                       preprocessing
                                      └─> comparison ─> reports ─> ReadReport

Door and worker may be one process or many: they meet in the tables, and a message on the bus wakes an idle worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import torch
from prometheus_client import CollectorRegistry

from inspectbus.api.v1 import model_pb2_grpc, training_pb2_grpc
from inspectbus.bus import Bus
from inspectbus.runtime.rpc_server import Door, rpc_server
from inspectbus.stores import database, models
from inspectbus.stores.datasets import open_dataset, split
from inspectbus.training import tracking, trainer
from inspectbus.training.aliases import Aliases
from inspectbus.training.comparison.terms import Terms
from inspectbus.training.events import Events, waking
from inspectbus.training.jobs import Jobs
from inspectbus.training.metrics import TrainingMetrics
from inspectbus.training.plan import Plan
from inspectbus.training.registry import Registry
from inspectbus.training.reports import Reports
from inspectbus.training.request import data_source
from inspectbus.training.rpc import ModelRpc, TrainingRpc
from inspectbus.training.settings import TrainingSettings
from inspectbus.training.worker import Compare, OnProgress, Train, Worker


@contextmanager
def open_service(
    settings: TrainingSettings,
    bus: Bus,
    *,
    train: Train | None = None,
    compare: Compare | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Door]:
    """Opens the door and the worker, or the one of them that is this process's role; `train` and `compare` take the
    place of the real ones where given. A database that is away is waited for until `stop` is set.

    Raises OSError when a port is taken, StorageFull or StorageAway when the database fails.
    """
    state_dir = settings.state_dir.absolute()
    registry = CollectorRegistry()
    bus.report_to(registry)
    with ExitStack() as house:
        engine = database.open_database(settings.database_url or database.default_url(state_dir), "training", stop=stop)
        house.callback(engine.dispose)
        events = Events(bus)
        jobs = Jobs(
            engine, max_queued=settings.max_queued, lease_s=settings.lease_s, max_attempts=settings.max_attempts
        )
        store = models.ModelStore(settings.model_store_url or models.default_url(state_dir), state_dir / "model-cache")
        reports = Reports(store.url)
        versions, aliases = Registry(engine, store), Aliases(engine, store, events.alias_changed)
        metrics = TrainingMetrics(registry, jobs)
        cancel = jobs.cancel
        if settings.role != "door":
            tracker = house.enter_context(
                tracking.Tracker(
                    settings.tracking_url or tracking.default_url(state_dir),
                    state_dir / "mlruns",
                    metrics.tracking_failures,
                    patience_s=settings.drain_s,
                )
            )
            worker = house.enter_context(
                Worker(
                    engine,
                    jobs,
                    versions,
                    aliases,
                    reports,
                    tracker,
                    metrics,
                    train or partial(_train, settings),
                    compare or partial(compare_on_whole_set, settings),
                    scratch=state_dir / "training",
                    lease_s=settings.lease_s,
                    drain_s=settings.drain_s,
                )
            )
            house.callback(waking(bus, worker).close)
            cancel = worker.cancel
        training = TrainingRpc(jobs, reports, settings, on_start=events.job_requested, cancel=cancel)
        model = ModelRpc(versions, aliases)
        contracts: dict[str, Callable[[grpc.Server], None]] = {
            "inspectbus.api.v1.TrainingService": partial(
                training_pb2_grpc.add_TrainingServiceServicer_to_server, training
            ),
            "inspectbus.api.v1.ModelService": partial(model_pb2_grpc.add_ModelServiceServicer_to_server, model),
        }
        door = house.enter_context(
            rpc_server("training", settings, registry, {} if settings.role == "worker" else contracts)
        )
        # Before the door closes: it waits for calls in hand, and whoever watches a job would stay till its end.
        house.callback(jobs.stop if settings.role == "door" else worker.stop)
        yield door


def _train(
    settings: TrainingSettings,
    plan: Plan,
    out_dir: Path,
    checkpoint_dir: Path,
    on_progress: OnProgress,
    cancel: threading.Event,
) -> None:
    """Trains on the part of the data that a replay will not show."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    trainer.train(
        plan,
        split(open_dataset(data_source(plan.data, settings.data_root))).train,
        out_dir,
        on_progress=on_progress,
        cancel=cancel,
        cache_dir=settings.state_dir.absolute() / "features",
        weights=settings.weights,
        checkpoint_dir=checkpoint_dir,
    )


def compare_on_whole_set(
    settings: TrainingSettings, terms: Terms, out_dir: Path, on_progress: OnProgress, cancel: threading.Event
) -> Mapping[str, Any]:
    """Compares on the whole set, and goes on from the trainings that an attempt on this machine has kept."""
    # Here, because it loads matplotlib, which a door never needs.
    from inspectbus.training.comparison.conductor import compare
    from inspectbus.training.comparison.report import write_report

    if settings.threads:
        torch.set_num_threads(settings.threads)
    state_dir = settings.state_dir.absolute()
    found = compare(
        terms,
        open_dataset(data_source(terms.plan.data, settings.data_root)),
        on_progress=on_progress,
        cancel=cancel,
        cache_dir=state_dir / "features",
        trainings_dir=state_dir / "comparisons",
        weights=settings.weights,
    )
    return write_report(found, out_dir)
