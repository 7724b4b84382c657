"""Slots: the memory of batches, filled while images arrive, so that nothing is copied when an engine is ready.

image ─> a place in its lane's slot ─> Run: neighbouring places of one slot ─> the engine reads them where they lie
             └── cancelled, or too late: the place is free again

A slot has room for the largest batch, and images of one lane. Whoever comes takes the first free place; when an engine
begins with a slot it is closed to others, who fill the next one while the engine computes. A place that became free
inside a batch is filled from the batch's end: the one image that is copied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from inspectbus.bus import Lane
from inspectbus.bus.lanes import Lanes
from inspectbus.imaging import Image
from inspectbus.inference.engine import Images

T = TypeVar("T")


@dataclass(eq=False)
class Slot(Generic[T]):
    """One batch's memory, and who has a place in it."""

    images: Images
    lane: Lane = Lane.LIVE
    free: list[int] = field(default_factory=list)
    """Places that somebody may take, the next last."""
    filling: set[int] = field(default_factory=set)
    """Places that are being written."""
    waiting: dict[int, T] = field(default_factory=dict)
    """Whose image lies in each place."""
    computing: int = 0
    """Images that engines read."""
    begun: bool = False
    """An engine has taken from it: nobody joins those who are left."""

    def open(self, lane: Lane) -> None:
        self.lane, self.begun = lane, False
        self.free = list(reversed(range(len(self.images))))

    @property
    def full(self) -> bool:
        """Nobody can join, so there is nobody to wait for."""
        return self.begun or not self.free

    @property
    def unused(self) -> bool:
        return not (self.filling or self.waiting or self.computing)


@dataclass(frozen=True)
class Run(Generic[T]):
    """A batch: items[n] has the image at place start + n, once `closed_up` has moved some."""

    slot: Slot[T]
    start: int
    items: list[T]
    moves: list[tuple[int, int]]
    """From place, to place."""

    def closed_up(self) -> None:
        """Not under the queue's lock: the places are the run's own."""
        images = self.slot.images
        for source, to in self.moves:
            images[to] = images[source]


@dataclass(frozen=True)
class _Seat(Generic[T]):
    slot: Slot[T]
    place: int


class SlotQueue(Generic[T]):
    """Who waits, in two lanes of slots. Not thread-safe.

    However they come and go, there are at most so many slots: for each lane the most that ever waited at once divided
    by a slot's size, and one more; one for each run in an engine's hands; and one for each lane that is taken in parts.
    They are kept for those who come next.
    """

    def __init__(self, made: Callable[[], Images], ready: int) -> None:
        """`made` gives the memory of a batch; so many are made at once."""
        self._make = made
        self._lanes: Lanes[Slot[T]] = Lanes()
        """Slots in which somebody waits whose image is there."""
        # Looked up once: to walk an Enum costs more than all else that is done for a batch here.
        self._waiting = [self._lanes[lane] for lane in Lane]
        self._roomy: dict[Lane, dict[Slot[T], None]] = {lane: {} for lane in Lane}
        """Slots that take more, in the order in which they do."""
        self._unused: list[Slot[T]] = [Slot(made()) for _ in range(ready)]
        self._seats: dict[T, _Seat[T]] = {}
        self._counts = dict.fromkeys(Lane, 0)
        self.slots = ready
        """How many were ever made."""

    def __len__(self) -> int:
        return len(self._seats)

    def count(self, lane: Lane) -> int:
        return self._counts[lane]

    def heads(self) -> list[Slot[T]]:
        """The slot of each lane whose turn is next, where one has images."""
        return [waiting[0] for waiting in self._waiting if waiting]

    def ready(self) -> Iterator[T]:
        """All whose image is in its place."""
        return (item for lane in Lane for slot in self._lanes[lane] for item in slot.waiting.values())

    def seat(self, item: T, lane: Lane) -> Image:
        """A place, to be written and then told `filled`. Raises MemoryError when there is none for another slot."""
        roomy = self._roomy[lane]
        slot = next(iter(roomy), None)
        if slot is None:
            slot = self._opened(lane)
        place = slot.free.pop()
        if not slot.free:
            del roomy[slot]
        slot.filling.add(place)
        self._seats[item] = _Seat(slot, place)
        self._counts[lane] += 1
        image: Image = slot.images[place]
        return image

    def filled(self, item: T) -> None:
        """Its image is there. Nothing, when the queue was cleared meanwhile."""
        if (seat := self._seats.get(item)) is None:
            return
        slot = seat.slot
        slot.filling.remove(seat.place)
        slot.waiting[seat.place] = item
        if len(slot.waiting) == 1:
            self._lanes.put(slot, slot.lane, first=slot.begun)

    def leave(self, item: T) -> bool:
        """Gives its place back. False when it waits no more. Not for one whose image is still being written."""
        if (seat := self._seats.get(item)) is None:
            return False
        slot = seat.slot
        self._stand_up(item)
        if not slot.waiting:
            self._lanes[slot.lane].remove(slot)
        if not slot.begun:
            self._give(slot, seat.place)
        self._lay_by(slot)
        return True

    def take(self, most: int, wanted: Callable[[T], bool]) -> Run[T] | None:
        """The next batch, of those who are wanted; the others before them leave. None where nobody is.

        Raises IndexError when no image waits.
        """
        slot = self._lanes.next()
        places: list[int] = []
        for place in sorted(slot.waiting):
            # One that is being written may not be overwritten, so what a run closes up ends before it.
            if len(places) == most or (places and any(places[0] < other < place for other in slot.filling)):
                break
            item = slot.waiting[place]
            if wanted(item):
                places.append(place)
            else:
                self._stand_up(item)
                if not slot.begun:
                    self._give(slot, place)
        run = self._begin(slot, places) if places else None
        if slot.waiting:
            self._lanes.put(slot, slot.lane, first=True)
        self._lay_by(slot)
        return run

    def done(self, run: Run[T]) -> None:
        """The engine has read it."""
        run.slot.computing -= len(run.items)
        self._lay_by(run.slot)

    def clear(self) -> list[T]:
        """Whoever waits leaves, also those whose image is still being written. The memory goes too."""
        left = list(self._seats)
        self._seats.clear()
        self._lanes.clear()
        self._unused.clear()
        self._counts = dict.fromkeys(Lane, 0)
        for roomy in self._roomy.values():
            roomy.clear()
        return left

    def _opened(self, lane: Lane) -> Slot[T]:
        if self._unused:
            slot = self._unused.pop()
        else:
            slot = Slot(self._make())
            self.slots += 1
        slot.open(lane)
        self._roomy[lane][slot] = None
        return slot

    def _begin(self, slot: Slot[T], places: list[int]) -> Run[T]:
        slot.begun = True
        slot.computing += len(places)
        self._roomy[slot.lane].pop(slot, None)
        start, end = places[0], places[0] + len(places)
        items = {place: slot.waiting[place] for place in places}
        for item in items.values():
            self._stand_up(item)
        gaps = (place for place in range(start, end) if place not in items)
        moves = [(place, next(gaps)) for place in places if place >= end]
        for source, to in moves:
            items[to] = items[source]
        return Run(slot, start, [items[place] for place in range(start, end)], moves)

    def _stand_up(self, item: T) -> None:
        seat = self._seats.pop(item)
        del seat.slot.waiting[seat.place]
        self._counts[seat.slot.lane] -= 1

    def _give(self, slot: Slot[T], place: int) -> None:
        slot.free.append(place)
        self._roomy[slot.lane][slot] = None

    def _lay_by(self, slot: Slot[T]) -> None:
        if slot.unused:
            self._roomy[slot.lane].pop(slot, None)
            self._unused.append(slot)


def memory_for(device: str, shape: tuple[int, int, int, int]) -> Callable[[], Images]:
    """Makes batches' memory where the engine on that device reads it fastest: (N, H, W, 3) uint8.

    On CUDA it is pinned, where torch is there and sees the device: the card then fetches it while we go on.
    """
    if on_cuda(device):
        try:
            import torch
        except ImportError:
            return lambda: np.empty(shape, np.uint8)
        if torch.cuda.is_available():
            return lambda: torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return lambda: np.empty(shape, np.uint8)


def batch_sizes(device: str, largest: int) -> tuple[int, ...]:
    """The sizes in which an engine on that device is given batches, ascending; none: in any.

    On CUDA each new size has its algorithms chosen, on live frames: it gets powers of two, and the largest.
    """
    if not on_cuda(device):
        return ()
    return tuple(sorted({*(2**power for power in range(largest.bit_length())), largest}))


def on_cuda(device: str) -> bool:
    """By an engine's own word: see `Engine.device`."""
    return device.split(":")[0] == "cuda"
