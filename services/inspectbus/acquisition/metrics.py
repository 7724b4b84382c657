"""Acquisition's operational numbers. Labels are stations of the plant, never what a sender wrote."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STATION = ("line", "station")


class AcquisitionMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.accepted = Counter("inspectbus_frames_accepted", "Frames the bus accepted.", _STATION, registry=registry)
        self.unreadable = Counter(
            "inspectbus_images_unreadable", "Images of a source that could not be read.", _STATION, registry=registry
        )
        self.failures = Counter(
            "inspectbus_publish_failures", "Attempts to publish that the bus refused.", _STATION, registry=registry
        )
        self.in_flight = Gauge(
            "inspectbus_frames_in_flight", "Frames published and not yet accepted.", _STATION, registry=registry
        )
        self.publish_seconds = Histogram(
            "inspectbus_publish_seconds",
            "From handing a frame to the bus until it is accepted.",
            _STATION,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.claim_seconds = Histogram(
            "inspectbus_claim_seconds",
            "Writing one large image to the frame store before its frame is published.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
            registry=registry,
        )
        self.back_pressure_seconds = Counter(
            "inspectbus_back_pressure_seconds",
            "Time a source waited because the line was full.",
            _STATION,
            registry=registry,
        )
        self.inspections = Counter(
            "inspectbus_inspections",
            "Inspections by how they ended: decided, or the kind of error.",
            ["outcome"],
            registry=registry,
        )
        self.inspections_waiting = Gauge(
            "inspectbus_inspections_waiting", "Inspections waiting for their decision.", registry=registry
        )
