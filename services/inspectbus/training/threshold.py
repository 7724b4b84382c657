"""From calibrated scores of the validation part to the one that divides: at or above the threshold is DEFECTIVE."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import precision_recall_curve

from inspectbus.training.calibration import Floats, Labels

BOOTSTRAPS = 200
"""Resamples of the validation part: the best F1 of one small sample is an accident, the median of many is not."""
CLEARANCE = 2e-5
"""No validation score lies so near a threshold: exports and other processors round scores by some 5e-6, and one that is
nearer would be GOOD here and DEFECTIVE there."""


def best_f1_threshold(labels: Labels, scores: Floats) -> float:
    """In the middle of the gap below the best divide, as far from both neighbours as can be.

    Gaps too narrow for the clearance are passed over, unless there are no others.
    """
    precision, recall, divides = precision_recall_curve(labels, scores)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    # Below the lowest score lies 0. A threshold that is a score itself would change its verdict with any rounding.
    below = np.concatenate([[min(0.0, 2 * divides[0])], divides[:-1]])
    wide = divides - below >= 2 * CLEARANCE
    best = int(np.where(wide, f1, f1 - 1).argmax())
    return float((divides[best] + below[best]) / 2)


def stable_threshold(labels: Labels, scores: Floats, seed: int, rounds: int = BOOTSTRAPS) -> float:
    """Median of the best-F1 thresholds over resamples of the validation part, moved clear of every score."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(labels), len(labels)) for _ in range(rounds))
    found = [best_f1_threshold(labels[draw], scores[draw]) for draw in draws if labels[draw].any()]
    return clear_of(scores, float(np.median(found))) if found else best_f1_threshold(labels, scores)


def clear_of(scores: Floats, threshold: float) -> float:
    """The threshold itself where no score is within the clearance, else the nearest middle of a wide enough gap."""
    if np.abs(scores - threshold).min() >= CLEARANCE:
        return threshold
    known = np.unique(scores)
    middles = ((known[1:] + known[:-1]) / 2)[np.diff(known) >= 2 * CLEARANCE]
    return float(middles[np.abs(middles - threshold).argmin()]) if len(middles) else threshold
