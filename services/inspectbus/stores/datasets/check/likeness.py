"""Which pictures show the same thing: saved again, resized, relit, turned, mirrored.

sketches ─> what all of the set share, weakened ─> 128-bit perceptual hash, in eight orientations
         ─> pairs a few bits apart ─> cosine of what is left ─> pairs

Parts of one kind before a fixed camera are all alike, and an ordinary perceptual hash takes most of them for copies:
the 64-bit difference hash of two spindles is 3 bits apart at the median. So the strongest common patterns of the set
are weakened first: partial whitening by principal components, as image retrieval does it (Jégou and Chum, "Negative
evidences and co-occurrences in image retrieval", ECCV 2012). The hash is the signs of projections on random directions
(Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002), orthogonal ones (Ji et al.,
"Super-bit locality-sensitive hashing", NIPS 2012): vectors at the angle a differ in about a/pi of its bits.

Not found: a picture moved or cropped by more than about one hundredth of its side, turned by other than right angles,
or lit so that highlights burn out; and dozens of pictures of one part among few others, which then are what all share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspectbus.stores.datasets.check.sketches import SIDE, TURNS, Sketch, turned

ALIKE = 0.8
"""Cosine from which two pictures are told as one. About forty pairs of real parts from other groups, sampled down to
here, were looked at: they showed the same part, or two solar cells with the same pattern. Of pictures saved as a JPEG
of quality 40, halved, or blurred by 1.5 pixels, 98 in 100 stay above 0.85 on each of four real sets; unlike parts
before one fixed camera stay below 0.51."""
HASH_BITS = 128
HASH_DISTANCE = 40
"""Bits. At the cosine 0.8 the expected distance is 26 with a spread of 4.6, so one true pair in a thousand is missed;
two unlike pictures are 64 apart with a spread of 5.7, so one pair in a hundred thousand is compared in vain."""
MIN_PICTURES = 8
"""Of fewer, nobody can say what all of them share."""
MAX_PAIRS = 100_000
"""Kept at most; with so many there is one thing wrong with the set, and not a hundred thousand."""
_SHARED = 64
"""Common patterns weakened, at most one for eight pictures: with more, a pair of copies is a pattern of its own."""
_SAMPLE = 1000
"""Pictures the common patterns are learnt from."""
_EXPONENT = 1 / 3
"""1/2 would be full whitening, under which thirty copies of one part weaken each other to nothing; 0 would be none."""
_BLOCK = 1 << 22
"""Pairs of hashes compared at a time: 32 MB."""
_CHUNK = 2048
"""Sketches in float32 at a time: 19 MB."""

Rows = NDArray[np.float32]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of the same thing, by their places in the list that was given."""

    first: int
    second: int
    likeness: float
    """Cosine, at least ALIKE and at most 1."""
    turn: str
    """What to do with the second to see the first, in words; empty where it stands as the first does."""


def alike(
    sketches: Sequence[Sketch], sides: Sequence[int] | None = None, on_progress: OnProgress = lambda done, total: None
) -> list[Pair]:
    """Pairs of the same thing, likest first; with `sides`, a number for each sketch, only those across two sides.

    Compares every picture with every other: 20,000 take half a minute and 320 MB on one free core, and the time grows
    with the square. At most MAX_PAIRS are given.
    """
    # A picture without detail is like any other without detail, and says nothing of what it shows.
    places = np.flatnonzero([each.any() for each in sketches])
    if len(places) < MIN_PICTURES:
        return []
    pictures = np.stack([sketches[int(place)] for place in places])
    shared = _Shared(pictures)
    # Always the same directions, so that the same set gives the same pairs.
    directions = np.linalg.qr(np.random.default_rng(1).normal(size=(SIDE * SIDE, HASH_BITS)))[0].astype(np.float32)
    hashes = [_hashes(pictures, shared, directions, turn) for turn in range(len(TURNS))]
    side = None if sides is None else np.asarray(sides)[places]
    found: dict[tuple[int, int], tuple[float, int]] = {}
    count = len(pictures)
    step = max(1, _BLOCK // count)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        for turn, other in enumerate(hashes):
            rows, columns = _close(hashes[0][block], other[start:])
            rows, columns = rows + start, columns + start
            wanted = rows < columns
            if side is not None:
                wanted &= side[rows] != side[columns]
            rows, columns = rows[wanted], columns[wanted]
            for one in range(0, len(rows), _CHUNK):
                chunk = slice(one, one + _CHUNK)
                cosines = _cosines(pictures, shared, rows[chunk], columns[chunk], turn)
                for row, column, cosine in zip(rows[chunk], columns[chunk], cosines, strict=True):
                    pair = int(places[row]), int(places[column])
                    if cosine >= ALIKE and cosine > found.get(pair, (0.0, 0))[0]:
                        found[pair] = float(cosine), turn
                if len(found) >= MAX_PAIRS:
                    return _sorted(found)
        on_progress(block.stop, count)
    return _sorted(found)


def near_across(one: Sequence[Sketch], other: Sequence[Sketch]) -> list[Pair]:
    """Pairs of the same thing with the first in `one` and the second in `other`: what leaks through a cut.

    Made for a training, which has decoded its pictures anyway: `sketch` each, and ask once.
    """
    pairs = alike([*one, *other], [0] * len(one) + [1] * len(other))
    return [Pair(pair.first, pair.second - len(one), pair.likeness, pair.turn) for pair in pairs]


class _Shared:
    """The strongest common patterns of a set, and how much of each is left."""

    def __init__(self, pictures: NDArray[np.float16]) -> None:
        sample = np.random.default_rng(0).permutation(len(pictures))[:_SAMPLE]
        rows = _flat(pictures[np.sort(sample)])
        self._mean = rows.mean(axis=0)
        rows -= self._mean
        # The patterns of n pictures are found among n vectors: n x n is small, 2304 x 2304 is not.
        strength, mixes = np.linalg.eigh(rows @ rows.T)
        strength, mixes = np.maximum(strength[::-1], 0), mixes[:, ::-1]
        count = min(_SHARED, len(rows) // 8)
        kept = strength[:count] > 1e-6 * max(strength[0], 1e-12)
        self._patterns = rows.T @ mixes[:, :count][:, kept] / np.sqrt(strength[:count][kept])
        usual = strength[count:].mean()
        self._left = np.minimum(1, (usual / strength[:count][kept]) ** _EXPONENT).astype(np.float32)

    def weakened(self, rows: Rows) -> Rows:
        """(N, 2304) of length 1: what is particular of each."""
        rows = rows - self._mean
        parts = rows @ self._patterns
        rows -= (parts * (1 - self._left)) @ self._patterns.T
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
        return rows


def _hashes(pictures: NDArray[np.float16], shared: _Shared, directions: Rows, turn: int) -> NDArray[np.uint64]:
    """(N, 2) words of 64 bits."""
    made = []
    for start in range(0, len(pictures), _CHUNK):
        rows = shared.weakened(_flat(pictures[start : start + _CHUNK], turn))
        made.append(np.packbits(rows @ directions > 0, axis=1).view(np.uint64))
    return np.concatenate(made)


def _close(some: NDArray[np.uint64], others: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of `some` and of `others` whose hashes are at most HASH_DISTANCE bits apart."""
    distance = np.zeros((len(some), len(others)), np.uint8)
    for word in range(some.shape[1]):
        distance += np.bitwise_count(some[:, word, None] ^ others[None, :, word])
    rows, columns = np.nonzero(distance <= HASH_DISTANCE)
    return rows, columns


def _cosines(
    pictures: NDArray[np.float16], shared: _Shared, rows: NDArray[np.intp], columns: NDArray[np.intp], turn: int
) -> Rows:
    some, others = shared.weakened(_flat(pictures[rows])), shared.weakened(_flat(pictures[columns], turn))
    made: Rows = np.minimum(np.einsum("nd,nd->n", some, others), 1)
    return made


def _flat(pictures: NDArray[np.float16], turn: int = 0) -> Rows:
    """(N, 2304) float32."""
    return turned(pictures.astype(np.float32), turn).reshape(len(pictures), -1)


def _sorted(found: dict[tuple[int, int], tuple[float, int]]) -> list[Pair]:
    pairs = [Pair(first, second, cosine, TURNS[turn]) for (first, second), (cosine, turn) in found.items()]
    return sorted(pairs, key=lambda pair: (-pair.likeness, pair.first, pair.second))
