"""From logits of the validation part to what a station needs: a calibrated score, and the score that divides.

logit ─> calibration ─> score in 0 to 1 ─> at or above the threshold: DEFECTIVE
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve

from inspectbus.domain.model_version import Calibration

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
BOOTSTRAPS = 200
"""Resamples of the validation part: the best F1 of one small sample is an accident, the median of many is not."""


def calibrate(labels: Labels, logits: Floats) -> Calibration:
    """A score of 0.8 should mean that four of five such parts are defective; the weighted loss alone overstates.

    Platt's two numbers, with a mild prior against the infinite certainty of a separable sample. A network whose logits
    say nothing, or the opposite, is left as it is: its scores will tell.
    """
    scale = float(logits.std())
    if scale == 0:
        return Calibration()
    line = LogisticRegression(C=1.0).fit((logits / scale)[:, None], labels)
    slope = float(line.coef_[0, 0]) / scale
    if slope <= 1e-6:
        return Calibration()
    return Calibration(temperature=1 / slope, bias=float(line.intercept_[0]))


def scored(logits: Floats, calibration: Calibration) -> Floats:
    """Scores in 0 to 1, as the line will compute them."""
    scores: Floats = 1 / (1 + np.exp(-np.clip(logits / calibration.temperature + calibration.bias, -700, 700)))
    return scores


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
