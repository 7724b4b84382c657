"""An error as its caller hears it: the status that ends a call, or an item of a stream, which a status would end."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from inspectbus.api.v1 import refusal_pb2
from inspectbus.errors import InspectBusError

MAX_MESSAGE_BYTES = 1000
"""Of an error. Its text travels several times in the trailers, and gRPC drops trailers beyond 8 KiB, status and all."""
RETRY_HINT_S = 0.2
"""Told to callers of retryable errors that know no better: long enough for a batch to pass, short enough for a line."""


def status_of(error: InspectBusError) -> grpc.Status:
    """The rich status: ErrorInfo names the kind, BadRequest the field, RetryInfo says when to try again."""
    # What a caller sent may stand in the text, at any length and with halves of characters.
    text = error.message.encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=type(error).__name__, domain="inspectbus")]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retryable:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int((RETRY_HINT_S if error.retry_s is None else error.retry_s) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        any_detail = any_pb2.Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    return rpc_status.to_status(status_pb2.Status(code=error.code.value[0], message=text, details=packed))


def refusal(error: InspectBusError) -> refusal_pb2.Refusal:
    """The item of a stream."""
    return refusal_pb2.Refusal(
        code=error.code.value[0], reason=type(error).__name__, message=error.message, field=error.field
    )
