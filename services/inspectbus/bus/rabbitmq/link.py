"""A link: one connection to the broker, owned by one thread and kept up until it is closed.

    other threads ── wake ──> loop thread ─> tenant.work          pika's objects are touched by this thread alone
    broker up ──────────────> loop thread ─> tenant.opened
    broker lost, or drop ───> loop thread ─> tenant.lost ─> pause with jitter ─> next node

A process has two links, one to publish and one to consume: a broker in memory alarm stops reading from publishers, and
a connection that does both would have its acknowledgements stopped too.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any, Protocol

import pika
import structlog
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils import io_services_utils
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import (
    AMQPConnectionError,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from inspectbus.bus.rabbitmq.addresses import Addresses
from inspectbus.bus.rabbitmq.topology import no_answer

log = structlog.get_logger(__name__)

# pika reads 4 KiB at a time and copies what it has each time: an image costs dozens of copies. It also looks for other
# work after 100 KiB: then every image would wake its reader alone, where a burst wakes it once. Private names, so they
# are only touched where they are what we know.
_READS = getattr(io_services_utils, "_AsyncTransportBase", None)
if getattr(_READS, "_MAX_RECV_BYTES", None) == 4096:
    _READS._MAX_RECV_BYTES = 128 * 1024  # type: ignore[union-attr]
if getattr(_READS, "_MAX_CONSUME_BYTES", None) == 100 * 1024:
    _READS._MAX_CONSUME_BYTES = 1024 * 1024  # type: ignore[union-attr]

TICK_S = 0.5
"""How often tenants look at their deadlines."""


class _Dropped(AMQPConnectionError):
    """We ended the connection ourselves; the text says why."""


class Tenant(Protocol):
    """Whoever works over a link. All methods are called on the link's thread."""

    def opened(self, connection: pika.SelectConnection) -> None: ...

    def lost(self) -> None: ...

    def work(self) -> None:
        """After a wake, and every TICK_S while the link is up."""


class Link:
    """Thread-safe, except what is marked as the loop's own."""

    def __init__(self, purpose: str, addresses: Addresses) -> None:
        self._purpose = purpose
        self._addresses = addresses
        self._nodes = itertools.cycle(enumerate(addresses.nodes))
        self._changed = threading.Condition()
        self._tenants: list[Tenant] = []
        self._newcomers: list[Tenant] = []
        self._loop: IOLoop | None = None
        self._connection: pika.SelectConnection | None = None
        self._woken = False
        self._closing = False
        self._tried = False
        self._trouble = "not connected yet"
        self.refused = False
        """The broker answered and said no: credentials, vhost. Trying again helps only when somebody changes it."""
        self.connects = 0
        self.blocked = False
        """The broker is in memory or disk alarm and reads nothing from us."""
        self._thread = threading.Thread(target=self._run, name=f"bus-{purpose}", daemon=True)

    @property
    def trouble(self) -> str:
        return self._trouble

    def start(self) -> None:
        self._thread.start()

    def tried(self, patience_s: float) -> None:
        """Waits until the first try to connect has ended, in whatever way."""
        with self._changed:
            self._changed.wait_for(lambda: self._tried or self._closing, patience_s)

    def add(self, tenant: Tenant) -> None:
        with self._changed:
            self._newcomers.append(tenant)
        self.wake()

    def remove(self, tenant: Tenant) -> None:
        with self._changed:
            self._tenants = [other for other in self._tenants if other is not tenant]
            self._newcomers = [other for other in self._newcomers if other is not tenant]

    def wake(self) -> None:
        """Has every tenant's `work` called soon. Cheap: many calls become one."""
        with self._changed:
            if self._woken or self._loop is None:
                return
            self._woken = True
            self._loop.add_callback_threadsafe(self._work)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Calls on this thread, unless the connection goes first; 0 means when what can be read has been. The loop's
        own.
        """
        if self._loop is not None:
            self._loop.call_later(delay_s, call)

    def drop(self, reason: str) -> None:
        """Ends a connection that leads nowhere; a new one follows. The loop's own."""
        connection = self._connection
        if connection is None or connection.is_closed:
            return
        # Asking a peer that does not answer to close would wait for its answer. This is what pika itself does when
        # heartbeats stay away; a private name again.
        terminate: Any = getattr(connection, "_terminate_stream", None)
        if terminate is not None:
            terminate(_Dropped(reason))
        else:
            connection.close()

    def close(self, patience_s: float) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if self._loop is not None:
                self._loop.add_callback_threadsafe(self._say_goodbye)
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return
        self._thread.join(patience_s)
        if self._thread.is_alive():
            # The peer does not answer our goodbye.
            with self._changed:
                if self._loop is not None:
                    self._loop.add_callback_threadsafe(lambda: self.drop("closing"))
            self._thread.join(5.0)

    def _run(self) -> None:
        failures = 0
        while not self._closing:
            number, node = next(self._nodes)
            connects = self.connects
            try:
                # Asked for each time: certificates may have been renewed.
                self._connect_and_serve(node, self._addresses.parameters[number])
            except Exception as error:  # out of descriptors, say: this thread is all the bus has to come back by
                self._trouble = f"no connection to {node} can be made: {type(error).__name__}: {error}"[:300]
                log.exception("no connection can be made", purpose=self._purpose)
            failures = 0 if self.connects > connects else failures + 1
            with self._changed:
                self._tried = True
                self._changed.notify_all()
                if self._closing:
                    break
                longest_s = self._addresses.limits.reconnect_s
                # Jitter, so that a plant's services do not all come at once to a broker that has just come back.
                pause_s = min(longest_s, longest_s / 20 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
                self._changed.wait_for(lambda: self._closing, pause_s)
        self._trouble = "the bus has been closed"

    def _connect_and_serve(self, node: str, parameters: pika.ConnectionParameters) -> None:
        """One connection from its beginning to its end."""
        loop = IOLoop()
        connection = pika.SelectConnection(
            parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=lambda _, error: self._on_end(loop, node, error),
            on_close_callback=lambda _, error: self._on_end(loop, node, error),
            custom_ioloop=loop,
        )
        with self._changed:
            self._loop, self._connection, self._woken = loop, connection, False
        connection.add_on_connection_blocked_callback(lambda *_: self._on_blocked(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._on_blocked(False))
        try:
            loop.start()
        except Exception as error:  # a fault of ours or of pika must cost this connection and never the thread
            # pika stumbles when it is told to leave in the middle of a handshake; then all is over anyway.
            if not self._closing:
                log.exception("the connection's loop failed", purpose=self._purpose)
            self._on_end(loop, node, error)
        finally:
            with self._changed:
                self._loop = self._connection = None
            loop.close()

    def _on_open(self, connection: pika.SelectConnection) -> None:
        if self._closing:
            self._say_goodbye()
            return
        if self.connects:
            log.info("connected again", purpose=self._purpose, tries=self.connects)
        self.connects += 1
        self.refused = self.blocked = False
        self._trouble = ""
        with self._changed:
            self._tried = True
            self._tenants += self._newcomers
            self._newcomers = []
            tenants = list(self._tenants)
            self._changed.notify_all()
        for tenant in tenants:
            tenant.opened(connection)
        self._tick()

    def _tick(self) -> None:
        if self._connection is None or not self._connection.is_open or self._loop is None:
            return
        self._work()
        if self._loop is not None:
            self._loop.call_later(TICK_S, self._tick)

    def _work(self) -> None:
        with self._changed:
            self._woken = False
            connection = self._connection
            if connection is None or not connection.is_open:
                return
            newcomers, self._newcomers = self._newcomers, []
            self._tenants += newcomers
            tenants = list(self._tenants)
        for tenant in newcomers:
            tenant.opened(connection)
        for tenant in tenants:
            tenant.work()

    def _on_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        self._trouble = "the broker is in memory or disk alarm and takes nothing" if blocked else ""
        log.warning("broker alarm", purpose=self._purpose, blocked=blocked)

    def _on_end(self, loop: IOLoop, node: str, error: BaseException) -> None:
        trouble = self._words(node, error)
        if trouble != self._trouble and not self._closing:
            log.warning("no connection to the broker", purpose=self._purpose, trouble=trouble)
        self._trouble = trouble
        with self._changed:
            tenants = list(self._tenants)
        for tenant in tenants:
            tenant.lost()
        loop.stop()

    def _words(self, node: str, error: BaseException) -> str:
        text = str(error)
        if isinstance(error, _Dropped):
            return f"the connection to {node} was dropped: {text}"
        if isinstance(error, ProbableAuthenticationError) or "ACCESS_REFUSED" in text:
            self.refused = True
            return f"the broker at {node} refuses user {self._addresses.user!r}: wrong name or password"
        if isinstance(error, ProbableAccessDeniedError) or "vhost" in text:
            self.refused = True
            return f"the broker at {node} has no vhost {self._addresses.vhost!r} for user {self._addresses.user!r}"
        if isinstance(error, ConnectionClosedByBroker):
            return f"the broker at {node} closed the connection: {error.reply_text}"
        if isinstance(error, (AMQPConnectionError, AMQPConnectorException)):
            return no_answer(node, error)
        return f"the connection to {node} broke: {type(error).__name__}: {text}"[:300]

    def _say_goodbye(self) -> None:
        connection = self._connection
        if connection is not None and not (connection.is_closing or connection.is_closed):
            connection.close()
