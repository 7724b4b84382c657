"""The publisher: an outbox that holds every message until the broker has confirmed it.

    publish ─> window ─> outbox ─> broker ─ ack ──> the message's future
                  ^         ^─────────────── nack: again after a jittered pause
                  |         └─ connection lost, or no confirm in time: everything again, over a new connection
                  └── full: the caller waits, and that is the line's back-pressure

Sending again can mean twice: a message's id is the same each time, and whoever works on it is idempotent.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import pika
import structlog
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker, ChannelClosedByClient
from pika.frame import Method
from pika.spec import Basic

from inspectbus.bus.contract import Lane
from inspectbus.bus.rabbitmq.limits import Limits
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.errors import BadField, BusClosed, InspectBusError, NotAllowed, QueueFull, TooLate

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 2.0
"""Before a message that a full queue refused is sent again: doubling, with jitter."""
REOPEN_S = 1.0
"""Before the channel is opened again that the broker has closed."""
NACKS_S = 5.0
"""Of nothing but refusals for one queue: then another channel is tried. One that was open when the queue's leader died
may be refused for as long as that node is away, while a new one is served by the new leader. What other queues take
meanwhile says nothing: their leaders are others."""
_LANES = frozenset(Lane)


@dataclass(eq=False)
class Outgoing:
    """One message until its confirm."""

    exchange: str
    routing_key: str
    properties: pika.BasicProperties
    body: bytes
    mandatory: bool
    give_up_s: float
    """Monotonic moment after which its sender no longer waits."""
    future: Future[None] = field(default_factory=Future)
    sent_s: float = 0.0
    refusals: int = 0
    returned: bool = False
    over: bool = False
    """Confirmed, failed or withdrawn: what the broker says of it now concerns nobody."""

    @property
    def way(self) -> tuple[str, str]:
        """What decides the queue it goes to: exchange and lane, or the queue's own name."""
        if not self.exchange:
            return "", self.routing_key
        lane = self.routing_key.partition(".")[0]
        return self.exchange, lane if lane in _LANES else ""


class Publisher:
    """Thread-safe. `publish` may be called from anywhere but a loop's thread; futures end on a thread of their own."""

    def __init__(self, link: Link, limits: Limits) -> None:
        self._link = link
        self._limits = limits
        self._changed = threading.Condition()
        self._open: dict[Outgoing, None] = {}
        self._bytes = 0
        self._fresh: deque[Outgoing] = deque()
        self._patient: list[tuple[float, int, Outgoing]] = []
        self._ended: deque[tuple[Outgoing, InspectBusError | None]] = deque()
        self._order = itertools.count()
        self._closing = False
        self._closed = False
        # The loop's own.
        self._channel: Channel | None = None
        self._sent: dict[int, Outgoing] = {}
        self._tags = itertools.count(1)
        self._refused: list[tuple[float, int, Outgoing]] = []
        self._suspects: deque[Outgoing] = deque()
        self._reopen_at_s = math.inf
        self._refusing: dict[tuple[str, str], float] = {}
        """Ways on which this channel has known nothing but refusals, and since when."""
        self._stuck: set[tuple[str, str]] = set()
        """Those for which another channel was tried, so that it is said once."""
        self._another = False
        """The next turn tries another channel."""
        self._connection: pika.SelectConnection | None = None
        self.trouble = ""
        """Why the broker takes nothing although it is connected; empty when it does."""
        self.on_confirm: Callable[[float], None] = lambda _: None
        """Told the seconds from sending to confirm."""
        self.nacks = 0
        self._completer = threading.Thread(target=self._complete, name="bus-confirms", daemon=True)
        self._completer.start()
        link.add(self)

    def publish(
        self,
        exchange: str,
        routing_key: str,
        properties: pika.BasicProperties,
        body: bytes,
        *,
        mandatory: bool = True,
        patience_s: float | None = None,
    ) -> Future[None]:
        """Done when confirmed. Raises QueueFull, BusClosed, BadField; see the contract."""
        size = len(body)
        if size > self._limits.body_bytes:
            raise BadField(f"the message has {size} bytes, at most {self._limits.body_bytes} are sent", field="body")
        wait_s = self._limits.publish_patience_s if patience_s is None else patience_s
        give_up_s = math.inf if patience_s is None else time.monotonic() + patience_s
        item = Outgoing(exchange, routing_key, properties, body, mandatory, give_up_s)
        item.future.set_running_or_notify_cancel()  # the broker may have it: nobody can cancel it
        with self._changed:
            if not self._has_room(size):
                self._changed.wait_for(lambda: self._closing or self._has_room(size), wait_s)
            if self._closing:
                raise BusClosed("the bus has been closed")
            if not self._has_room(size):
                trouble = self._link.trouble or self.trouble or "its consumers are behind"
                raise QueueFull(f"{len(self._open)} messages wait for the broker's confirm: {trouble}")
            self._open[item] = None
            self._bytes += size
            self._fresh.append(item)
            if give_up_s < math.inf:
                heapq.heappush(self._patient, (give_up_s, next(self._order), item))
                if self._patient[0][2] is item:
                    self._changed.notify_all()
        self._link.wake()
        return item.future

    @property
    def waiting(self) -> int:
        """Messages without their confirm."""
        return len(self._open)

    def close(self, patience_s: float) -> None:
        """Takes no more, waits for the confirms still out, and fails what has none after patience_s."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open, patience_s)
            for item in list(self._open):
                self._end(item, BusClosed("the bus was closed before this message was confirmed"))
            self._closed = True
            self._changed.notify_all()
        self._link.remove(self)
        if threading.current_thread() is not self._completer:
            self._completer.join(timeout=5)

    # The loop's thread.

    def opened(self, connection: pika.SelectConnection) -> None:
        self._connection = connection
        self._reopen_at_s = math.inf
        connection.channel(on_open_callback=self._on_channel)

    def lost(self) -> None:
        self._channel = self._connection = None
        self._send_all_again()

    def work(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._reopen_at_s and self._connection is not None:
            self.opened(self._connection)
        if self._channel is None or not self._channel.is_open:
            return
        if self._suspects:
            self._send_suspect()
        else:
            while self._refused and self._refused[0][0] <= now_s:
                self._send(heapq.heappop(self._refused)[2])
            while self._fresh:
                self._send(self._fresh.popleft())
        if self._another:
            self._another = False
            self._channel.close()
            return
        oldest = next(iter(self._sent.values()), None)
        if oldest is not None and not self._link.blocked and now_s - oldest.sent_s > self._limits.confirm_s:
            self._link.drop(f"no confirm for {self._limits.confirm_s:.0f} s")

    def _on_channel(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(ack_nack_callback=self._on_confirm)
        self._channel = channel
        self._tags = itertools.count(1)
        self._refusing.clear()
        self._another = False
        self.work()

    def _send(self, item: Outgoing) -> None:
        if item.over or self._channel is None:
            return
        item.sent_s = time.monotonic()
        item.returned = False
        self._sent[next(self._tags)] = item
        self._channel.basic_publish(
            item.exchange, item.routing_key, item.body, item.properties, mandatory=item.mandatory
        )

    def _send_suspect(self) -> None:
        """One at a time, so that the next channel to be closed names its message."""
        while self._suspects and self._suspects[0].over:
            self._suspects.popleft()
        if self._suspects and not self._sent:
            self._send(self._suspects[0])

    def _on_confirm(self, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        method = frame.method
        tag = method.delivery_tag
        if method.multiple:
            confirmed = []
            while self._sent and (first := next(iter(self._sent))) <= tag:
                confirmed.append(self._sent.pop(first))
        else:
            item = self._sent.pop(tag, None)
            confirmed = [item] if item is not None else []
        acked = isinstance(method, Basic.Ack)
        if acked and not any(item.returned for item in confirmed):
            self.trouble = ""
        with self._changed:
            for item in confirmed:
                if acked and not item.returned:
                    self._refusing.pop(item.way, None)
                    self._stuck.discard(item.way)
                    self._end(item, None)
                else:
                    self._refuse(item)
        if self._suspects:
            self.work()

    def _refuse(self, item: Outgoing) -> None:
        self.nacks += 1
        now_s = time.monotonic()
        pause_s = min(FIRST_PAUSE_S * 2**item.refusals, LAST_PAUSE_S) * random.uniform(0.5, 1.5)  # noqa: S311
        item.refusals += 1
        if not item.returned:
            self.trouble = f"the queue behind {item.exchange or item.routing_key} is full"
            if now_s - self._refusing.setdefault(item.way, now_s) > NACKS_S and not self._another:
                self._another = True
                if item.way not in self._stuck:
                    self._stuck.add(item.way)
                    log.warning("nothing but refusals, another channel is tried", trouble=self.trouble)
        heapq.heappush(self._refused, (now_s + pause_s, next(self._order), item))

    def _on_return(self, channel: Channel, method: Basic.Return, properties: pika.BasicProperties, body: bytes) -> None:
        # The confirm that follows says "ack", and means "gone".
        for item in self._sent.values():
            if item.properties.message_id == properties.message_id and item.routing_key == method.routing_key:
                item.returned = True
        trouble = (
            f"no queue takes {method.routing_key} from {method.exchange or 'the default exchange'}: "
            "run `inspectbus bus declare`"
        )
        if trouble != self.trouble:
            log.error("unroutable", trouble=trouble)
        self.trouble = trouble

    def _on_channel_closed(self, channel: Channel, reason: BaseException) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        if isinstance(reason, ChannelClosedByClient):
            self._send_all_again()
            self._reopen_at_s = 0.0
            self._link.wake()
            return
        if not isinstance(reason, ChannelClosedByBroker):
            return  # the connection has gone; `lost` follows
        culprit = next(iter(self._sent.values()), None) if self._suspects else None
        unconfirmed = [item for item in self._sent.values() if not item.over]
        self._send_all_again()
        self.trouble = f"the broker closed the channel: {reason.reply_text}"
        log.error("channel closed", code=reason.reply_code, text=reason.reply_text)
        pause_s = REOPEN_S
        if reason.reply_code in (403, 406):
            # Whoever sent this must hear of it, and nobody else. Which one it was, only a second try can tell.
            pause_s = 0.0
            if culprit is not None:
                with self._changed:
                    self._end(culprit, _refusal(reason))
            else:
                self._suspects = deque(unconfirmed)
        self._reopen_at_s = time.monotonic() + pause_s
        if pause_s == 0:
            self._link.wake()

    def _send_all_again(self) -> None:
        with self._changed:
            self._sent.clear()
            self._refused.clear()
            self._suspects.clear()
            self._fresh = deque(item for item in self._open if not item.over)

    # Any thread.

    def _has_room(self, size: int) -> bool:
        limits = self._limits
        fits = self._bytes + size <= limits.window_bytes
        return not self._open or (len(self._open) < limits.window_messages and fits)

    def _end(self, item: Outgoing, error: InspectBusError | None) -> None:
        """Lock held."""
        if item.over:
            return
        item.over = True
        del self._open[item]
        self._bytes -= len(item.body)
        self._ended.append((item, error))
        self._changed.notify_all()

    def _complete(self) -> None:
        """Tells futures their end: callbacks may do anything, and the loop must not wait for them."""
        while True:
            with self._changed:
                while not self._ended:
                    if self._closed:
                        return
                    self._give_up()
                    if not self._ended:
                        self._changed.wait(self._patient[0][0] - time.monotonic() if self._patient else None)
                ended = list(self._ended)
                self._ended.clear()
            for item, error in ended:
                if error is None:
                    self.on_confirm(time.monotonic() - item.sent_s)
                    item.future.set_result(None)
                else:
                    item.future.set_exception(error)

    def _give_up(self) -> None:
        """Withdraws what nobody waits for any more. Lock held."""
        now_s = time.monotonic()
        while self._patient and (self._patient[0][0] <= now_s or self._patient[0][2].over):
            item = heapq.heappop(self._patient)[2]
            trouble = self._link.trouble or self.trouble or "its confirm did not come"
            self._end(item, TooLate(f"the bus did not take the message in time: {trouble}"))


def _refusal(reason: ChannelClosedByBroker) -> InspectBusError:
    if reason.reply_code == 403:
        return NotAllowed(f"the broker refuses this message: {reason.reply_text}")
    return BadField(f"the broker refuses this message: {reason.reply_text}", field="body")
