"""Many requests on one stream, answered in any order, at most `window` of them unanswered.

    items ─ feeder thread ─> waiting ─ talker thread ─> stream ─> answered ─> the caller, as answers come
                                └──────── the stream broke: what it left unanswered goes again ────────┘

Sending again is safe because every request carries a frame id that was fixed before its first try.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import grpc

from inspectbus.errors import InspectBusError, NotPossibleNow, Unreachable
from inspectbus_client.failures import Failure, failure_of
from inspectbus_client.wire import Backoff, Service, Stream, Wire

SHIFT_S = 60.0
"""How long one stream takes new requests. A stream then ends with a deadline of its own, so that a service that hangs
is noticed without a timer for every request; frames of a minute are cheap to send again, those of a day are not."""
GRACE_S = 10.0
"""How much longer than the patience for an answer its stream lives."""
FIRST_CONTACT_S = 5.0
"""Patience with an address where nobody has answered yet: it is more likely wrong than about to be served again."""
GLANCE_S = 1.0
"""Longest wait before a thread looks again whether it is still wanted."""


class Positioned(Protocol):
    """An answer that says which request of its stream it belongs to."""

    @property
    def position(self) -> int: ...


Item = TypeVar("Item")
Request = TypeVar("Request")
Answer = TypeVar("Answer", bound=Positioned)


def converse(
    wire: Wire,
    service: Service,
    method: grpc.StreamStreamMultiCallable[Request, Answer],
    items: Iterable[Item],
    request_of: Callable[[Item], Request],
    *,
    again: Callable[[Request], None],
    window: int,
    patience_s: float,
) -> Iterator[tuple[Item, Answer | InspectBusError]]:
    """Each item with its answer, or with the InspectBusError `request_of` refused it with. `again` marks a request
    before it is sent once more.

    `items` is read on a thread of its own; what it raises is raised here after the last answer. Raises the kind of
    InspectBusError that ended the conversation, or Unreachable when the service stayed away for `patience_s`.
    """
    talk = _Conversation(wire, service, method, request_of, again, window, patience_s)
    try:
        talk.begin(items)
        yield from talk.answers()
    finally:
        talk.close()


class _Stream:
    """One try at the conversation."""

    def __init__(self) -> None:
        self.ends_at = time.monotonic() + SHIFT_S
        self.over = False


class _Conversation(Generic[Item, Request, Answer]):
    def __init__(
        self,
        wire: Wire,
        service: Service,
        method: grpc.StreamStreamMultiCallable[Request, Answer],
        request_of: Callable[[Item], Request],
        again: Callable[[Request], None],
        window: int,
        patience_s: float,
    ) -> None:
        self._wire, self._service, self._method = wire, service, method
        self._request_of = request_of
        self._again = again
        self._window = window
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Item, Request]] = deque()
        self._sent: dict[int, tuple[Item, Request]] = {}
        self._answered: deque[tuple[Item, Answer | InspectBusError]] = deque()
        self._no_more = False
        self._over = False
        self._stopped = False
        self._feeding_failed: BaseException | None = None
        self._talking_failed: BaseException | None = None
        self._call: Stream[Answer] | None = None
        self._threads: list[threading.Thread] = []

    def begin(self, items: Iterable[Item]) -> None:
        # Daemons: a camera's iterator may block for ever inside next(), where nobody can wake the feeder.
        self._threads = [
            threading.Thread(target=self._feed, args=(items,), name="inspectbus-feeder", daemon=True),
            threading.Thread(target=self._talk, name="inspectbus-talker", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def answers(self) -> Iterator[tuple[Item, Answer | InspectBusError]]:
        while True:
            with self._changed:
                while not self._answered and not self._over:
                    self._changed.wait(GLANCE_S)
                if not self._answered:
                    break
                answer = self._answered.popleft()
                self._changed.notify_all()
            yield answer
        failed = self._talking_failed or self._feeding_failed
        if failed is not None:
            raise failed

    def close(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            if self._call is not None:
                self._call.cancel()
        for thread in self._threads:
            thread.join(timeout=2 * GLANCE_S)

    # The feeder.

    def _feed(self, items: Iterable[Item]) -> None:
        try:
            source = iter(items)
            while self._room():
                try:
                    item = next(source)
                except StopIteration:
                    break
                self._offer(item)
        except BaseException as error:  # whatever the caller's own iterator raises is handed to the caller
            self._feeding_failed = error
        finally:
            with self._changed:
                self._no_more = True
                self._changed.notify_all()

    def _room(self) -> bool:
        """Waits until one more may be under way; False when nobody wants it any more."""
        with self._changed:
            while len(self._waiting) + len(self._sent) + len(self._answered) >= self._window:
                if self._stopped or self._over:
                    break
                self._changed.wait(GLANCE_S)
            return not (self._stopped or self._over)

    def _offer(self, item: Item) -> None:
        try:
            request = self._request_of(item)
        except InspectBusError as error:
            refused = error
        else:
            with self._changed:
                self._waiting.append((item, request))
                self._changed.notify_all()
            return
        with self._changed:
            self._answered.append((item, refused))
            self._changed.notify_all()

    # The talker.

    def _talk(self) -> None:
        try:
            self._talk_to_the_end()
        except BaseException as error:  # the caller waits on another thread and must hear of any end
            self._talking_failed = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _talk_to_the_end(self) -> None:
        backoff, broken_since, met = Backoff(), None, False
        while self._work():
            failure, progress = self._one_stream()
            met = met or progress or failure is None or failure.answered
            if failure is None or progress:
                backoff, broken_since = Backoff(), None
            if failure is None or self._stopped:
                continue
            self._wire.check_open()
            silent = failure.error.code is grpc.StatusCode.DEADLINE_EXCEEDED and not progress
            broken_since = broken_since or time.monotonic()
            pause_s = backoff.next_s(failure.retry_after_s)
            patience_s = self._patience_s if met else min(self._patience_s, FIRST_CONTACT_S)
            out_of_patience = time.monotonic() + pause_s - broken_since > patience_s
            if silent or not failure.stream_broke or out_of_patience:
                raise self._wire.last_word(self._service, failure)
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, pause_s)

    def _work(self) -> bool:
        """Waits until there is something to send; False when there will be nothing."""
        with self._changed:
            while not self._waiting and not self._no_more and not self._stopped:
                self._changed.wait(GLANCE_S)
            return bool(self._waiting) and not self._stopped

    def _one_stream(self) -> tuple[Failure | None, bool]:
        """Why it ended, None if well; and whether it brought any answer."""
        stream, failure, progress = _Stream(), None, False
        try:
            with self._changed:
                if self._stopped:
                    return None, False
                self._call = self._method(self._sending(stream), timeout=SHIFT_S + self._patience_s + GRACE_S)
            for answer in self._call:
                progress = self._take(answer) or progress
        except grpc.RpcError as error:
            failure = failure_of(error, self._wire.where(self._service))
        except ValueError:  # what grpc raises on a channel that the client has closed
            raise NotPossibleNow("this client has been closed") from None
        finally:
            with self._changed:
                stream.over = True
                unanswered = [self._sent[position] for position in sorted(self._sent)]
                self._sent.clear()
                for _, request in unanswered:
                    self._again(request)
                self._waiting.extendleft(reversed(unanswered))
                self._changed.notify_all()
        if failure is None and unanswered:
            where = self._wire.where(self._service)
            failure = Failure(Unreachable(f"{where} ended the stream with {len(unanswered)} requests unanswered"))
        return failure, progress

    def _take(self, answer: Answer) -> bool:
        with self._changed:
            asked = self._sent.pop(answer.position, None)
            if asked is not None:
                self._answered.append((asked[0], answer))
                self._changed.notify_all()
        return asked is not None

    def _sending(self, stream: _Stream) -> Iterator[Request]:
        """The requests of one stream, read by a thread of gRPC's. Returning says that no more will come."""
        position = 0
        while True:
            with self._changed:
                while not self._waiting and not self._done(stream):
                    self._changed.wait(min(GLANCE_S, max(stream.ends_at - time.monotonic(), 0.0)))
                # A thread that outlived its stream must not swallow what belongs to the next one.
                if stream.over or not self._waiting or time.monotonic() >= stream.ends_at or self._stopped:
                    return
                self._sent[position] = self._waiting.popleft()
                request = self._sent[position][1]
            position += 1
            yield request

    def _done(self, stream: _Stream) -> bool:
        return stream.over or self._stopped or self._no_more or time.monotonic() >= stream.ends_at
