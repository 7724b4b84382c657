"""The ward: a child process that works one suspicious message at a time, and may die of it.

    delivery ─> ward ─> child: the same service on a solo bus ─> done | retry | park
                          ├─ died:       the message killed it
                          └─ too long:   the message hung it, and the child is killed

The child is started for the first message and ended when none has come for a while.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import structlog

from inspectbus.bus.contract import Message, StartChild
from inspectbus.bus.solo import Wire, Words, message_of, topic_named, words_of
from inspectbus.bus.topics import Topic
from inspectbus.errors import InspectBusError, Internal, kinds

log = structlog.get_logger(__name__)

START_S = 60.0
"""For a child until it serves; a network of many layers loads slowly on a machine that has just lost a process."""
SEND_S = 10.0
"""For a child to take what it is sent; its socket holds less than a frame."""
IDLE_S = 60.0
"""A child that has nothing to do for so long is ended: it holds a model's memory."""


class Crashed(Internal):
    """The message ended the process that worked on it."""


class Hung(Internal):
    """The process that worked on the message had to be killed."""


class ChildUnfit(InspectBusError):
    """No child could be started: that is no fault of the message."""

    retryable = True
    outage = True


class Ward:
    """Thread-safe; one message at a time, whoever brings it. Use as a context; leaving it ends the child."""

    def __init__(
        self, start_child: StartChild, publish: Callable[[Topic, Message], Future[None]], limit_s: float
    ) -> None:
        self._start_child = start_child
        self._publish = publish
        self._limit_s = limit_s
        self._turn = threading.Lock()
        self._child: _Child | None = None
        self._used_s = 0.0
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()
        child = self._child
        if child is not None:
            child.end()

    def look(self) -> None:
        """Ends a child that nobody has needed for a while."""
        if self._child is not None and self._turn.acquire(blocking=False):
            try:
                if time.monotonic() - self._used_s > IDLE_S:
                    self._end_child()
            finally:
                self._turn.release()

    def work(self, topic: Topic, group: str, message: Message, attempts: int) -> None:
        """Returns when the child is done with the message and all it published is confirmed.

        Raises what the child says is wrong with the message, Crashed, Hung, or ChildUnfit when there is no child.
        """
        with self._turn:
            self._used_s = time.monotonic()
            if self._closed.is_set():
                raise ChildUnfit("the bus is closing")
            try:
                child = self._child = self._child or self._begin()
                # Again: whoever closed us meanwhile saw no child to end.
                if self._closed.is_set():
                    raise ChildUnfit("the bus is closing")
                child.wait_ready(topic.name, group)
                self._work(child, topic, group, message, attempts)
            except (Crashed, Hung, ChildUnfit):
                self._end_child()
                raise
            finally:
                self._used_s = time.monotonic()

    def _work(self, child: _Child, topic: Topic, group: str, message: Message, attempts: int) -> None:
        until_s = time.monotonic() + self._limit_s
        task = {"verb": "deliver", "topic": topic.name, "group": group, "attempts": attempts}
        child.send(task | words_of(message), message.body)
        while True:
            received = child.receive(until_s)
            if received is None:
                if self._closed.is_set():
                    raise ChildUnfit("the bus is closing")
                if time.monotonic() >= until_s:
                    raise Hung(f"worked on alone, it did not come to an end within {self._limit_s:.0f} s")
                raise Crashed(f"worked on alone, it ended the process: {child.epitaph()}")
            words, body = received
            match words["verb"]:
                case "publish":
                    self._pass_on(child, words, body)
                case "done":
                    return
                case "retry" | "park":
                    kind = kinds().get(words["kind"], Internal)
                    error = kind(words["error"])
                    # The verb decides, whatever the kind would say of itself.
                    error.retryable = words["verb"] == "retry"
                    raise error

    def _pass_on(self, child: _Child, words: Words, body: bytes) -> None:
        number = words["number"]

        def confirmed(future: Future[None]) -> None:
            error = future.exception()
            child.send({"verb": "confirmed", "number": number, "error": str(error) if error else ""})

        try:
            self._publish(topic_named(str(words["topic"])), message_of(words, body)).add_done_callback(confirmed)
        except InspectBusError as error:
            child.send({"verb": "confirmed", "number": number, "error": error.message or type(error).__name__})

    def _begin(self) -> _Child:
        ours, theirs = socket.socketpair()
        try:
            process = self._start_child(theirs.fileno())
        except OSError as error:
            ours.close()
            raise ChildUnfit(f"no process could be started: {error.strerror}") from None
        finally:
            theirs.close()
        log.info("a process for suspicious messages has started", pid=process.pid)
        return _Child(process, Wire(ours))

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    def __init__(self, process: subprocess.Popen[bytes], wire: Wire) -> None:
        self._process = process
        self._wire = wire
        self._ready: set[tuple[str, str]] = set()

    def wait_ready(self, topic: str, group: str) -> None:
        until_s = time.monotonic() + START_S
        while (topic, group) not in self._ready:
            if self.receive(until_s) is None:
                raise ChildUnfit(f"the process for suspicious messages did not start: {self.epitaph()}")

    def send(self, words: Words, body: bytes = b"") -> None:
        """What a dead child does not hear is told by its silence."""
        try:
            self._wire.send(words, body)
        except (OSError, TimeoutError):
            log.debug("the child does not listen", verb=words["verb"])

    def receive(self, until_s: float) -> tuple[Words, bytes] | None:
        """None when the child has died or time is up. Whatever else is waited for, what is ready is noted."""
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return None
        self._wire.be_patient(receiving_s=left_s, sending_s=SEND_S)
        try:
            received = self._wire.receive()
        except TimeoutError:
            return None
        if received is not None and received[0]["verb"] == "ready":
            self._ready.add((received[0]["topic"], received[0]["group"]))
        return received

    def epitaph(self) -> str:
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return "it still runs"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def end(self) -> None:
        self._wire.close()
        # Not asked: it may hang, and has nothing that a drain could save.
        self._process.kill()
        self._process.wait(10.0)
