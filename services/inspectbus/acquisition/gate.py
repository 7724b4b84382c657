"""The gate: for every frame of one station, exactly one outcome, in time or fail-safe.

    expect ─> journal, timer ──┬── news of its decision, in time ──> DECISION ─┐
                               ├── the deadline passes ────────────> DEADLINE ─┼─> journal ─> outputs
    frames of a life before ───┴── at the next start ──────────────> RESTART ──┘      └─> outbox ─> bus

Lateness is told by this process's monotonic timer alone: a wall clock that jumps changes nothing but what stands in
`at`. One thread gives all outcomes, and its beats are the gate's heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError
from opentelemetry.trace import INVALID_SPAN, Span

from inspectbus import spans
from inspectbus.acquisition.gate_journal import REMEMBERED, GateJournal
from inspectbus.acquisition.gate_outbox import Outbox
from inspectbus.acquisition.gate_watch import Watcher, Watchers
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.outputs import Feeder, Output, open_output, words
from inspectbus.acquisition.settings import GateSettings
from inspectbus.api.v1 import acquisition_pb2, gate_pb2
from inspectbus.api.v1.decision_pb2 import Decision
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.gate_pb2 import GATE_REASON_DEADLINE, GATE_REASON_DECISION, GATE_REASON_RESTART, GateOutcome
from inspectbus.bus import Bus, Message, handling
from inspectbus.bus.topics import DECISIONS
from inspectbus.domain.gate import action_for, is_late
from inspectbus.errors import BusClosed, InspectBusError, QueueFull

log = structlog.get_logger(__name__)

BEATS = 3
"""Heartbeats within heartbeat_s: one that is delayed must not stop a line."""
JOIN_S = 5.0
"""A turn takes milliseconds, unless the disk hangs."""
JOURNAL_PAUSE_S = 1.0
"""Before outcomes are written again that the journal's disk did not take."""


@dataclass(eq=False)
class _Expected:
    """A pending frame."""

    outcome: GateOutcome
    """What is known of it; no action yet."""
    since_s: float
    due_s: float
    """Both by the gate's monotonic clock."""
    senders: int = 1
    """How many times it is being sent; it is forgotten when all of them were refused."""
    part: Span = INVALID_SPAN
    """The first step of the part's trace, over when it has its outcome."""


class Gate:
    """Thread-safe. `open` it before its station sends, `close` it when the station has ended.

    One whose journal cannot be used takes no frames, says why in `trouble`, and tries again with the next frame.
    """

    def __init__(
        self,
        line: str,
        station: str,
        settings: GateSettings,
        folder: Path,
        bus: Bus,
        metrics: AcquisitionMetrics,
        *,
        also: Callable[[Message], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`also` hears what the gate hears, after it: news of one station needs one queue only."""
        self._line = line
        self._station = station
        self._settings = settings
        self._folder = folder
        self._bus = bus
        self._metrics = metrics.gate(line, station)
        self._also = also
        self._clock = clock
        self._wall_clock = wall_clock
        self._fail_safe = gate_pb2.GateAction.Value(f"GATE_ACTION_{settings.fail_safe.upper()}")
        self._watchers = Watchers(settings.heartbeat_s)
        self._feeders = [
            Feeder(each.kind, open_output(each), self._metrics.output_failures(each.kind)) for each in settings.outputs
        ]
        self._outputs: Sequence[Output] = (*self._feeders, self._watchers)
        # Senders are let in one by one, so that nobody passes on a frame whose record is still being written.
        self._door = threading.Lock()
        self._turning = threading.Lock()
        self._journal: GateJournal | None = None
        self._outbox: Outbox | None = None
        # Guards what follows, and is never held while disk, bus or an output works.
        self._changed = threading.Condition()
        self._pending: OrderedDict[str, _Expected] = OrderedDict()
        """In the order of their deadlines: all wait equally long."""
        self._given: OrderedDict[str, None] = OrderedDict()
        self._ready: list[GateOutcome] = []
        self._decided = self._outcomes = self._late = 0
        self._sooner = self._beat_now = False
        """The next turn, or heartbeat, is due before the timer thread thinks."""
        self._closed = False
        self._farewell_s = 0.0
        self._trouble = ""
        # Of the turns.
        self._unwritten: list[GateOutcome] = []
        self._beat_at_s = self._write_at_s = float("-inf")
        self._journal_bytes = 0
        self._stack = ExitStack()

    def open(self) -> None:
        """Gives the frames a former life left pending their outcome, and begins. A journal that cannot be used now is
        told in `trouble`."""
        with self._door:
            try:
                self._opened()
            except InspectBusError as error:
                log.warning("a gate cannot open", line=self._line, station=self._station, detail=error.message)

    def expect(self, frame: Frame) -> None:
        """Call before the frame is sent. Its part waits for its decision from now on, kill -9 or not; a frame that
        waits already, or has its outcome, changes nothing.

        Raises QueueFull beyond `max_pending` and when the journal holds all it may, NotPossibleNow, StorageFull or
        StorageAway when the journal cannot be used, BusClosed when the gate is closed: then the frame is not expected.
        """
        since_s = self._clock()
        with self._door:
            # Read in here: frames must stand in the order of their deadlines, however long each waited at the door.
            due_s = self._clock() + self._settings.deadline_s
            journal = self._opened()
            with self._changed:
                expected = self._pending.get(frame.frame_id)
                if expected is not None:
                    expected.senders += 1
                    return
                if frame.frame_id in self._given:
                    return
                if len(self._pending) + len(self._unwritten) >= self._settings.max_pending:
                    raise QueueFull(f"{self._settings.max_pending} frames wait at the gate already; try again later")
            if self._journal_bytes > self._settings.journal_bytes:
                raise QueueFull(f"the gate keeps {self._journal_bytes} bytes of outcomes the bus has not taken")
            outcome = GateOutcome(
                frame_id=frame.frame_id,
                line=frame.line,
                station=frame.station,
                run_id=frame.run_id,
                part_id=frame.part_id,
            )
            journal.expect(outcome)
            named = {"line": frame.line, "station": frame.station, "part_id": frame.part_id}
            part = spans.begin_part(frame.frame_id, named)
            with self._changed:
                self._pending[frame.frame_id] = _Expected(outcome, since_s, due_s, part=part)
                if len(self._pending) == 1:
                    self._sooner = True
                    self._changed.notify_all()
            self._metrics.pending.inc()

    def forget(self, frame_id: str) -> None:
        """The frame was refused and its sender told: no outcome. One that has its outcome keeps it."""
        with self._door:
            with self._changed:
                expected = self._pending.get(frame_id)
                if expected is None:
                    return
                expected.senders -= 1
                if expected.senders:
                    return
                del self._pending[frame_id]
            self._metrics.pending.dec()
            try:
                self._opened().forget(frame_id)
            except InspectBusError as error:
                log.warning(
                    "a refused frame stays in the journal and gets an outcome",
                    detail=error.message,
                    **spans.words(frame_id, self._line, self._station),
                )

    def _on_news(self, message: Message) -> None:
        self.hear(message)
        self._also(message)

    def hear(self, message: Message) -> None:
        """News from DECISIONS. A first decision on a pending frame, in time, is its outcome."""
        arrived_s = self._clock()
        with self._changed:
            if not self._pending or self._closed:
                return
        try:
            decision = Decision.FromString(message.body)
        except DecodeError:
            log.warning("news that is no decision", **handling.words(message))
            return
        with self._changed:
            expected = self._pending.get(decision.frame_id)
            # One that is due is the timer's, even when the timer has not come to it yet.
            if expected is None or decision.revision or expected.due_s <= arrived_s or self._closed:
                return
            expected.outcome.verdict = decision.verdict
            self._decide(expected, action_for(decision.verdict), GATE_REASON_DECISION, arrived_s)
            self._changed.notify_all()

    def turn(self) -> float:
        """Gives every outcome that is due, and beats the heart; the timer thread's work. Gives the seconds until the
        next turn at the latest."""
        with self._turning:
            now_s = self._clock()
            with self._changed:
                beat = self._beat_now or now_s >= self._beat_at_s
                self._sooner = self._beat_now = False
                while self._pending and (first := next(iter(self._pending.values()))).due_s <= now_s:
                    self._decide(first, self._fail_safe, GATE_REASON_DEADLINE, now_s)
                ready, self._ready = self._ready, []
            self._unwritten += ready
            self._write(now_s)
            for outcome in ready:
                self._metrics.count(outcome)
                for output in self._outputs:
                    output.act(outcome)
                self._show(outcome)
            if beat:
                self._beat(now_s)
            with self._changed:
                self._outcomes += len(ready)
                self._late += sum(map(is_late, ready))
                self._changed.notify_all()
                due_s = next((first.due_s for first in self._pending.values()), self._beat_at_s)
                return max(0.0, min(self._beat_at_s, due_s) - self._clock())

    def watch(self) -> Watcher:
        """A watcher of every outcome and heartbeat from now on; the first heartbeat comes at once."""
        watching = self._watchers.watch()
        with self._changed:
            self._sooner = self._beat_now = True
            self._changed.notify_all()
        return watching

    def settled(self, patience_s: float) -> bool:
        """Waits until every frame has its outcome, at most patience_s; False when one has not."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending and self._outcomes == self._decided, patience_s)

    def close(self, patience_s: float = 1.0) -> None:
        """Waits until the bus has confirmed the last outcomes, at most patience_s; what it has not, and what is still
        pending, is in the journal for the next start."""
        with self._door:
            with self._changed:
                self._farewell_s = patience_s
                self._closed = True
                self._changed.notify_all()
            self._stack.close()

    def describe(self, status: acquisition_pb2.Station) -> None:
        """Fills in what waits at the gate and what it has done."""
        with self._changed:
            status.pending = len(self._pending)
            status.outcomes, status.late = self._outcomes, self._late
        status.deadline.FromNanoseconds(int(self._settings.deadline_s * 1e9))
        status.fail_safe = self._fail_safe

    @property
    def trouble(self) -> str:
        """What is wrong with journal, bus or outputs, in words; empty when all is well."""
        journal, outbox = self._journal, self._outbox
        troubles = (
            self._trouble,
            journal.damage if journal is not None else "",
            outbox.trouble if outbox is not None else "",
            *(feeder.trouble for feeder in self._feeders),
        )
        return "; ".join(filter(None, troubles))

    def _opened(self) -> GateJournal:
        """The journal, opened with all that lives on it when it is not. Door held. Raises as `expect`."""
        if self._closed:
            raise BusClosed("the gate is closed")
        if self._journal is None:
            try:
                with ExitStack() as house:
                    self._begin(house)
                    self._stack = house.pop_all()
            except InspectBusError as error:
                self._journal = None
                self._trouble = f"the gate takes no frames: {error.message}"
                raise
            self._trouble = ""
        assert self._journal is not None
        return self._journal

    def _begin(self, house: ExitStack) -> None:
        """First the outcomes a former life left, then everything else. Raises as `expect`; then nothing has begun."""
        self._journal = GateJournal(self._folder, fsync=self._settings.fsync)
        house.callback(self._journal.close)
        house.callback(self._bus.follow(DECISIONS, self._on_news, key=(self._line, self._station)).close)
        with self._changed:
            for frame_id in self._journal.given:
                self._remember(frame_id)
            for left in self._journal.left:
                self._pending[left.frame_id] = expected = _Expected(left, 0.0, 0.0)
                self._metrics.pending.inc()
                self._decide(expected, self._fail_safe, GATE_REASON_RESTART, None)
        self._outbox = Outbox(self._bus, self._journal, f"{self._line}/{self._station}")
        self._outbox.start()
        house.callback(self._say_farewell)
        house.callback(self._watchers.close)
        for feeder in self._feeders:
            feeder.start()
            house.callback(feeder.close)
        self.turn()
        timer = threading.Thread(target=self._run, name=f"gate-{self._line}-{self._station}", daemon=True)
        timer.start()
        house.callback(self._end, timer)

    def _run(self) -> None:
        """The timer thread."""
        while True:
            try:
                pause_s = self.turn()
            except Exception:  # a fault must not end the timer: every later part would go without its outcome
                log.exception("a gate's turn failed", line=self._line, station=self._station)
                pause_s = JOURNAL_PAUSE_S
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._sooner or self._closed, pause_s)
                if self._closed:
                    return

    def _end(self, timer: threading.Thread) -> None:
        timer.join(JOIN_S)
        # What was decided between the thread's last turn and its end.
        self.turn()

    def _say_farewell(self) -> None:
        if self._outbox is not None:
            self._outbox.close(self._farewell_s)

    def _decide(
        self,
        expected: _Expected,
        action: gate_pb2.GateAction.ValueType,
        reason: gate_pb2.GateReason.ValueType,
        now_s: float | None,
    ) -> None:
        """The frame's one outcome, to be given by the next turn. Lock held."""
        outcome = expected.outcome
        del self._pending[outcome.frame_id]
        self._remember(outcome.frame_id)
        outcome.action, outcome.reason = action, reason
        if now_s is not None:
            outcome.waited_s = max(0.0, now_s - expected.since_s)
        outcome.at.FromNanoseconds(int(self._wall_clock() * 1e9))
        self._ready.append(outcome)
        spans.end(expected.part)
        self._decided += 1
        self._metrics.pending.dec()

    def _show(self, outcome: GateOutcome) -> None:
        """The last step of the part's trace: from its outcome until the outputs know."""
        if spans.are_recorded():
            decided_s = outcome.at.ToNanoseconds() / 1e9
            said = {
                name: str(value) for name, value in words(outcome).items() if name in ("action", "reason", "verdict")
            }
            spans.end(spans.begin("gate", outcome.frame_id, start_s=decided_s, attributes=said))

    def _remember(self, frame_id: str) -> None:
        """Lock held."""
        self._given[frame_id] = None
        if len(self._given) > REMEMBERED:
            self._given.popitem(last=False)

    def _write(self, now_s: float) -> None:
        """Into the journal, and from there to the bus. A disk that takes no more delays neither action nor timer."""
        if not self._unwritten or now_s < self._write_at_s or self._journal is None:
            return
        try:
            self._journal.settle(self._unwritten)
        except InspectBusError as error:
            self._trouble = f"outcomes cannot be journaled, trying again: {error.message}"
            self._write_at_s = now_s + JOURNAL_PAUSE_S
            return
        self._trouble = ""
        self._unwritten = []
        if self._outbox is not None:
            self._outbox.wake()

    def _beat(self, now_s: float) -> None:
        self._beat_at_s = now_s + self._settings.heartbeat_s / BEATS
        for output in self._outputs:
            output.heartbeat()
        if self._journal is not None:
            self._journal_bytes = self._journal.size_bytes
            self._metrics.journal_bytes.set(self._journal_bytes)
