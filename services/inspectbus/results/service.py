"""Results, assembled: bus ─> recorder ─> ledger ─> gRPC door; the sweeper goes by the ledger to the frame store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prometheus_client import CollectorRegistry

from inspectbus.api.v1 import results_pb2, results_pb2_grpc
from inspectbus.bus import Bus
from inspectbus.results.events import recording
from inspectbus.results.ledger import Ledger
from inspectbus.results.metrics import LedgerMetrics, ShadowMetrics
from inspectbus.results.recorder import Recorder
from inspectbus.results.rpc import ResultsRpc
from inspectbus.results.settings import ResultsSettings
from inspectbus.results.shadows import ShadowBook
from inspectbus.results.sweeper import Sweeper
from inspectbus.results.watch import Watch
from inspectbus.runtime.rpc_server import Door, rpc_server
from inspectbus.stores.database import default_url, open_database
from inspectbus.stores.frames import FrameStore
from inspectbus.stores.frames import default_url as default_frames_url

_CONTRACT = results_pb2.DESCRIPTOR.services_by_name["ResultsService"].full_name


@contextmanager
def open_service(settings: ResultsSettings, bus: Bus, *, stop: threading.Event | None = None) -> Iterator[Door]:
    """Runs results until left. The bus is the caller's, who closes it afterwards. A database that is away is waited for
    until `stop` is set."""
    registry = CollectorRegistry()
    bus.report_to(registry)
    with ExitStack() as house:
        engine = open_database(settings.database_url or default_url(settings.state_dir), "results", stop=stop)
        house.callback(engine.dispose)
        ledger, metrics = Ledger(engine), LedgerMetrics(registry)
        watch = Watch(ledger, max_watchers=settings.max_watchers, poll_s=settings.watch_poll_s)
        recorder = house.enter_context(
            Recorder(
                ledger,
                metrics,
                max_batch_size=settings.max_batch_size,
                on_commit=watch.wake,
            )
        )
        shadows = ShadowBook(engine)
        shadow_recorder = house.enter_context(
            Recorder(shadows, ShadowMetrics(registry), max_batch_size=settings.max_batch_size, name="shadow-recorder")
        )
        house.enter_context(
            Sweeper(
                engine,
                shadows,
                FrameStore(settings.frame_store_url or default_frames_url(settings.state_dir)),
                registry,
                grace_s=settings.claim_grace_s,
                period_s=settings.sweep_period_s,
                batch_size=settings.sweep_batch_size,
                shadows_kept_s=settings.shadows_kept_s,
            )
        )
        house.enter_context(
            recording(bus, recorder, shadow_recorder, prefetch=settings.prefetch, drain_s=settings.drain_s)
        )
        rpc = ResultsRpc(ledger, shadows, watch, metrics)
        door = house.enter_context(
            rpc_server(
                "results",
                settings,
                registry,
                {_CONTRACT: lambda server: results_pb2_grpc.add_ResultsServiceServicer_to_server(rpc, server)},
            )
        )
        # Streams never end by themselves, so they are ended before the server waits for its calls in hand.
        house.enter_context(watch)
        yield door
