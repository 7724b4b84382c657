"""What preprocessing counts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from inspectbus.api.v1.decision_pb2 import HoldReason

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class PreprocessingMetrics:
    """Thread-safe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.prepared = Counter(
            "inspectbus_preprocessing_prepared", "Prepared frames sent to inference.", registry=registry
        )
        self._holds = Counter(
            "inspectbus_preprocessing_holds",
            "Frames held before inference, by reason and, for unusable images, by measure.",
            ["reason", "measure"],
            registry=registry,
        )
        self._seconds = Histogram(
            "inspectbus_preprocessing_step_seconds",
            "Time of one step on one frame.",
            ["step"],
            buckets=_BUCKETS_S,
            registry=registry,
        )

    def held(self, reason: HoldReason.ValueType, measure: str = "") -> None:
        self._holds.labels(HoldReason.Name(reason).removeprefix("HOLD_REASON_").lower(), measure).inc()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds.labels(step).observe(time.perf_counter() - begun)
