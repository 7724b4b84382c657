"""An error as one item of a stream, where a status would end the whole call."""

from __future__ import annotations

from inspectbus.api.v1 import refusal_pb2
from inspectbus.errors import InspectBusError


def refusal(error: InspectBusError) -> refusal_pb2.Refusal:
    return refusal_pb2.Refusal(
        code=error.code.value[0], reason=type(error).__name__, message=error.message, field=error.field
    )
