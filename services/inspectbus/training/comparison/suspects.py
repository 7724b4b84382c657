"""Suspects: labels that the rest of the data contradicts, the most doubtful first.

features, labels ─> logistic regression, cross-validated ─> probability of the given label ─> rising order

Self-confidence of confident learning (Northcutt, Jiang, Chuang, Confident Learning: Estimating Uncertainty in Dataset
Labels, JAIR 70, 2021): every image is judged by a model that has not learnt from it, nor from others of its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from inspectbus.training.calibration import Floats, Labels
from inspectbus.training.comparison.learning import Inputs

FOLDS = 5
STRENGTH = 0.003
"""C of the logistic regression: weak enough that it cannot learn a wrong label among a thousand features by heart. With
5 % of the labels of 1,968 solar cells turned, 56 to 74 % of those are among the suspects; 0.0003 to 0.01 do about the
same."""
SUSPICIOUS = 0.1
"""Share of the images that counts as most suspicious."""


@dataclass(frozen=True)
class Suspicion:
    """How the labels look to those that did not learn them."""

    confidence: Floats
    """(N,): probability that an image has the label it was given, out of fold."""
    order: NDArray[np.int64]
    """Rows, the most suspicious first."""

    @property
    def suspects(self) -> NDArray[np.int64]:
        """The tenth that looks worst, at least one."""
        return self.order[: max(1, round(SUSPICIOUS * len(self.order)))]


def suspect(features: Inputs, labels: Labels, groups: Sequence[str | None], seed: int) -> Suspicion | None:
    """`features` (N, F), `labels` (N,). None where a class has too few images or groups to be cut into two folds."""
    units = np.array([group if group is not None else f"\0{row}" for row, group in enumerate(groups)])
    grouped = len(set(units)) < len(units)
    folds = min(FOLDS, *(len(set(units[labels == label])) for label in (0, 1)))
    if folds < 2:
        return None
    cutter = (StratifiedGroupKFold if grouped else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    defective = np.full(len(labels), np.nan)
    for rest, part in cutter.split(features, labels, units if grouped else None):
        if len(set(labels[rest])) < 2:
            return None
        machine = make_pipeline(
            StandardScaler(), LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
        ).fit(features[rest], labels[rest])
        defective[part] = machine.predict_proba(features[part])[:, 1]
    confidence = np.where(labels == 1, defective, 1 - defective)
    return Suspicion(confidence, np.argsort(confidence, kind="stable"))


def found_again(
    features: Inputs, labels: Labels, groups: Sequence[str | None], *, share: float = 0.05, seed: int
) -> float | None:
    """What the ranking is worth: flips `share` of the labels and gives the part of them that is among the suspects."""
    flipped = np.random.default_rng(seed).choice(len(labels), max(1, round(share * len(labels))), replace=False)
    noisy = labels.copy()
    noisy[flipped] = 1 - noisy[flipped]
    found = suspect(features, noisy, groups, seed)
    return None if found is None else float(np.isin(flipped, found.suspects).mean())
