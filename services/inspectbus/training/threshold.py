"""From calibrated scores of the validation part to the one that divides: at or above the threshold is DEFECTIVE."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import precision_recall_curve

from inspectbus.training.calibration import Floats, Labels

BOOTSTRAPS = 200
"""Resamples of the validation part: the best F1 of one small sample is an accident, the median of many is not."""


def best_f1_threshold(labels: Labels, scores: Floats) -> float:
    """In the middle of the gap below the best divide, as far from both neighbours as can be."""
    precision, recall, divides = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    at = divides[int(f1[: len(divides)].argmax())]
    below = scores[scores < at]
    # Below the lowest score lies 0. A threshold that is a score itself would change its verdict with any rounding.
    return float((at + (below.max() if len(below) else 0.0)) / 2)


def stable_threshold(labels: Labels, scores: Floats, seed: int, rounds: int = BOOTSTRAPS) -> float:
    """Median of the best-F1 thresholds over resamples of the validation part."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(labels), len(labels)) for _ in range(rounds))
    found = [best_f1_threshold(labels[draw], scores[draw]) for draw in draws if labels[draw].any()]
    return float(np.median(found)) if found else best_f1_threshold(labels, scores)
