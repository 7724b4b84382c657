"""Preprocessing, joined: recipes and models ─> preparer ─> the bus door and the gRPC door."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import cv2
from prometheus_client import CollectorRegistry

from inspectbus.api.v1.preprocessing_pb2_grpc import add_PreprocessingServiceServicer_to_server
from inspectbus.bus import Bus
from inspectbus.imaging.decoding import DecodeLimits
from inspectbus.preprocessing.events import frames_prepared
from inspectbus.preprocessing.metrics import PreprocessingMetrics
from inspectbus.preprocessing.preparer import Preparer
from inspectbus.preprocessing.recipes import Recipes
from inspectbus.preprocessing.rpc import NAME, PreprocessingRpc
from inspectbus.preprocessing.settings import PreprocessingSettings
from inspectbus.runtime.rpc_server import Door, rpc_server
from inspectbus.runtime.watchdog import Watchdog
from inspectbus.stores.database import default_url, open_database
from inspectbus.stores.frames import FrameStore
from inspectbus.stores.frames import default_url as default_frames_url
from inspectbus.stores.model_directory import ModelDirectory


@contextmanager
def open_service(settings: PreprocessingSettings, bus: Bus, *, stop: threading.Event | None = None) -> Iterator[Door]:
    """Serves until left; leaving takes no new calls and frames, and finishes those in hand. A database that is away is
    waited for until `stop` is set."""
    # Each worker is one thread already; OpenCV's own would only take turns with them.
    cv2.setNumThreads(settings.opencv_threads)
    registry = CollectorRegistry()
    bus.report_to(registry)
    metrics = PreprocessingMetrics(registry)
    limits = DecodeLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    store = FrameStore(
        settings.frame_store_url or default_frames_url(settings.state_dir), fsync=settings.frame_store_fsync
    )
    with ExitStack() as house:
        database = open_database(settings.database_url or default_url(settings.state_dir), "preprocessing", stop=stop)
        house.callback(database.dispose)
        recipes = Recipes(database, settings.recipe_fresh_s)
        models = house.enter_context(
            ModelDirectory(settings.models_address, settings.state_dir / "directory", access=settings.access)
        )
        watchdog = house.enter_context(Watchdog(settings.call_limit_s))
        preparer = Preparer(recipes, models, limits, metrics, watchdog)
        house.enter_context(
            frames_prepared(
                bus,
                preparer,
                store,
                metrics,
                inline_max_bytes=settings.inline_max_bytes,
                max_image_bytes=settings.max_image_bytes,
                workers=settings.workers,
                prefetch=settings.prefetch,
                drain_s=settings.drain_s,
            )
        )
        rpc = PreprocessingRpc(preparer, recipes)
        contracts = {NAME: lambda server: add_PreprocessingServiceServicer_to_server(rpc, server)}
        yield house.enter_context(rpc_server("preprocessing", settings, registry, contracts))
