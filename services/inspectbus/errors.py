"""Every error a caller can meet, on one page.

Each kind carries what the wire needs: the gRPC status, whether trying again may help, and which field is at fault.
`runtime/refusals.py` turns any of them into a rich status; `inspectbus_client` turns the status back by kind name.

    InspectBusError
    ├── BadField             the request, file or setting is wrong
    │   └── UnreadableImage  the bytes are no image we accept
    ├── NotFound             no such station, recipe, frame, job, model
    ├── AlreadyRunning       the thing asked for is under way already
    ├── NotPossibleNow       a precondition does not hold; the caller must change something first
    │   ├── CorruptModel     a model version's files do not fit its card
    │   ├── WorseModel       a version that is not as good as the one in production would replace it
    │   └── CorruptObject    an object of the frame store is not the one its claim describes
    ├── NotIdentified        who calls is not known: no token, or one that nobody was given
    ├── NotAllowed           the caller may not do this
    ├── TooFast              more calls or bytes than one caller may send; the same call may succeed soon
    ├── QueueFull            at a limit; the same call may succeed later
    ├── TooLarge             a message has more bytes than one may have
    ├── StorageFull          database, disk or bucket takes no more
    ├── StorageAway          database is locked, lost or restarting; the frame store does not answer
    ├── ModelNotReady        no model has been warmed up yet
    ├── BusClosed            the bus is gone; what was not confirmed must be sent again
    ├── BusAway              no broker answers, or none that may take anything
    ├── Unreachable          nobody answers at the service's address; made by the client, never sent
    ├── TooLate              the answer did not come within the caller's deadline
    └── Internal             a fault of ours
"""

from __future__ import annotations

import grpc


class InspectBusError(Exception):
    """Base of all errors. `field` names the request field or file at fault, empty when none is.

    `retry_s` is when the same call may succeed, where that is known; None leaves it to whoever tells the caller.
    """

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    retryable: bool = False
    outage: bool = False
    """What everybody needs is full or away: not the fault of the one message that met it, and never counted as one."""

    def __init__(self, message: str, *, field: str = "", retry_s: float | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.retry_s = retry_s

    @property
    def message(self) -> str:
        return str(self.args[0])


class BadField(InspectBusError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class UnreadableImage(BadField):
    pass


class NotFound(InspectBusError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyRunning(InspectBusError):
    code = grpc.StatusCode.ALREADY_EXISTS


class NotPossibleNow(InspectBusError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class CorruptModel(NotPossibleNow):
    pass


class WorseModel(NotPossibleNow):
    pass


class CorruptObject(NotPossibleNow):
    pass


class NotIdentified(InspectBusError):
    code = grpc.StatusCode.UNAUTHENTICATED


class NotAllowed(InspectBusError):
    code = grpc.StatusCode.PERMISSION_DENIED


class TooFast(InspectBusError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True


class QueueFull(InspectBusError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True
    outage = True


class TooLarge(InspectBusError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class StorageFull(InspectBusError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True
    outage = True


class StorageAway(InspectBusError):
    code = grpc.StatusCode.UNAVAILABLE
    retryable = True
    outage = True


class ModelNotReady(InspectBusError):
    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class BusClosed(InspectBusError):
    code = grpc.StatusCode.UNAVAILABLE
    retryable = True
    outage = True


class BusAway(InspectBusError):
    code = grpc.StatusCode.UNAVAILABLE
    retryable = True
    outage = True


class Unreachable(InspectBusError):
    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class TooLate(InspectBusError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    retryable = True


class Internal(InspectBusError):
    """A fault of ours, whose details are in the log."""

    code = grpc.StatusCode.INTERNAL


def kinds() -> dict[str, type[InspectBusError]]:
    """Every kind by its name, as the wire spells it."""
    found: dict[str, type[InspectBusError]] = {}
    waiting: list[type[InspectBusError]] = [InspectBusError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting.extend(kind.__subclasses__())
    return found
