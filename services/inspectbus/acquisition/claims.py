"""A large image rests in the frame store before its message leaves, and the message carries the claim.

frame with image ── larger than inline_max_bytes ──> frame store ──> the same frame with a claim in its place
"""

from __future__ import annotations

from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.stores.frames import FrameStore, default_url, original_key


class Claims:
    """Thread-safe; one for all stations, which share the store's connections."""

    def __init__(self, settings: AcquisitionSettings, metrics: AcquisitionMetrics) -> None:
        self._store = FrameStore(
            settings.frame_store_url or default_url(settings.state_dir), fsync=settings.frame_store_fsync
        )
        self._inline_max_bytes = settings.inline_max_bytes
        self._seconds = metrics.claim_seconds

    def claimed(self, frame: Frame) -> Frame:
        """The frame itself, changed in place when its image is large: sent again, it is not written again.

        Raises StorageFull, StorageAway: the frame is as it was, and its sender may try again.
        """
        if len(frame.image) > self._inline_max_bytes:
            with self._seconds.time():
                claim = self._store.claim(original_key(frame, frame.image), frame.image)
            frame.claim.CopyFrom(claim)
            frame.ClearField("image")
        return frame
