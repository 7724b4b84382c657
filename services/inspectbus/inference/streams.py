"""The engines' streams, which several batchers share: whose turn it is when more of them have images than there are.

batchers with images ─> least computed so far, by time ─> at most `count` runs at once, on all engines together
shadows with images ──> only when none of those waits, and never on every stream

Start-time fair queueing (Goyal, Vin and Cheng, 1997) over seconds of computing: each run begins at its flow's own time,
the least goes first, and time that a flow did not use while it had no images is not saved up. What a run lasts is known
when it ends; until then it is taken to last as the one before. So a model whose runs are ten times as long has a tenth
of the turns, and half of the machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass

LOOK_S = 1.0
"""How long a flow that waits sleeps between looks: a shadow is told of the end of others' runs, and not of images that
were cancelled."""


class Streams:
    """Thread-safe."""

    def __init__(self, count: int, clock: Callable[[], float] = time.perf_counter, *, ahead: int = 0) -> None:
        """At most `count` runs at once, of all flows, and `ahead` more that wait in the engines. Shadows leave one
        stream alone, where there are several.
        """
        self._clock = clock
        self._most = count + ahead
        self._ahead = ahead
        self._most_shadows = max(1, count - 1)
        self._lock = threading.Lock()
        self._running = 0
        self._shadows_running = 0
        self._waiting: list[_Wait] = []
        self._now_s = {False: 0.0, True: 0.0}
        """Of the flows' own time, and of the shadows': where the run that was the last to begin did."""
        self._flows: tuple[Flow, ...] = ()
        """Replaced and never changed, so that whoever looks needs no lock."""

    def flow(self, *, shadow: bool = False) -> Flow:
        """For one batcher, until it closes it."""
        flow = Flow(self, shadow=shadow)
        with self._lock:
            self._flows = (*self._flows, flow)
        return flow

    @property
    def crowd(self) -> int:
        """Flows that have images now; shadows have no turn that costs anybody else one."""
        return sum(1 for flow in self._flows if not flow.shadow and (flow.running or flow.waiting))

    def _begin(self, flow: Flow) -> Turn | None:
        with self._lock:
            if flow.idle and not (flow.running or flow.waiting):
                flow.at_s = max(flow.at_s, self._now_s[flow.shadow])
            if flow.closed:
                return None
            if not self._waiting and self._has_room(flow):
                return self._granted(flow)
            wait = _Wait(flow, threading.Condition(self._lock))
            flow.waiting += 1
            self._waiting.append(wait)
            self._grant()
            while wait.turn is None and not flow.closed:
                if not wait.told.wait(LOOK_S):
                    self._grant()
            flow.waiting -= 1
            if wait.turn is None:
                self._waiting.remove(wait)
            else:
                wait.turn.begun_s = self._clock()
            return wait.turn

    def _end(self, turn: Turn, *, used: bool) -> None:
        with self._lock:
            seconds = self._clock() - turn.begun_s if used else 0.0
            flow = turn.flow
            self._running -= 1
            self._shadows_running -= flow.shadow
            flow.running -= 1
            flow.idle = not flow.has_images
            flow.at_s += seconds - turn.charged_s
            if used:
                flow.last_s = seconds
                flow.computed_s += seconds
            if self._waiting:
                self._grant()

    def _close(self, flow: Flow) -> None:
        with self._lock:
            flow.closed = True
            self._flows = tuple(each for each in self._flows if each is not flow)
            for wait in self._waiting:
                if wait.flow is flow:
                    wait.told.notify()

    def _has_room(self, flow: Flow) -> bool:
        if flow.running >= flow.most:
            return False
        if not flow.shadow:
            return self._running < self._most
        # An image that has just come goes first, though the thread that will ask for it may still be on its way here.
        expected = any(not each.shadow and each.has_images for each in self._flows)
        return self._running < self._most and self._shadows_running < self._most_shadows and not expected

    def _grant(self) -> None:
        """To those who wait, as many as there is room for."""
        while True:
            first = [wait for wait in self._waiting if not wait.flow.shadow] or self._waiting
            able = [wait for wait in first if self._has_room(wait.flow)]
            if not able:
                return
            wait = min(able, key=lambda each: each.flow.at_s)
            self._waiting.remove(wait)
            wait.turn = self._granted(wait.flow)
            wait.told.notify()

    def _granted(self, flow: Flow) -> Turn:
        self._running += 1
        self._shadows_running += flow.shadow
        flow.running += 1
        self._now_s[flow.shadow] = max(self._now_s[flow.shadow], flow.at_s)
        flow.at_s += flow.last_s
        return Turn(flow, self._clock(), flow.last_s)


class Flow:
    """One batcher's way to the streams. What stands in it is the streams' to change, under their lock."""

    def __init__(self, streams: Streams, *, shadow: bool) -> None:
        self.streams = streams
        self.shadow = shadow
        self.closed = False
        self.running = 0
        self.waiting = 0
        self.idle = True
        """It had no images when its last run ended. One that had, and has not asked yet, catches nothing up."""
        self.at_s = 0.0
        """Its own time: it rises with what the flow is given, and catches up when it comes back."""
        self.last_s = 0.0
        self.computed_s = 0.0
        """Seconds of streams it was given."""
        self.most = streams._most_shadows if shadow else streams._most
        """Runs that it may have at once."""
        self._images: Sized = ()

    def is_for(self, images: Sized) -> None:
        """Those that wait for its turns. Looked at without a lock."""
        self._images = images

    def limited_to(self, streams: int) -> int:
        """Runs that it may have at once, from now on: its engine has so many streams."""
        self.most = min(self.most, streams + self.streams._ahead)
        return self.most

    @property
    def has_images(self) -> bool:
        return len(self._images) > 0

    @property
    def crowd(self) -> int:
        """How many share the streams now, this one among them."""
        return max(1, self.streams.crowd)

    def begin(self) -> Turn | None:
        """Waits for this flow's turn. None once the flow is closed.

        Whoever has many images asks before its last run is over, or another flow would be the only one that waits, and
        have the stream whosever turn it is.
        """
        return self.streams._begin(self)

    def close(self) -> None:
        """Whoever waits for a turn gets none any more."""
        self.streams._close(self)


@dataclass(slots=True)
class Turn:
    """A stream, from `begin` until it ends. Whoever has it ends it, once."""

    flow: Flow
    begun_s: float
    charged_s: float
    """What the run was taken to last when it began."""

    def end(self, *, used: bool = True) -> None:
        """`used`: something was computed; else it costs the flow nothing."""
        self.flow.streams._end(self, used=used)


@dataclass(eq=False, slots=True)
class _Wait:
    flow: Flow
    told: threading.Condition
    turn: Turn | None = None
