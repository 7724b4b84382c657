"""What the batcher counts."""

from __future__ import annotations

import threading
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inspectbus.bus import Lane

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class BatcherMetrics:
    """Made once per registry; a batcher that follows another, or stands beside it, counts on. Thread-safe."""

    def __init__(self, registry: CollectorRegistry, max_batch_size: int) -> None:
        sizes = sorted({*(2**power for power in range(max_batch_size.bit_length())), max_batch_size})
        self._batch_size = Histogram(
            "inspectbus_inference_batch_size", "Images per run of the engine.", buckets=sizes, registry=registry
        )
        # A series is looked up once, for that costs more than counting on it.
        queue_seconds = Histogram(
            "inspectbus_inference_queue_seconds",
            "From arrival to the engine.",
            ["lane"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._queue_seconds = {lane: queue_seconds.labels(lane.value) for lane in Lane}
        self._compute_seconds = Histogram(
            "inspectbus_inference_compute_seconds", "One run of the engine.", buckets=_BUCKETS_S, registry=registry
        )
        waiting = Gauge("inspectbus_inference_waiting", "Images that wait for the engine.", ["lane"], registry=registry)
        self._waiting = dict.fromkeys(Lane, 0)
        for lane in Lane:
            waiting.labels(lane.value).set_function(partial(self._waiting.__getitem__, lane))
        self._dropped = Counter(
            "inspectbus_inference_dropped", "Images not computed, by reason.", ["reason", "lane"], registry=registry
        )
        self.engine_errors = Counter(
            "inspectbus_inference_engine_errors", "Runs of the engine that raised.", registry=registry
        )
        self.slot_bytes = Gauge(
            "inspectbus_inference_slot_bytes", "Memory of batches that wait or are computed.", registry=registry
        )
        self.sizes = dict.fromkeys(range(1, max_batch_size + 1), 0)
        """Runs by exact size, for GetEngine. Never has a new key."""
        self._lock = threading.Lock()

    def came(self, lane: Lane, count: int) -> None:
        with self._lock:
            self._waiting[lane] += count

    def went(self, lane: Lane, count: int) -> None:
        with self._lock:
            self._waiting[lane] -= count

    def dropped(self, reason: str, lane: Lane, count: int = 1) -> None:
        self._dropped.labels(reason, lane.value).inc(count)

    def begun(self, lane: Lane, waited_s: list[float]) -> None:
        """One batch, after its images waited so long."""
        queue_seconds = self._queue_seconds[lane]
        for each_s in waited_s:
            queue_seconds.observe(each_s)

    def ran(self, count: int, compute_s: float) -> None:
        self._compute_seconds.observe(compute_s)
        self._batch_size.observe(count)
        with self._lock:
            self.sizes[count] += 1
