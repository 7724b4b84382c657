"""Shadows: a second version judges the same prepared frames, and what it says is compared and never acted on.

frame that production took ─> in the share? ─> its queue ─> an engine while production has no images
                                  └── no version, other preparation, queue full, too late, not to be published: dropped
score ─> ShadowDecision ─> inspectbus.shadows

Nothing here raises or waits on a frame's way. A frame's acknowledgement never depends on its shadow, so what is dropped
or lost is lost: it is counted, by reason.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

import prometheus_client as prometheus
import structlog

from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.bus import Bus, topics
from inspectbus.bus.messages import shadow_message
from inspectbus.domain.thresholds import Thresholds
from inspectbus.errors import InspectBusError, QueueFull, TooLate
from inspectbus.imaging.pixels import from_pixels
from inspectbus.inference.batcher import Scored
from inspectbus.inference.canary import falls_in
from inspectbus.inference.loader import Loader
from inspectbus.inference.serving import Serving
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.verdict import thresholds_for, verdict_of

log = structlog.get_logger(__name__)

SOURCE = "inference"
UNCONFIRMED = 32
"""Published at once: a small part of the window in which decisions must find room too."""
PUBLISH_PATIENCE_S = 5.0
"""Then the bus is asked to give it up. Decisions wait longer."""


class Shadows:
    """Thread-safe. Use as a context."""

    def __init__(self, bus: Bus, settings: InferenceSettings, registry: prometheus.CollectorRegistry) -> None:
        self._bus = bus
        self._settings = settings
        self._places = threading.Semaphore(UNCONFIRMED)
        # Not the engine's thread, which may not wait for the bus. Its queue is bounded by the places.
        self._publisher = ThreadPoolExecutor(1, "inference-shadows")
        self._published = prometheus.Counter(
            "inspectbus_inference_shadows", "What shadows said, published.", ["model"], registry=registry
        )
        self._dropped = prometheus.Counter(
            "inspectbus_inference_shadows_dropped",
            "Frames in the share that have no shadow, by reason.",
            ["model", "reason"],
            registry=registry,
        )

    def __enter__(self) -> Shadows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # What waits to be published is nobody's loss; the bus may be full.
        self._publisher.shutdown(cancel_futures=True)

    def follow(self, loader: Loader, prepared: PreparedFrame) -> None:
        """For a frame that was given to the version that decides it. A replayed one has had its shadow."""
        frame = prepared.frame
        if frame.revision or not falls_in(frame.frame_id, self._settings.shadow_share, "shadow"):
            return
        deadline_s = time.monotonic() + self._settings.shadow_patience_s
        try:
            with loader.chosen(preparation_hash=prepared.preparation_hash) as serving:
                if serving is None:
                    self._drop(loader.model, "no_model")
                    return
                if serving.card.preparation.hash != prepared.preparation_hash:
                    self._drop(loader.model, "preparation")
                    return
                thresholds = thresholds_for(prepared, serving.card)
                said = _said_of(prepared, serving, thresholds)
                scored = serving.call(from_pixels(prepared.pixels), deadline_s)
        except QueueFull:
            self._drop(loader.model, "queue_full")
        except InspectBusError as error:
            self._drop(loader.model, type(error).__name__)
        else:
            scored.add_done_callback(partial(self._scored, said, thresholds))

    def _scored(self, said: ShadowDecision, thresholds: Thresholds, scored: Future[Scored]) -> None:
        """On the engine's thread, which goes on at once."""
        try:
            answer = scored.result()
            said.score = answer.score
            said.verdict = verdict_of(answer.score, thresholds)
        except TooLate:
            self._drop(said.model, "too_late")
            return
        except Exception as error:  # whatever the engine raised; the batcher has logged it
            self._drop(said.model, type(error).__name__)
            return
        said.inferred_at.FromNanoseconds(int(answer.inferred_at_s * 1e9))
        if not self._places.acquire(blocking=False):
            self._drop(said.model, "unpublished")
            return
        try:
            self._publisher.submit(self._publish, said)
        except RuntimeError:  # the service ends
            self._settle(said.model, published=False)

    def _publish(self, said: ShadowDecision) -> None:
        try:
            confirmed = self._bus.publish(topics.SHADOWS, shadow_message(said, SOURCE), patience_s=PUBLISH_PATIENCE_S)
        except InspectBusError as error:
            log.debug("a shadow could not be published", frame_id=said.frame_id, error=error.message)
            self._settle(said.model, published=False)
            return
        model = said.model
        confirmed.add_done_callback(
            lambda future: self._settle(model, published=not future.cancelled() and future.exception() is None)
        )

    def _settle(self, model: str, *, published: bool) -> None:
        self._places.release()
        if published:
            self._published.labels(model).inc()
        else:
            self._drop(model, "unpublished")

    def _drop(self, model: str, reason: str) -> None:
        self._dropped.labels(model, reason).inc()


def _said_of(prepared: PreparedFrame, serving: Serving, thresholds: Thresholds) -> ShadowDecision:
    """All but what the engine has to say. The frame itself, with its pixels, need not be kept meanwhile."""
    frame, card = prepared.frame, serving.card
    return ShadowDecision(
        frame_id=frame.frame_id,
        line=frame.line,
        station=frame.station,
        model=card.name,
        model_version=card.version,
        threshold=thresholds.defective_from,
        qualified_below=thresholds.qualified_below if thresholds.band else None,
        recipe=prepared.recipe,
        recipe_version=prepared.recipe_version,
        preparation_hash=prepared.preparation_hash,
    )
