"""Evidence: the images behind a decision, kept in the frame store before the decision is told.

original, prepared image, heatmap ─> frame store ─> their keys in the decision

What travelled by claim rests there already: its evidence is the claim's own key, and no second copy. The heatmap came
with the score, and is painted for the frames that leave evidence and for no other.
"""

from __future__ import annotations

import uuid

import cv2
import numpy as np
import prometheus_client as prometheus
import structlog

from inspectbus.api.v1.decision_pb2 import VERDICT_QUALIFIED, Decision, Evidence
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.errors import BadField, StorageAway, StorageFull
from inspectbus.imaging.pixels import from_pixels
from inspectbus.inference.engine import Heatmap
from inspectbus.inference.explanation import painted
from inspectbus.stores.frames import FrameStore, checked_claim, evidence_key, original_key

log = structlog.get_logger(__name__)


class EvidenceKeeper:
    """Keeps every DEFECTIVE and HOLD frame, and a share of the QUALIFIED ones."""

    def __init__(
        self, store: FrameStore, registry: prometheus.CollectorRegistry, *, keep: bool, qualified_share: float
    ) -> None:
        self._store = store
        self._keep = keep
        self._qualified_share = qualified_share
        self._failures = prometheus.Counter(
            "inspectbus_inference_evidence_failures", "Frames whose images could not be kept.", registry=registry
        )

    def keep(self, prepared: PreparedFrame, decision: Decision, heatmap: Heatmap | None) -> Evidence:
        """The keys of what was kept; empty ones where nothing was.

        A store that fails costs the evidence, never the decision: the line needs that in time. It is counted.
        """
        if not self._wanted(decision):
            return Evidence()
        frame = prepared.frame
        evidence = Evidence()
        try:
            if frame.HasField("claim"):
                evidence.original_key = checked_claim(frame.claim, frame, "frame.claim").key
            elif frame.image:
                key = original_key(frame, frame.image)
                self._store.put(key, frame.image)
                evidence.original_key = key
            if prepared.pixels.HasField("claim"):
                evidence.prepared_key = checked_claim(prepared.pixels.claim, frame, "pixels.claim").key
            elif prepared.pixels.data:
                key = evidence_key(frame.line, frame.station, frame.frame_id, "prepared", "png")
                self._store.put(key, _png(prepared))
                evidence.prepared_key = key
            # A network that gave no number has nothing to show either.
            if heatmap is not None and np.isfinite(heatmap).all():
                key = evidence_key(frame.line, frame.station, frame.frame_id, "heatmap", "png")
                self._store.put(key, painted(from_pixels(prepared.pixels), heatmap))
                evidence.heatmap_key = key
        except (StorageFull, StorageAway, BadField, cv2.error) as error:
            self._failures.inc()
            log.error("evidence could not be kept", frame_id=frame.frame_id, error=repr(error))
        return evidence

    def _wanted(self, decision: Decision) -> bool:
        if decision.verdict != VERDICT_QUALIFIED:
            return self._keep
        # By the frame's id, so that a frame which comes again is chosen again, or again not.
        return uuid.UUID(decision.frame_id).int % 1_000_000 < self._qualified_share * 1_000_000


def _png(prepared: PreparedFrame) -> bytes:
    image = from_pixels(prepared.pixels)
    _, encoded = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))
    return encoded.tobytes()
