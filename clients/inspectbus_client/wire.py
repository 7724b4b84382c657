"""The way to the services: one channel each, made on first use, and the one place that tries a call again.

    ask ─> try ─> answer
            └── UNAVAILABLE, or a refusal that says when to come again: pause, within the caller's deadline ─> try
                   └── no try is left: is it TLS that keeps us out? ─> said in the error

Only a call that may be repeated is tried again: a read, or a frame whose id was fixed before the first try. An address
may name several replicas: calls go to them in turn, so one that restarts is left out, and a try that met it goes to
another.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeVar, get_args

import grpc
from opentelemetry import trace

from inspectbus.carrying import carrying
from inspectbus.channels import NO_ACCESS, Access, open_channel
from inspectbus.errors import BadField, InspectBusError, NotPossibleNow, Unreachable
from inspectbus.handshake import obstacle
from inspectbus_client.failures import Failure, Place, failure_of

Service = Literal["acquisition", "preprocessing", "inference", "training", "results"]

SERVICES: tuple[Service, ...] = get_args(Service)

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Asked = TypeVar("Asked", contravariant=True)
Received = TypeVar("Received", covariant=True)


class Method(Protocol[Asked, Received]):
    """A call with one answer; raises grpc.RpcError where it fails."""

    def __call__(self, request: Asked, /, *, timeout: float) -> Received: ...


class Stream(Protocol[Received]):
    """A call whose answers come one by one; iterating raises grpc.RpcError where it breaks."""

    def __iter__(self) -> Iterator[Received]: ...

    def __next__(self) -> Received: ...

    def cancel(self) -> Any: ...

    def initial_metadata(self) -> Any: ...


FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
"""A line's service is back within seconds of a restart; longer pauses would add to that for nothing."""

LOOK_S = 0.2
"""For each step of the look at a door that let no call in, beyond the caller's deadline: a door that is there answers
in milliseconds, and of one that is not there is nothing to say."""


_PLACE = r"(\[[0-9A-Fa-f:.]+\]|[^\s:/,\[\]]+):\d{1,5}"
_ADDRESS = re.compile(rf"(dns:///)?{_PLACE}|ipv[46]:{_PLACE}(,{_PLACE})*|unix:.+")


class Backoff:
    """Growing, jittered pauses: a service that comes back must not meet all its clients at the same moment."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S

    def next_s(self, at_least_s: float | None = None) -> float:
        pause_s = max(self._pause_s, at_least_s or 0.0)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        return pause_s * random.uniform(1.0, 1.5)  # noqa: S311 - spreads clients, guards nothing


class Wire:
    """Thread-safe. Closing ends every call and stream that is under way."""

    def __init__(
        self,
        addresses: Mapping[Service, str],
        *,
        timeout_s: float,
        max_message_bytes: int,
        access: Access = NO_ACCESS,
    ) -> None:
        for service, address in addresses.items():
            if not _ADDRESS.fullmatch(address):
                raise BadField(
                    f"{address[:80]!r} is no address of a service: use HOST:PORT, or for replicas dns:///NAME:PORT "
                    "or ipv4:IP:PORT,IP:PORT",
                    field=service,
                )
        self.timeout_s = timeout_s
        self.max_message_bytes = max_message_bytes
        self.closed = threading.Event()
        self._access = access
        self._addresses = dict(addresses)
        self._channels: dict[Service, grpc.Channel] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            self.closed.set()
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def where(self, service: Service) -> Place:
        """For messages: 'the results service, 127.0.0.1:50055'."""
        return Place(service, self._addresses[service])

    def channel(self, service: Service) -> grpc.Channel:
        """Raises NotPossibleNow once closed, BadField for certificates or a token that cannot be used."""
        with self._lock:
            self.check_open()
            if service not in self._channels:
                channel = open_channel(self._addresses[service], self._access, self._options())
                # Who takes no traces pays for none.
                traced = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
                self._channels[service] = carrying(channel) if traced else channel
            return self._channels[service]

    def check_open(self) -> None:
        if self.closed.is_set():
            raise NotPossibleNow("this client has been closed")

    def ask(
        self,
        service: Service,
        method: Method[Request, Answer],
        request: Request,
        *,
        timeout_s: float | None = None,
        repeatable: bool = False,
        again: Callable[[Request], None] = lambda _: None,
    ) -> Answer:
        """One call with its deadline, tries included. Raises the kind of InspectBusError the service meant.

        `again` marks the request before it is sent once more.
        """
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        backoff = Backoff()
        while True:
            self.check_open()
            try:
                return method(request, timeout=deadline - time.monotonic())
            except grpc.RpcError as error:
                failure = failure_of(error, self.where(service))
                pause_s = backoff.next_s(failure.retry_after_s)
                # Not a try that could only end in TooLate: what the service said is worth more than that.
                out_of_time = time.monotonic() + pause_s >= deadline
                if not repeatable or not failure.may_pass or out_of_time:
                    raise self.last_word(service, failure) from error
            self.closed.wait(pause_s)
            again(request)

    def last_word(self, service: Service, failure: Failure) -> InspectBusError:
        """What is raised when no try is left. Whom TLS keeps out is told so: gRPC sees a closed connection only."""
        if failure.answered or not isinstance(failure.error, Unreachable) or self.closed.is_set():
            return failure.error
        says = obstacle(self._addresses[service], self._access, LOOK_S)
        return Unreachable(f"the {service} service does not let us in: {says}") if says else failure.error

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # We try again ourselves, where it is safe.
            ("grpc.enable_retries", 0),
            # Drops a connection whose other side has vanished. Servers take offence at pings below five minutes.
            ("grpc.keepalive_time_ms", 330_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
