"""A failed call, brought back into the family of `inspectbus.errors`.

grpc.RpcError ─> ErrorInfo names the kind, BadRequest the field, RetryInfo when to come again ─> Failure
            └── no ErrorInfo, so none of our services spoke: the kind follows from the status code
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from inspectbus import errors
from inspectbus.api.v1 import refusal_pb2
from inspectbus.errors import InspectBusError

_BY_CODE: dict[grpc.StatusCode, type[InspectBusError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.BadField,
    grpc.StatusCode.OUT_OF_RANGE: errors.BadField,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyRunning,
    grpc.StatusCode.FAILED_PRECONDITION: errors.NotPossibleNow,
    grpc.StatusCode.PERMISSION_DENIED: errors.NotAllowed,
    grpc.StatusCode.UNAUTHENTICATED: errors.NotIdentified,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.QueueFull,
    grpc.StatusCode.UNAVAILABLE: errors.Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TooLate,
    grpc.StatusCode.UNKNOWN: errors.Internal,
    grpc.StatusCode.INTERNAL: errors.Internal,
    grpc.StatusCode.DATA_LOSS: errors.Internal,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}

D = TypeVar("D", bound=Message)


class Place(NamedTuple):
    """Where a service is meant to be."""

    service: str
    address: str

    def __str__(self) -> str:
        return f"the {self.service} service, {self.address}"


@dataclass(frozen=True)
class Failure:
    """Why one try failed, and whether another may help."""

    error: InspectBusError
    retry_after_s: float | None = None
    """What the service asked for; None when it asked for nothing."""
    answered: bool = False
    """A service of ours said so itself; otherwise the connection, a proxy or a clock did."""

    @property
    def may_pass(self) -> bool:
        # We cancel by closing only, and then no other try is made; else a server or a proxy on its way out did it.
        cut_off = self.error.code is grpc.StatusCode.CANCELLED and not self.answered
        return self.error.code is grpc.StatusCode.UNAVAILABLE or cut_off or self.retry_after_s is not None

    @property
    def stream_broke(self) -> bool:
        """A stream met this: it was cut or outlived its deadline, and nobody refused what it asks."""
        outlived = self.error.code is grpc.StatusCode.DEADLINE_EXCEEDED and not self.answered
        return self.may_pass or outlived


def failure_of(error: grpc.RpcError, where: Place) -> Failure:
    """`where` is for messages nobody of ours has worded."""
    call = cast(grpc.Call, error)
    status = _rich_status(call)
    info = _detail(status, error_details_pb2.ErrorInfo)
    if info is None or info.domain != "inspectbus":
        return Failure(_from_code(call.code(), call.details() or "", where))
    request = _detail(status, error_details_pb2.BadRequest)
    field = request.field_violations[0].field if request and request.field_violations else ""
    retry = _detail(status, error_details_pb2.RetryInfo)
    kind = errors.kinds().get(info.reason) or _kind_of(call.code())
    return Failure(
        _made(kind, call.details() or "", field, call.code()),
        retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
        answered=True,
    )


def from_refusal(refusal: refusal_pb2.Refusal) -> InspectBusError:
    """The same for one refused item of a stream that went on."""
    code = _CODES.get(refusal.code, grpc.StatusCode.UNKNOWN)
    kind = errors.kinds().get(refusal.reason) or _kind_of(code)
    return _made(kind, refusal.message, refusal.field, code)


def _rich_status(call: grpc.Call) -> status_pb2.Status | None:
    try:
        return cast("status_pb2.Status | None", rpc_status.from_call(call))
    except ValueError:  # details that contradict the status come from no service of ours
        return None


def _detail(status: status_pb2.Status | None, kind: type[D]) -> D | None:
    for packed in status.details if status else ():
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None


def _from_code(code: grpc.StatusCode, details: str, where: Place) -> InspectBusError:
    if code is grpc.StatusCode.UNAVAILABLE and "CERTIFICATE_VERIFY_FAILED" in details:
        says = "its certificate is for another name, is not one that the authority named vouches for, or has expired"
        details = f"{where} is not trusted: {says} ({details})"
    elif code is grpc.StatusCode.UNAVAILABLE:
        details = f"nobody answers at {where}: start it with `inspectbus serve {where.service}` ({details})"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"no answer from {where} within the deadline"
    else:
        details = f"{where}: {details}"
    return _made(_kind_of(code), details, "", code)


def _kind_of(code: grpc.StatusCode) -> type[InspectBusError]:
    return _BY_CODE.get(code, InspectBusError)


def _made(kind: type[InspectBusError], message: str, field: str, code: grpc.StatusCode) -> InspectBusError:
    error = kind(message, field=field)
    error.code = code
    return error
