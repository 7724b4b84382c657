"""Acquisition's operational numbers. Labels are stations of the plant, never what a sender wrote."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inspectbus.api.v1.gate_pb2 import GateAction, GateOutcome, GateReason

_STATION = ("line", "station")


class AcquisitionMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.accepted = Counter(
            "inspectbus_frames_accepted",
            "Frames accepted: confirmed by the bus or synced on disk.",
            _STATION,
            registry=registry,
        )
        self.unreadable = Counter(
            "inspectbus_images_unreadable", "Images of a source that could not be read.", _STATION, registry=registry
        )
        self.repeated = Counter(
            "inspectbus_images_repeated",
            "Frames whose image is, byte for byte, that of the frame before: a camera that is frozen sends such.",
            _STATION,
            registry=registry,
        )
        self.station_state = Gauge(
            "inspectbus_station_state",
            "1 for the state a station is in: stopped, running, finished, failed or listening (for pushed frames).",
            (*_STATION, "state"),
            registry=registry,
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
        self.spooled = Counter(
            "inspectbus_frames_spooled", "Frames that went to disk, the bus being away.", _STATION, registry=registry
        )
        self.drained = Counter(
            "inspectbus_frames_drained", "Frames from disk that the bus accepted.", _STATION, registry=registry
        )
        self.dropped = Counter(
            "inspectbus_frames_dropped",
            "Accepted frames given up: the disk was full, or they were too old or beyond sending.",
            _STATION,
            registry=registry,
        )
        self.spool_frames = Gauge("inspectbus_spool_frames", "Frames on disk.", _STATION, registry=registry)
        self.spool_bytes = Gauge("inspectbus_spool_bytes", "Bytes of the frames on disk.", _STATION, registry=registry)
        self.spool_limit_bytes = Gauge(
            "inspectbus_spool_limit_bytes",
            "Bytes a station may keep on disk (spool_max_bytes); beyond it stops, or gives up the oldest.",
            _STATION,
            registry=registry,
        )
        self.spool_oldest_seconds = Gauge(
            "inspectbus_spool_oldest_seconds", "Age of the oldest frame on disk.", _STATION, registry=registry
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
        self.gate_outcomes = Counter(
            "inspectbus_gate_outcomes",
            "Gate outcomes by action and by reason.",
            (*_STATION, "action", "reason"),
            registry=registry,
        )
        self.gate_waited_seconds = Histogram(
            "inspectbus_gate_waited_seconds",
            "From capture to the gate's action.",
            _STATION,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
            registry=registry,
        )
        self.gate_pending = Gauge(
            "inspectbus_gate_pending", "Frames whose gate outcome is still to come.", _STATION, registry=registry
        )
        self.gate_journal_bytes = Gauge(
            "inspectbus_gate_journal_bytes", "Records a gate keeps on disk.", _STATION, registry=registry
        )
        self.gate_output_failures = Counter(
            "inspectbus_gate_output_failures",
            "Outcomes an output did not get.",
            (*_STATION, "output"),
            registry=registry,
        )

    def gate(self, line: str, station: str) -> GateMetrics:
        """The numbers of one station's gate."""
        return GateMetrics(self, line, station)


class GateMetrics:
    """One gate's share."""

    def __init__(self, metrics: AcquisitionMetrics, line: str, station: str) -> None:
        self._metrics = metrics
        self._station = (line, station)
        self.pending = metrics.gate_pending.labels(*self._station)
        self.journal_bytes = metrics.gate_journal_bytes.labels(*self._station)
        self._waited = metrics.gate_waited_seconds.labels(*self._station)

    def count(self, outcome: GateOutcome) -> None:
        action = GateAction.Name(outcome.action).removeprefix("GATE_ACTION_").lower()
        reason = GateReason.Name(outcome.reason).removeprefix("GATE_REASON_").lower()
        self._metrics.gate_outcomes.labels(*self._station, action, reason).inc()
        if outcome.HasField("waited_s"):
            self._waited.observe(outcome.waited_s)

    def output_failures(self, output: str) -> Counter:
        return self._metrics.gate_output_failures.labels(*self._station, output)
