"""A frame's identity: the same image of the same run always gets the same id, so sending it twice is harmless."""

from __future__ import annotations

import uuid

from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField

_NAMESPACE = uuid.UUID("6f1f2c52-0c4e-5d0a-9d0e-6a6c1f7b9c11")


def frame_id(line: str, station: str, run_id: str, source_item: str, sequence: int) -> str:
    """UUIDv5 of station, run, source item and sequence."""
    # The unit separator cannot stand in a name or a run id, so no two different frames spell the same text.
    text = "\x1f".join((line, station, run_id, str(sequence), source_item))
    return str(uuid.uuid5(_NAMESPACE, text))


def checked_frame_id(value: str, field: str = "frame_id") -> str:
    """The sender's own UUID in canonical form. Raises BadField when it is none."""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise BadField(f"{value[:80]!r} is not a UUID", field=field) from None


def checked_frame(frame: Frame) -> Frame:
    """The frame, when its id, line and station may stand in keys and records. Raises BadField naming the one at fault.

    Whoever takes frames from the bus asks this first: only for such a frame can a decision be published.
    """
    if checked_frame_id(frame.frame_id) != frame.frame_id:
        raise BadField(f"{frame.frame_id!r} is a UUID, but not in its lower-case form with dashes", field="frame_id")
    checked_name(frame.line, "line")
    checked_name(frame.station, "station")
    return frame
