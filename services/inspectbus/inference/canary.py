"""Which frames a canary takes: those of named stations, and a share of all, by frame id and not by chance.

frame ─┬─ of a named station, or in the share, and prepared as the canary expects ─> canary
       └─ any other ──────────────────────────────────────────────────────────────> the version it asks for

A frame that comes again goes the same way, or the ledger would see two versions disagree about one part.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.inference.models import Member
from inspectbus.inference.serving import Serving
from inspectbus.inference.settings import InferenceSettings

PARTS = 2**64


def falls_in(frame_id: str, share: float, purpose: str) -> bool:
    """Whether the frame is in the share. Shares for different purposes are independent of each other."""
    digest = hashlib.blake2b(uuid.UUID(frame_id).bytes, digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest) < share * PARTS


@contextmanager
def chosen(member: Member, prepared: PreparedFrame, settings: InferenceSettings) -> Iterator[Serving | None]:
    """Holds the version that decides this frame, as `InService.chosen` does.

    The canary where it takes the frame and can: one that is not loaded, or was trained on another preparation, takes
    none.
    """
    if member.canary is not None and _is_for_canary(prepared.frame, settings):
        with member.canary.chosen(preparation_hash=prepared.preparation_hash) as serving:
            if serving is not None and serving.card.preparation.hash == prepared.preparation_hash:
                yield serving
                return
    with member.loader.chosen(preparation_hash=prepared.preparation_hash) as serving:
        yield serving


def _is_for_canary(frame: Frame, settings: InferenceSettings) -> bool:
    if f"{frame.line}/{frame.station}" in settings.canary_stations:
        return True
    return falls_in(frame.frame_id, settings.canary_share, "canary")
