"""Evidence: the images behind a decision, kept in the frame store before the decision is told."""

from __future__ import annotations

import uuid

import cv2
import numpy as np
import prometheus_client as prometheus
import structlog

from inspectbus.api.v1.decision_pb2 import VERDICT_QUALIFIED, Decision, Evidence
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.errors import BadField
from inspectbus.imaging.pixels import from_pixels
from inspectbus.stores.frames import FrameStore, evidence_key

log = structlog.get_logger(__name__)

_SUFFIXES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"BM", "bmp"), (b"II*\x00", "tiff"), (b"MM\x00*", "tiff"))


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

    def keep(self, prepared: PreparedFrame, decision: Decision) -> Evidence:
        """The keys of what was kept; empty ones where nothing was.

        A store that fails costs the evidence, never the decision: the line needs that in time. It is counted.
        """
        if not self._wanted(decision):
            return Evidence()
        frame = prepared.frame
        evidence = Evidence()
        try:
            if frame.image:
                key = evidence_key(frame.line, frame.station, frame.frame_id, "original", _suffix(frame.image))
                self._store.put(key, frame.image)
                evidence.original_key = key
            if prepared.pixels.data:
                key = evidence_key(frame.line, frame.station, frame.frame_id, "prepared", "png")
                self._store.put(key, _png(prepared))
                evidence.prepared_key = key
        except (OSError, BadField, cv2.error) as error:
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


def _suffix(image: bytes) -> str:
    return next((suffix for magic, suffix in _SUFFIXES if image.startswith(magic)), "bin")
