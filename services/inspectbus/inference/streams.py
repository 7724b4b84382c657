"""The engines' streams, which several batchers share: whose turn it is when more of them have images than there are.

batchers with images ── wish ─> least computed so far, by time ─> turn: at most `count` runs at once, on all engines
shadows with images ─── wish ─> only when none of those waits, and never on every stream

No thread waits: a wish is answered with a turn, at once where there is room, else by the thread that makes some.

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

from inspectbus.inference.afterwards import follow


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
        self._wishing: list[Flow] = []
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
        return sum(1 for flow in self._flows if not flow.shadow and (flow.running or flow.wishes))

    def _wish(self, flow: Flow) -> None:
        with self._lock:
            if flow.closed or flow.wishes:
                return
            if flow.idle and not flow.running:
                flow.at_s = max(flow.at_s, self._now_s[flow.shadow])
            if not (self._wishing or flow.shadow) and self._has_room(flow):
                turns = [self._granted(flow)]
            else:
                flow.wishes = True
                # First among those who wish, and only then looked at: see `_look`.
                self._wishing.append(flow)
                turns = self._grants()
        _hand_out(turns)

    def _end(self, turn: Turn, *, used: bool) -> None:
        turns: list[Turn] = []
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
            if self._wishing:
                turns = self._grants()
        _hand_out(turns)

    def _look(self) -> None:
        """Some flow has no images any more, which shadows may have waited for."""
        # Without the lock, for each batch: whoever came to wish and saw the images is seen here.
        if self._wishing:
            with self._lock:
                turns = self._grants()
            _hand_out(turns)

    def _close(self, flow: Flow) -> None:
        with self._lock:
            flow.closed = True
            self._flows = tuple(each for each in self._flows if each is not flow)
            if flow.wishes:
                flow.wishes = False
                self._wishing.remove(flow)
            turns = self._grants()
        flow._begin = _nobody  # who has closed it must not wait, with it, for the garbage collector
        _hand_out(turns)

    def _has_room(self, flow: Flow) -> bool:
        if flow.running >= flow.most:
            return False
        if not flow.shadow:
            return self._running < self._most
        # An image that has just come goes first, though it is still being written and nobody wishes for it yet.
        expected = any(not each.shadow and each.has_images for each in self._flows)
        return self._running < self._most and self._shadows_running < self._most_shadows and not expected

    def _grants(self) -> list[Turn]:
        """To those who wish, as many as there is room for. To be handed out without the lock."""
        turns: list[Turn] = []
        while True:
            first = [flow for flow in self._wishing if not flow.shadow] or self._wishing
            able = [flow for flow in first if self._has_room(flow)]
            if not able:
                return turns
            flow = min(able, key=lambda each: each.at_s)
            self._wishing.remove(flow)
            flow.wishes = False
            turns.append(self._granted(flow))

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
        self.wishes = False
        self.idle = True
        """It had no images when its last run ended. One that had, and has no wish yet, catches nothing up."""
        self.at_s = 0.0
        """Its own time: it rises with what the flow is given, and catches up when it comes back."""
        self.last_s = 0.0
        self.computed_s = 0.0
        """Seconds of streams it was given."""
        self.most = streams._most_shadows if shadow else streams._most
        """Runs that it may have at once."""
        self._images: Sized = ()
        self._begin: Callable[[Turn], object] = _nobody

    def is_for(self, images: Sized, begin: Callable[[Turn], object]) -> None:
        """`images` wait for its turns, and are looked at without a lock. `begin` is called with each turn, without a
        lock and never inside of another `begin`; it returns soon, for it may be on another flow's thread.
        """
        self._images, self._begin = images, begin

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

    def wish(self) -> None:
        """For one turn. Nothing while such a wish is open, or once the flow is closed.

        Whoever has more images wishes again as soon as it has a turn: another flow would be the only one that wishes,
        and have the stream whosever turn it is.
        """
        self.streams._wish(self)

    def emptied(self) -> None:
        """Its images have gone, and perhaps without a turn."""
        self.streams._look()

    def close(self) -> None:
        """It has no turn any more, but those that it has."""
        self.streams._close(self)


@dataclass(slots=True, eq=False)
class Turn:
    """A stream, from `begin` until it ends. Whoever has it ends it, once, on any thread."""

    flow: Flow
    begun_s: float
    charged_s: float
    """What the run was taken to last when it began."""

    def end(self, *, used: bool = True) -> None:
        """`used`: something was computed; else it costs the flow nothing."""
        self.flow.streams._end(self, used=used)


def _hand_out(turns: list[Turn]) -> None:
    for turn in turns:
        follow(_handed, turn)


def _handed(turn: Turn) -> None:
    turn.flow._begin(turn)


def _nobody(turn: Turn) -> None:
    """A turn that came too late: its flow is closed."""
    turn.end(used=False)
