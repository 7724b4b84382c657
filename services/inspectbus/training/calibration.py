"""Calibration, fitted on validation and then measured: a score of 0.8 should mean that four of five are defective.

labels, logits ─> Platt's line ─┬─> cross-validated log loss, is isotonic surely better? ─> Calibration, for the card
                                └─> isotonic map on top, from 500 images on
labels, scores ─> reliability table ─> expected calibration error
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import Calibration
from inspectbus.errors import BadField

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

ISOTONIC_FROM = 500
"""Images; scikit-learn's guide warns of overfitting far below 1000 (Niculescu-Mizil & Caruana, 2005, saw the same)."""
ISOTONIC_FROM_EACH = 50
"""Images of either class."""
FOLDS = 5
KNOTS = 33
"""An isotonic map jumps. Read at 33 places it is a line between them, so that another processor's rounding of a logit
moves a score by little, and a network's graph can hold it."""
LEAN = 0.05
"""Share of Platt's score in the isotonic one: its flat steps would call different parts the same, and one at 0 would
call a part certainly good."""
BINS = 15
"""As in Guo et al. (2017)."""


def calibrate(labels: Labels, logits: Floats, seed: int) -> Calibration:
    """Platt's line, or an isotonic map on top of it where cross-validation within these images says it is better.

    labels (N,) 0 or 1, logits (N,) finite; `seed` cuts the folds. The isotonic map must have the lower log loss by more
    than one standard error of the difference, else the simpler form stays. Raises BadField.
    """
    check_binary(labels, logits, "logits")
    each = int(min(labels.sum(), (1 - labels).sum()))
    platt = _platt(labels, logits)
    if len(labels) < ISOTONIC_FROM or each < ISOTONIC_FROM_EACH or platt == Calibration():
        return platt
    gain = np.empty(len(labels))
    for fit, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(logits, labels):
        line = _platt(labels[fit], logits[fit])
        curve = _isotonic(labels[fit], logits[fit], line)
        gain[held] = _log_loss(labels[held], scored(logits[held], line)) - _log_loss(
            labels[held], scored(logits[held], curve)
        )
    surely_better = gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain))
    return _isotonic(labels, logits, platt) if surely_better else platt


def _platt(labels: Labels, logits: Floats) -> Calibration:
    """Platt's two numbers, with a mild prior against the infinite certainty of a separable sample.

    A network whose logits say nothing, or the opposite, is left as it is: its scores will tell.
    """
    scale = float(logits.std())
    if scale == 0:
        return Calibration()
    line = LogisticRegression(C=1.0).fit((logits / scale)[:, None], labels)
    slope = float(line.coef_[0, 0]) / scale
    if slope <= 1e-6:
        return Calibration()
    return Calibration(temperature=1 / slope, bias=float(line.intercept_[0]))


def _isotonic(labels: Labels, logits: Floats, line: Calibration) -> Calibration:
    rising = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scored(logits, line), labels)
    at = np.linspace(0, 1, KNOTS)
    becomes = (1 - LEAN) * rising.predict(at) + LEAN * at
    knots = tuple(zip(at.tolist(), becomes.tolist(), strict=True))
    return Calibration(temperature=line.temperature, bias=line.bias, knots=knots)


def _log_loss(labels: Labels, scores: Floats) -> Floats:
    """(N,), of each image."""
    said = np.clip(np.where(labels == 1, scores, 1 - scores), 1e-12, 1)
    return np.asarray(-np.log(said), np.float64)


@dataclass(frozen=True)
class Bin:
    """Images whose scores lie together: what was said of them, and what they were."""

    low: float
    high: float
    """Scores above low, up to and with high; the first bin has its low too."""
    count: int
    score: float
    """Mean."""
    rate: float
    """Share that was defective."""
    rate_low: float
    rate_high: float
    """95 % interval of the rate (Clopper & Pearson, 1934)."""


def reliability(labels: Labels, scores: Floats, bins: int = BINS, *, adaptive: bool = False) -> list[Bin]:
    """The bins that hold any image, from low scores to high: equally wide, or if `adaptive` of equal count.

    labels (N,) 0 or 1, scores (N,) in 0 to 1, of one class or both. Raises BadField.
    """
    check_scores(labels, scores)
    edges = np.quantile(scores, np.linspace(0, 1, bins + 1)) if adaptive else np.linspace(0, 1, bins + 1)
    edges = np.unique(edges) if edges[0] < edges[-1] else edges[[0, -1]]
    # Right edges belong to their bins, as in Guo's formula; what equals the first edge has no bin to the left of it.
    which = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, len(edges) - 2)
    found = []
    for number in np.unique(which):
        inside = which == number
        count, defective = int(inside.sum()), int(labels[inside].sum())
        low, high = exact_interval(defective, count)
        found.append(
            Bin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                count=count,
                score=float(scores[inside].mean()),
                rate=defective / count,
                rate_low=low,
                rate_high=high,
            )
        )
    return found


def expected_calibration_error(labels: Labels, scores: Floats, bins: int = BINS, *, adaptive: bool = False) -> float:
    """Sum over bins of (count / N) * |share defective - mean score|: 0 is perfect, 1 the worst.

    Naeini, Cooper & Hauskrecht (2015), "Obtaining Well Calibrated Probabilities Using Bayesian Binning", for a binary
    score; equal-width bins as in Guo et al. (2017), "On Calibration of Modern Neural Networks", equation 3. `adaptive`:
    bins of equal count, as in Nixon et al. (2019), "Measuring Calibration in Deep Learning". It is never below what
    chance alone leaves in a small sample. Raises BadField.
    """
    table = reliability(labels, scores, bins, adaptive=adaptive)
    return sum(each.count * abs(each.rate - each.score) for each in table) / len(labels)


def exact_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Both ends of a share's two-sided interval (Clopper & Pearson, 1934); never too narrow, whatever the share."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def check_scores(labels: Labels, scores: Floats) -> None:
    """Raises BadField for what is no score, or no label of one."""
    if labels.shape != scores.shape or labels.ndim != 1 or not len(labels):
        raise BadField(
            f"{labels.shape} labels and {scores.shape} scores; one of each per image is needed", field="scores"
        )
    # Spelt so that NaN, which compares as False, is refused too.
    if bad := np.flatnonzero(~((scores >= 0) & (scores <= 1))).tolist():
        raise BadField(f"image {bad[0]} has score {scores[bad[0]]}, which is none between 0 and 1", field="scores")
    if not np.isin(labels, (0, 1)).all():
        raise BadField("a label is 0 for good or 1 for defective", field="labels")


def check_binary(labels: Labels, values: Floats, field: str) -> None:
    """Raises BadField unless both classes are there and every value is a number."""
    if bad := np.flatnonzero(~np.isfinite(values)).tolist():
        raise BadField(f"image {bad[0]} has {values[bad[0]]} among the {field}, which is no number", field=field)
    if (given := set(labels.tolist())) != {0, 1}:
        words = "only defective" if given == {1} else "only good" if given == {0} else "no properly labelled"
        raise BadField(f"there are {words} images; good and defective ones are needed", field="labels")
