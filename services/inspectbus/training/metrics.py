"""The training service's operational numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from inspectbus.errors import InspectBusError
from inspectbus.training.jobs import Jobs
from inspectbus.training.plan import Progress

# A training lasts seconds on a handful of images and hours on many.
_STAGE_BUCKETS_S = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400)
_EPOCH_BUCKETS_S = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1800)


class TrainingMetrics:
    """One per service, in its own registry."""

    def __init__(self, registry: CollectorRegistry, jobs: Jobs) -> None:
        registry.register(_JobCounts(jobs))
        self.stage_seconds = Histogram(
            "inspectbus_training_stage_seconds",
            "Duration of a training's stages.",
            ["stage"],
            buckets=_STAGE_BUCKETS_S,
            registry=registry,
        )
        self.epoch_seconds = Histogram(
            "inspectbus_training_epoch_seconds",
            "Duration of a training's epochs.",
            buckets=_EPOCH_BUCKETS_S,
            registry=registry,
        )
        self.tracking_failures = Counter(
            "inspectbus_training_tracking_failures", "Entries MLflow did not take.", registry=registry
        )


class Stopwatch:
    """Times the stages and epochs of one training from its progress."""

    def __init__(self, metrics: TrainingMetrics) -> None:
        self._metrics = metrics
        self._stage = ""
        self._stage_begun = self._epoch_begun = time.monotonic()
        self._epoch: float | None = None

    def see(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.stage != self._stage:
            self.stop()
            self._stage, self._stage_begun, self._epoch_begun, self._epoch = progress.stage, now, now, None
        epoch = progress.figures.get("epoch")
        if epoch is not None and epoch != self._epoch:
            self._metrics.epoch_seconds.observe(now - self._epoch_begun)
            self._epoch, self._epoch_begun = epoch, now

    def stop(self) -> None:
        """Ends the stage under way, if any."""
        if self._stage:
            self._metrics.stage_seconds.labels(self._stage).observe(time.monotonic() - self._stage_begun)
            self._stage = ""


class _JobCounts(Collector):
    """Counted in the table at each scrape, so that a restart forgets nothing and replicas agree."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def describe(self) -> list[Metric]:
        return [GaugeMetricFamily("inspectbus_training_jobs", "Training jobs by state.", labels=["state"])]

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("inspectbus_training_jobs", "Training jobs by state.", labels=["state"])
        try:
            for state, count in self._jobs.counts().items():
                family.add_metric([state], count)
        except InspectBusError:
            # The database is away: a gap in this one series, and all others are still scraped.
            pass
        yield family
