"""A conversation: a stream of requests, each begun as it comes and answered when its work is done, in any order.

    requests ─ reader thread ─> begin ─> ... any thread ... ─> answer ─> responses

At most `window` requests are open, so a sender that is faster than the line waits at its own end. When the sender has
said all, the open ones are still answered. Those that a stopping service cannot answer any more are left to be sent
again, and the stream ends with BusClosed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import grpc

from inspectbus.errors import BusClosed

Request = TypeVar("Request")
Response = TypeVar("Response")

LOOK_UP_S = 0.2
"""How often waiting threads look whether the sender has gone or the service stops: neither tells them."""


class Conversation(Generic[Request, Response]):
    """One stream. `begin(position, request, answer)` starts a request's work; `answer` is called once for each, from
    any thread, with None for one that the stopping service leaves unanswered. `closing` set: nothing more is begun, and
    the stream ends when all is answered or drain_s is over."""

    def __init__(
        self,
        begin: Callable[[int, Request, Callable[[Response | None], None]], None],
        context: grpc.ServicerContext,
        closing: threading.Event,
        *,
        window: int,
        drain_s: float,
    ) -> None:
        self._begin = begin
        self._context = context
        self._closing = closing
        self._window = window
        self._drain_s = drain_s
        self._changed = threading.Condition()
        self._open = 0
        self._answers: deque[Response] = deque()
        self._left = False
        """Some request stays unanswered."""
        self._said_all = False
        self._fault: BaseException | None = None
        self._over = False

    def hold(self, requests: Iterator[Request]) -> Iterator[Response]:
        """The responses, until the sender has said all and has all answers. Raises BusClosed when the service stops."""
        listener = threading.Thread(target=self._listen, args=(requests,), name="conversation", daemon=True)
        listener.start()
        try:
            while self._next_is_there():
                with self._changed:
                    response = self._answers.popleft()
                    self._open -= 1
                    self._changed.notify_all()
                yield response
        finally:
            # The listener may sit in the request stream; that ends with the call, which ends when we return.
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _next_is_there(self) -> bool:
        """Waits for an answer. False at the conversation's end."""
        closed_at_s = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._answers or self._fault or self._ended, LOOK_UP_S)
                if self._fault is not None:
                    raise self._fault
                if self._answers:
                    return True
                if not self._context.is_active() or (self._ended and not self._left):
                    return False
                idle = self._open == 0
            if self._closing.is_set():
                closed_at_s = closed_at_s or time.monotonic()
                if idle or time.monotonic() - closed_at_s > self._drain_s:
                    raise BusClosed("the service is stopping; send again what was not answered")

    @property
    def _ended(self) -> bool:
        return self._said_all and self._open == 0

    def _listen(self, requests: Iterator[Request]) -> None:
        try:
            for position, request in enumerate(requests):
                if not self._take_place():
                    return
                self._begin(position, request, self._answer)
        except grpc.RpcError:
            pass  # the sender has gone; is_active says so to the other thread
        except Exception as error:  # a fault of ours must end the call with its name, not leave it hanging
            with self._changed:
                self._fault = error
        finally:
            with self._changed:
                self._said_all = True
                self._changed.notify_all()

    def _take_place(self) -> bool:
        """Waits for a place in the window. False when the conversation is over or about to be."""
        with self._changed:
            while not self._over and not self._closing.is_set():
                if self._open < self._window:
                    self._open += 1
                    return True
                self._changed.wait(LOOK_UP_S)
        return False

    def _answer(self, response: Response | None) -> None:
        with self._changed:
            if response is not None:
                self._answers.append(response)
            else:
                self._left = True
                self._open -= 1
            self._changed.notify_all()
