"""The guard at a service's door: every call meets it before its bytes are parsed.

call ─> who is it, may it, not too often? ─> the service's rpc.py ─> its end, counted and timed
            ├── an InspectBusError refuses the call; anything else does as Internal, with an incident number
            └── whoever was refused for who it is, is told in the log: `call denied`

It knows neither threads nor an event loop: the two forms of a server (rpc_server.py, loop_server.py) ask it alike.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter, Histogram

from inspectbus.errors import BadField, InspectBusError, Internal, NotAllowed, NotIdentified, TooFast
from inspectbus.runtime.identity import ANONYMOUS, LOCAL_ADMIN, Doorkeeper, caller, host_of
from inspectbus.runtime.open_streams import OpenStreams
from inspectbus.runtime.quotas import Quotas
from inspectbus.runtime.refusals import status_of
from inspectbus.runtime.roles import Role, needed_for
from inspectbus.runtime.settings import ServiceSettings

log = structlog.get_logger(__name__)

DENIALS_TOLD_PER_S = 5.0
"""Of one address, by the log. All are counted; were all told, whoever is denied could fill the disk of the log."""


class Guard:
    """Of one server. Thread-safe."""

    def __init__(self, registry: CollectorRegistry, settings: ServiceSettings) -> None:
        """Raises BadField for tokens that cannot be used."""
        self._doorkeeper = Doorkeeper(settings.tokens)
        self._quotas = Quotas(settings.identity_calls_per_s, settings.identity_bytes_per_s)
        self._streams = OpenStreams(settings.rpc_threads)
        self._told = Quotas(DENIALS_TOLD_PER_S, 0.0)
        self._denied = Counter(
            "inspectbus_rpc_denied",
            "Calls refused for who made them, by method and kind of error.",
            ["method", "reason"],
            registry=registry,
        )
        # A series is looked up once, for that costs more than counting on it. There are as many as methods and codes.
        self._calls = cache(
            Counter(
                "inspectbus_rpc_calls", "gRPC calls by method and status.", ["method", "code"], registry=registry
            ).labels
        )
        self._seconds = cache(
            Histogram(
                "inspectbus_rpc_seconds", "Time from a call's start to its end.", ["method"], registry=registry
            ).labels
        )

    def call(self, method: str, context: Any) -> GuardedCall:
        """For one call of /package.Service/Method, with gRPC's context of either form."""
        return GuardedCall(self, method, context)


@dataclass(frozen=True, slots=True)
class Received:
    """One message as it came: nobody's bytes are parsed before it is known who sent them."""

    parse: Callable[[Any], Any]
    data: bytes | memoryview

    def open(self) -> Any:
        """Raises BadField where gRPC itself would answer INTERNAL, as if the fault were ours."""
        try:
            return self.parse(self.data)
        except DecodeError:
            raise BadField(f"the {len(self.data)} bytes received are no message of this call") from None


class GuardedCall:
    """One call, from its beginning to its end. Use as a context: of what is raised inside, it lets out only what gRPC
    has to see itself. Whoever comes after it ends the call with its `refusal`, where there is one.
    """

    refusal: grpc.Status | None = None
    """No exception, which would keep the request for as long as it is kept itself."""

    def __init__(self, guard: Guard, method: str, context: Any) -> None:
        self._guard = guard
        self._method = method
        self._context = context
        self._identity = ANONYMOUS

    def __enter__(self) -> Self:
        self._begun_s = time.monotonic()
        self._token = caller.set(self._identity)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        code = grpc.StatusCode.OK if error is None else self._code_of(error)
        # A stream's generator may be closed on another thread than it began on, where the token is unknown.
        with suppress(ValueError):
            caller.reset(self._token)
        self._guard._calls(self._method, code.name).inc()
        self._guard._seconds(self._method).observe(time.monotonic() - self._begun_s)
        return self.refusal is not None

    def admitted(self) -> None:
        """Whoever calls is `caller` from here on. Raises NotIdentified and NotAllowed."""
        self._identity = self._guard._doorkeeper.identify(self._context)
        caller.set(self._identity)
        self._guard._doorkeeper.admit(self._identity, self._method)
        self._counted = self._identity is not LOCAL_ADMIN and needed_for(self._method) is not Role.ANYBODY

    def place(self) -> AbstractContextManager[None]:
        """As `OpenStreams.place`: like the quotas, what one caller may have binds everybody but the local admin."""
        if self._identity is ANONYMOUS:
            return self._guard._streams.place_of_stranger()
        return self._guard._streams.place(self._account, shared=self._identity is not LOCAL_ADMIN)

    def take(self, size: int) -> float:
        """Counts a message of so many bytes; gives 0, or the seconds until it may come again, and counts nothing."""
        return self._guard._quotas.take(self._account, size) if self._counted else 0.0

    def check_pace(self, size: int) -> None:
        """For the one message of a call. Raises TooFast."""
        wait_s = self.take(size)
        if wait_s:
            raise TooFast(
                f"{self._identity.name} sends more than one caller may: try again in {wait_s:.2g} s", retry_s=wait_s
            )

    @property
    def _account(self) -> str:
        """Whose count it is: of those who said no name, each machine has its own."""
        name = self._identity.name
        return f"{name} {host_of(self._context.peer())}" if self._identity is ANONYMOUS else name

    def _code_of(self, error: BaseException) -> grpc.StatusCode:
        """What the call ends with; sets its refusal where that is ours to tell."""
        if _is_hang_up(error):
            late = self._context.time_remaining() == 0
            return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        if not isinstance(error, InspectBusError):
            code: grpc.StatusCode | None = self._context.code()
            if code is not None:  # the method itself called abort, which raises a bare Exception
                return code
            incident = uuid.uuid4().hex[:12]
            log.error("call failed", method=self._method, incident=incident, exc_info=error)
            error = Internal(f"a fault in the service; its log has the details under incident {incident}")
        elif isinstance(error, (NotIdentified, NotAllowed)):
            error = self._denial(error)
        self.refusal = status_of(error)
        return error.code

    def _denial(self, error: InspectBusError) -> InspectBusError:
        """Counts it and tells it in the log; gives the error to answer with, which for one more than an address may
        make is another."""
        reason, peer = type(error).__name__, host_of(self._context.peer())
        self._guard._denied.labels(self._method, reason).inc()
        if not self._guard._told.take(peer, 0):
            log.warning(
                "call denied",
                method=self._method,
                caller=self._identity.name,
                peer=peer,
                reason=reason,
                error=error.message,
            )
        wait_s = self._guard._quotas.take(f"{ANONYMOUS.name} {peer}", 0)
        if wait_s:
            return TooFast(f"too many calls of {peer} are denied: try again in {wait_s:.2g} s", retry_s=wait_s)
        return error


def _is_hang_up(error: BaseException) -> bool:
    """Whether this is what a method meets whose caller has gone.

    It is ended: a generator by GeneratorExit, a coroutine by CancelledError, neither of which is an Exception. Or gRPC
    tells it on threads, by a bare RpcError, whose kinds are for calls that we make.
    """
    return not isinstance(error, Exception) or type(error) is grpc.RpcError
