"""Watching: a stream that is opened again where it stood when it breaks, until the watcher leaves.

open(after the last item) ─> items ─> broken, or older than RENEW_S ─> open(after the last item) ─> ...
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from inspectbus.errors import NotPossibleNow, Unreachable
from inspectbus_client.failures import Failure, failure_of
from inspectbus_client.wire import Backoff, Service, Stream, Wire

RENEW_S = 300.0
"""A stream's own deadline. A silent stream and a dead connection look alike; opening anew tells them apart."""

Item = TypeVar("Item")


class Watch(ABC, Generic[Item]):
    """An iterator and a context manager. Leaving it, or `close` from any thread, ends it without an error.

    Raises the kind of InspectBusError the service refused the watch with, or Unreachable when the service stayed
    away for `patience_s` after a break.
    """

    def __init__(self, wire: Wire, service: Service, patience_s: float) -> None:
        self._wire, self._service = wire, service
        self._patience_s = patience_s
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._backoff = Backoff()
        self._broken_since: float | None = None
        self._call: Stream[Any] | None = None
        self._opened_at = 0.0
        # Now and not with the first item: what happens after this line is watched.
        self._begin()

    @abstractmethod
    def _open(self, timeout_s: float) -> Stream[Any]:
        """A stream that goes on after what was taken so far."""

    @abstractmethod
    def _take(self, answer: Any) -> Item | None:
        """What the watcher gets; None skips."""

    def _broken(self, call: Stream[Any]) -> None:
        """A stream is over; the last chance to learn from it."""

    def _complete(self) -> bool:
        """Everything has been seen, so that the stream's end is the end."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._stopped.set()
            if self._call is not None:
                self._call.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        while not self._stopped.is_set():
            call = self._call
            if call is None:
                self._begin()
                continue
            try:
                answer = next(call)
            except StopIteration:
                if self._complete():
                    self.close()
                    break
                where = self._wire.where(self._service)
                self._mend(call, Failure(Unreachable(f"{where} ended the stream")))
            except grpc.RpcError as error:
                self._mend(call, failure_of(error, self._wire.where(self._service)))
            else:
                self._broken_since, self._backoff = None, Backoff()
                item = self._take(answer)
                if item is not None:
                    return item
        raise StopIteration

    def _begin(self) -> None:
        self._wire.check_open()
        with self._lock:
            if self._stopped.is_set():
                return
            self._opened_at = time.monotonic()
            try:
                self._call = self._open(RENEW_S)
            except ValueError:  # what grpc raises on a channel that the client has closed
                raise NotPossibleNow("this client has been closed") from None

    def _mend(self, call: Stream[Any], failure: Failure) -> None:
        """Pauses, so that the next step opens the stream again; or raises what ended it for good."""
        self._broken(call)
        self._call = None
        if self._stopped.is_set() or self._wire.closed.is_set():
            self._stopped.set()
            return
        if time.monotonic() - self._opened_at >= RENEW_S:
            return
        self._broken_since = self._broken_since or time.monotonic()
        pause_s = self._backoff.next_s(failure.retry_after_s)
        if not failure.stream_broke or time.monotonic() + pause_s - self._broken_since > self._patience_s:
            self._stopped.set()
            raise self._wire.last_word(self._service, failure)
        self._stopped.wait(pause_s)
