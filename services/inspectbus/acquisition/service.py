"""Acquisition, joined: stations and senders on one side, the bus on the other.

sources ─> stations ─┐
                     ├─> outlets ─────> bus
gRPC ─> rpc ─────────┘     └─> spools ─┘ │
         ^                               │
         └── inspections <── decisions ──┘
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
from prometheus_client import CollectorRegistry

from inspectbus.acquisition.inspections import Inspections
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.plant import Plant
from inspectbus.acquisition.rpc import AcquisitionRpc
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import acquisition_pb2_grpc
from inspectbus.bus import Bus
from inspectbus.runtime.rpc_server import Door, rpc_server

SERVICE = "inspectbus.api.v1.AcquisitionService"


@contextmanager
def open_service(settings: AcquisitionSettings, bus: Bus) -> Iterator[Door]:
    """Yields the service's door. Leaving stops the cameras, ends the calls, and waits for what is in flight."""
    registry = CollectorRegistry()
    bus.report_to(registry)
    metrics = AcquisitionMetrics(registry)
    closing = threading.Event()
    with ExitStack() as house:
        inspections = house.enter_context(Inspections(settings, metrics))
        plant = house.enter_context(Plant(settings, bus, metrics, inspections.hear))
        rpc = AcquisitionRpc(plant, inspections, settings, closing)

        def add(server: grpc.Server) -> None:
            acquisition_pb2_grpc.add_AcquisitionServiceServicer_to_server(rpc, server)

        door = house.enter_context(rpc_server("acquisition", settings, registry, {SERVICE: add}))
        # First to happen when we leave: no new frames while the calls in hand are ended.
        house.callback(plant.ask_to_stop)
        # A little less than the calls get, so that they end with an answer.
        house.callback(inspections.finish_within, 0.8 * settings.drain_s)
        house.callback(closing.set)
        plant.start()
        yield door
