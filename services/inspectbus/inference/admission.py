"""Whether a call can be answered in time: how fast the engine was lately, and what is before the call.

runs of the engine ─> Pace: what a batch of n lasts ─> with all that waits and is computed: when an answer would come
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORY = 16
"""Runs after which a run counts a third: enough for an average, few enough to follow a machine that gets busy."""
ALIKE = 1e-3
"""Variance of batch sizes below which nothing can be told of how the time grows with the size."""
MARGIN = 2.0
"""Half of a caller's patience is for what nobody predicts: the ways there and back, which a flood makes long (75 ms on
two cores at three times the capacity), and that an average is one. A call let in by a hair is answered too late and has
cost others their turn; a queue half as long keeps the engine as busy."""


class Pace:
    """What a batch lasts by its size: `base + each * size`, by least squares over the last runs, the newest counting
    most. Not thread-safe.

    Where all runs had one size, time is taken to grow with it: so it is on a processor, and on a card it is learnt as
    soon as calls gather. Both parts are kept from being negative, which noise would make them.
    """

    def __init__(self) -> None:
        self.base_s = 0.0
        self.each_s = 0.0
        self.known = False
        self._weight = self._n = self._t = self._nn = self._nt = 0.0

    def observe(self, count: int, seconds: float) -> None:
        keep = math.exp(-1 / MEMORY)
        self._weight = keep * self._weight + 1
        self._n = keep * self._n + count
        self._t = keep * self._t + seconds
        self._nn = keep * self._nn + count * count
        self._nt = keep * self._nt + count * seconds
        n, t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - n * n
        slope = (self._nt / self._weight - n * t) / variance if variance > ALIKE else t / n
        self.each_s = min(max(slope, 0.0), t / n)
        self.base_s = t - self.each_s * n
        self.known = True

    def batch_s(self, count: int) -> float:
        return self.base_s + self.each_s * count

    def work_s(self, count: int, size: int) -> float:
        """Of so many images in batches of at most `size`, one after the other."""
        return self.base_s * math.ceil(count / size) + self.each_s * count


@dataclass(frozen=True)
class Ahead:
    """What is before a call."""

    remaining_s: float
    """Of the batches that are computed, added up."""
    images: int
    """That wait and go first."""
    slowed: float = 1.0
    """So many times as long it takes because others have their turns between: 1, nobody has."""


def answered_in_s(pace: Pace, ahead: Ahead, count: int, *, size: int, streams: int) -> float:
    """Seconds until `count` images that come now would be answered, by streams that share the work evenly."""
    images = ahead.images + count
    last = min(size, math.ceil(images / streams))
    before_s = pace.work_s(max(0, images - last * streams), size) * ahead.slowed
    return (ahead.remaining_s + before_s) / streams + pace.batch_s(last)
