"""The threshold advisor: at most so many escapes give so much overkill with so many parts held, and how sure that is.

validation labels, scores ─┬─ defective images, escape limit ─> lower threshold: their k-th lowest score
                           └─ good images, held limit ───────> upper threshold: the j-th good score from the lower on

The thresholds are chosen on the very images that vouch for them, and the statements hold all the same, for every
distribution of scores, because k and j follow from the numbers of images and the limits alone, never from a score:

- Escape. The share of all defective parts below the k-th lowest of n scores is at most Beta(k, n - k + 1) distributed,
  exactly so where scores never tie (Wilks, 1941, "Determination of Sample Sizes for Setting Tolerance Limits"; David &
  Nagaraja, "Order Statistics", 2003, section 2.2). Its 95 % quantile is what Clopper & Pearson (1934) say of k - 1
  misses among n, and for k = 1 is 1 - 0.05^(1/n), the rule of three made exact.
- Held. The lower threshold comes from defective images, so for good ones it is a fixed place. Counted upward from
  there, and on from 0 after 1, the same law holds for the j-th good score met.
- Overkill. Given the upper threshold, good images that are not held are as many trials for what lies above it; those at
  it are counted with them. So Clopper & Pearson's bound among these holds. There is another way to an upper threshold,
  above every good score, where less than the limit needs to be held: each of the two gets half of the risk.

Calibration does not spoil this though it was fitted on the same images: it rises strictly, so it moves no part past
another. What it cannot know: the network's best epoch was picked on these images too, they may come from another day
than the line's, and several images of one part are not several parts.

Each of the three statements holds with 95 % confidence for itself, for limits that were set before scores were seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import beta

from inspectbus.domain.thresholds import Thresholds
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.training.calibration import Floats, Labels, check_binary, check_scores

CONFIDENCE = 0.95
PER_UNIT = 1_000_000
"""Thresholds are whole millionths: to be typed into a recipe, and clear of the last digits where processors differ."""
RUNGS = 16
"""Of a trade-off: as many as a plot shows."""


@dataclass(frozen=True)
class Share:
    """Of parts: among the validation images, and the upper 95 % bound for all parts like them."""

    seen: float
    at_most: float


@dataclass(frozen=True)
class Advice:
    """Two thresholds and what they give."""

    thresholds: Thresholds
    escape: Share
    """Defective parts that pass, of all defective parts; held ones did not pass."""
    overkill: Share
    """Good parts that are rejected, of all good parts."""
    held: Share
    """Good parts that are held, of all good parts: on a line that is nearly every held part."""
    held_defective: float
    """Defective images that are held, of all defective ones; seen, without a bound."""


def advise(labels: Labels, scores: Floats, escape_ppm: float, held_limit: float = 0.0) -> Advice:
    """The thresholds with the least overkill that keep escapes, and good parts held, within limits at 95 % confidence.

    labels (N,) 1 for defective and 0 for good, scores (N,) in 0 to 1, of a validation part. escape_ppm: defective parts
    that may pass, in a million of them; held_limit: share of good parts that may be held, 0 for one threshold. Raises
    BadField for what are no such scores or limits, and NotPossibleNow when there are too few images to show a limit,
    with the number that it takes.
    """
    good, defective = _classes(labels, scores)
    if not 0 < escape_ppm < 1e6:
        raise BadField(
            f"escape_ppm is {escape_ppm:g}; of a million defective parts, more than 0 and less than all may pass",
            field="escape_ppm",
        )
    k = int(np.searchsorted(_bounds(len(defective)), escape_ppm / 1e6, side="right"))
    if k == 0:
        raise NotPossibleNow(
            f"with {_images(len(defective), 'defective')} no threshold can show less than "
            f"{math.ceil(_bounds(len(defective))[0] * 1e6):,} ppm escape at {CONFIDENCE:.0%}; "
            f"{escape_ppm:,g} ppm takes {_needed(escape_ppm / 1e6):,} of them",
            field="escape_ppm",
        )
    return _advice(good, defective, k, _held_rank(len(good), held_limit))


def trade_off(labels: Labels, scores: Floats, held_limit: float = 0.0) -> list[Advice]:
    """What other escape limits would give, from the lowest that can be shown to one half; each a statement of its own.

    Who looks first and sets the limit then is less sure than 95 %. Raises as `advise` does.
    """
    good, defective = _classes(labels, scores)
    j = _held_rank(len(good), held_limit)
    most = max(1, int(np.searchsorted(_bounds(len(defective)), 0.5, side="right")))
    ranks = np.unique(np.geomspace(1, most, RUNGS).round().astype(int)).tolist()
    return [_advice(good, defective, k, j) for k in ranks]


def _classes(labels: Labels, scores: Floats) -> tuple[Floats, Floats]:
    """Scores of good and of defective images, each rising, in whole millionths."""
    check_scores(labels, scores)
    check_binary(labels, scores, "scores")
    floored = np.floor(scores * PER_UNIT) / PER_UNIT
    return np.sort(floored[labels == 0]), np.sort(floored[labels == 1])


def _held_rank(good: int, held_limit: float) -> int:
    """How many good scores up the upper threshold may lie; 0 for no band."""
    if not 0 <= held_limit < 1:
        raise BadField(f"the held limit is {held_limit}; it is 0 or more, and below 1", field="held_limit")
    if held_limit == 0:
        return 0
    j = int(np.searchsorted(_bounds(good), held_limit, side="right"))
    if j == 0:
        raise NotPossibleNow(
            f"with {_images(good, 'good')} no band can show less than {_bounds(good)[0]:.2%} held at {CONFIDENCE:.0%}; "
            f"{held_limit:.2%} takes {_needed(held_limit):,} of them, and 0 holds nothing",
            field="held_limit",
        )
    return j


def _advice(good: Floats, defective: Floats, k: int, j: int) -> Advice:
    lower = float(defective[k - 1])
    above = good[np.searchsorted(good, lower) :]
    if j and len(above) >= j:
        upper = float(above[j - 1])
        trials, risk = len(good) - int((above < upper).sum()), (1 - CONFIDENCE) / 2
    elif j and len(above):
        upper = _beyond(float(above[-1]), defective)
        trials, risk = len(good), (1 - CONFIDENCE) / 2
    else:
        upper = lower
        trials, risk = len(good), (1 - CONFIDENCE) / (2 if j else 1)
    rejected, held = int((good >= upper).sum()), int((above < upper).sum())
    return Advice(
        thresholds=Thresholds(lower, upper),
        escape=Share(float((defective < lower).mean()), float(_bounds(len(defective))[k - 1])),
        overkill=Share(rejected / len(good), _upper_bound(rejected, trials, risk)),
        held=Share(held / len(good), float(_bounds(len(good))[j - 1]) if upper > lower else 0.0),
        held_defective=float(((defective >= lower) & (defective < upper)).mean()),
    )


def _beyond(highest_good: float, defective: Floats) -> float:
    """Above every good score, half way to what comes next."""
    higher = defective[defective > highest_good]
    return math.ceil((highest_good + (float(higher[0]) if len(higher) else 1.0)) / 2 * PER_UNIT) / PER_UNIT


@lru_cache(maxsize=64)
def _bounds(count: int) -> Floats:
    """(count,): with 95 % confidence, the share below the first, second, ... of so many scores is at most this."""
    ranks = np.arange(1, count + 1)
    bounds = np.asarray(beta.ppf(CONFIDENCE, ranks, count - ranks + 1), np.float64)
    bounds.flags.writeable = False
    return bounds


def _upper_bound(hits: int, count: int, risk: float) -> float:
    """One-sided (Clopper & Pearson, 1934)."""
    return float(beta.ppf(1 - risk, hits + 1, count - hits)) if hits < count else 1.0


def _needed(limit: float) -> int:
    """Images of the class before even the lowest score shows the limit."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-limit))


def _images(count: int, word: str) -> str:
    return f"{count:,} {word} {'image' if count == 1 else 'images'}"
