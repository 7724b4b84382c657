"""Measures of scores on labelled images, for many weightings of the images at once: the bootstrap is one matrix.

labels, scores, threshold, weights (B, N) ─> each measure, (B,)

A row of ones gives the plain figures. DEFECTIVE is positive. Definitions are scikit-learn's (sample_weight), with
zero_division=0: what was never called defective has precision 0.
"""

from __future__ import annotations

import numpy as np

from inspectbus.training.calibration import Floats, Labels

FIXED_OVERKILL = 0.05
"""Share of good parts that may be rejected where the escape is read off."""
BINS = 10
MEASURES = (
    "precision",
    "recall",
    "f1",
    "average_precision",
    "auroc",
    "accuracy",
    "escape_at_overkill",
)


def measure(labels: Labels, scores: Floats, threshold: float, weights: Floats) -> dict[str, Floats]:
    """Every measure, (B,); NaN in a row whose weights leave a class out, where the measure needs both.

    `escape_at_overkill` is the smallest share of defective parts passed at any threshold that rejects at most
    FIXED_OVERKILL of the good ones: read off the ROC curve of these very images, so it compares orders, not thresholds.
    """
    called = scores >= threshold
    true_positives = weights @ (called & (labels == 1)).astype(np.float64)
    false_positives = weights @ (called & (labels == 0)).astype(np.float64)
    positives = weights @ (labels == 1).astype(np.float64)
    everything = weights.sum(axis=1)
    negatives = everything - positives
    hits, alarms = _curves(labels, scores, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        recalls, overkills = hits / positives[:, None], alarms / negatives[:, None]
        # Weight 0 at the head of the order makes 0/0; nothing is recalled there, so it counts for nothing.
        precisions = np.nan_to_num(hits / (hits + alarms))
        auroc = (np.diff(overkills, prepend=0, axis=1) * (recalls + _before(recalls)) / 2).sum(axis=1)
        caught = np.where(overkills <= FIXED_OVERKILL + 1e-12, recalls, 0).max(axis=1, initial=0)
        return {
            "precision": np.nan_to_num(true_positives / (true_positives + false_positives)),
            "recall": true_positives / positives,
            "f1": 2 * true_positives / (true_positives + false_positives + positives),
            "average_precision": (np.diff(recalls, prepend=0, axis=1) * precisions).sum(axis=1),
            "auroc": auroc,
            "accuracy": (true_positives + negatives - false_positives) / everything,
            "escape_at_overkill": np.where((positives > 0) & (negatives > 0), 1 - caught, np.nan),
        }


def figures(labels: Labels, scores: Floats, threshold: float) -> dict[str, float]:
    """The plain figures."""
    found = measure(labels, scores, threshold, np.ones((1, len(labels))))
    return {name: float(value[0]) for name, value in found.items()}


def surest_errors(labels: Labels, scores: Floats, threshold: float, count: int) -> list[int]:
    """Rows of up to `count` defective images that were passed, the lowest score first, then of as many good ones that
    were rejected, the highest first."""
    rows: list[int] = []
    for label, wrong in ((1, scores < threshold), (0, scores >= threshold)):
        found = np.flatnonzero((labels == label) & wrong)
        worst = np.argsort(scores[found] if label else -scores[found], kind="stable")[:count]
        rows += [int(row) for row in found[worst]]
    return rows


def reliability(labels: Labels, scores: Floats) -> list[tuple[float, float, int]]:
    """(mean score, share defective, images) of each of ten equal bins that holds any."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    held = [bins == number for number in range(BINS)]
    return [(float(scores[rows].mean()), float(labels[rows].mean()), int(rows.sum())) for rows in held if rows.any()]


def calibration_error(labels: Labels, scores: Floats) -> float:
    """ECE: mean distance of score and share over the bins, by images (Naeini, Cooper, Hauskrecht, AAAI 2015)."""
    return sum(count * abs(score - share) for score, share, count in reliability(labels, scores)) / len(labels)


def _curves(labels: Labels, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(B, K) weights of true and of false alarms at each distinct score, falling."""
    order = np.argsort(-scores, kind="stable")
    # Equal scores fall together: only the last of them is a point of the curve.
    last = np.append(np.diff(scores[order]) != 0, True)
    ordered = weights[:, order]
    hits = np.cumsum(ordered * labels[order], axis=1)[:, last]
    return hits, np.cumsum(ordered, axis=1)[:, last] - hits


def _before(curve: Floats) -> Floats:
    return np.concatenate([np.zeros((len(curve), 1)), curve[:, :-1]], axis=1)
