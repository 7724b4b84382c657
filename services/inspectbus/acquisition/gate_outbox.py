"""The outcomes' way to the bus: in order, a few at a time, each kept until it is confirmed.

    journal ── unconfirmed ──> under way (at most WINDOW) ── confirmed, in order ──> journal
                                   ^           │
                                   └── pause ──┘ refused

An outcome may arrive twice, after a refusal or a crash; its message id and its frame id are the same each time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import structlog

from inspectbus.acquisition.gate_journal import GateJournal
from inspectbus.acquisition.segments import Position
from inspectbus.bus import Bus, Message
from inspectbus.bus.messages import outcome_message
from inspectbus.bus.topics import GATES
from inspectbus.errors import InspectBusError

log = structlog.get_logger(__name__)

WINDOW = 128
"""Outcomes under way at once: enough that a confirm's way back costs no throughput, and little memory each."""
CONFIRM_PERIOD_S = 0.2
"""Between two notes of how far the bus has confirmed. A crash costs at most the outcomes of this time, sent again and
counted once."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
"""Before a refused outcome is sent again: the pause doubles from the first to the longest."""


@dataclass(eq=False)
class _Sending:
    position: Position
    message: Message
    future: Future[None] | None = None
    """None while it waits to be sent, or to be sent again."""


class Outbox:
    """One gate's. `start` it, `wake` it for new outcomes, `close` it."""

    def __init__(self, bus: Bus, journal: GateJournal, name: str) -> None:
        """`name` is the station's: "line-1/top"."""
        self._bus = bus
        self._journal = journal
        self._source = f"acquisition/{name}"
        self._changed = threading.Condition()
        self._news = True
        self._closing_at_s: float | None = None
        self.trouble = ""
        """Why outcomes wait, in words; empty when none does longer than it should."""
        # The thread's own.
        self._read_to = self._confirmed = self._noted = journal.confirmed
        self._noted_at_s = 0.0
        self._under_way: deque[_Sending] = deque()
        self._pause_s = 0.0
        self._again_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"gate-outbox-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be more in the journal."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def close(self, patience_s: float) -> None:
        """Sends what there is for patience_s at most. What is not confirmed by then stays in the journal."""
        with self._changed:
            self._closing_at_s = time.monotonic() + patience_s
        self.wake()
        self._thread.join(patience_s + 0.5)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news, self._nap_s())
                self._news = False
                closing_at_s = self._closing_at_s
            try:
                self._settle()
                self._take_more()
                self._send()
                self._note(at_once=closing_at_s is not None)
            except InspectBusError as error:  # the bus's refusal, or the journal's disk
                self._refuse(error)
            if closing_at_s is not None and (not self._under_way or time.monotonic() >= closing_at_s):
                return

    def _nap_s(self) -> float | None:
        """How long nothing needs to be done if nobody says so. Lock held."""
        now_s = time.monotonic()
        if self._closing_at_s is not None:
            return min(max(0.0, self._closing_at_s - now_s), CONFIRM_PERIOD_S)
        if self._again_at_s > now_s:
            return self._again_at_s - now_s
        return CONFIRM_PERIOD_S if self._confirmed != self._noted or self.trouble else None

    def _settle(self) -> None:
        """Takes away what is confirmed, in order, and marks what was refused for another try."""
        for sending in self._under_way:
            if sending.future is not None and sending.future.done():
                error = sending.future.exception()
                if error is not None:
                    sending.future = None
                    self._refuse(error)
        while self._under_way and (future := self._under_way[0].future) is not None and future.done():
            self._confirmed = self._under_way.popleft().position
            self._pause_s = 0.0

    def _take_more(self) -> None:
        for position, outcome in self._journal.outcomes(self._read_to):
            if len(self._under_way) >= WINDOW:
                return
            self._read_to = position
            self._under_way.append(_Sending(position, outcome_message(outcome, self._source)))

    def _send(self) -> None:
        if time.monotonic() < self._again_at_s:
            return
        for sending in self._under_way:
            if sending.future is None:
                sending.future = self._bus.publish(GATES, sending.message)
                sending.future.add_done_callback(lambda _: self.wake())
        self.trouble = ""

    def _refuse(self, error: BaseException) -> None:
        if not self.trouble:
            log.warning("outcomes wait", source=self._source, error=str(error))
        self.trouble = f"gate outcomes wait, trying again: {error}"
        if time.monotonic() >= self._again_at_s:
            self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            self._again_at_s = time.monotonic() + self._pause_s

    def _note(self, *, at_once: bool) -> None:
        """Tells the journal how far the bus has confirmed."""
        now_s = time.monotonic()
        if self._confirmed == self._noted or not (at_once or now_s - self._noted_at_s >= CONFIRM_PERIOD_S):
            return
        self._journal.confirm(self._confirmed)
        self._noted, self._noted_at_s = self._confirmed, now_s
