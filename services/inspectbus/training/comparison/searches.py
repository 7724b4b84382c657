"""A search: as many candidates for every contender, the best by validation AP, its threshold from validation too.

Learning ─> candidates, each fitted on train ─> validation AP ─> the best ─> calibration, threshold ─> Entrant
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score

from inspectbus.domain.calibration import scored
from inspectbus.errors import Internal
from inspectbus.training.calibration import calibrate
from inspectbus.training.comparison.contenders import Contender
from inspectbus.training.comparison.learning import Entrant, Judge, Learning, Settings
from inspectbus.training.threshold import stable_threshold


def candidates(contender: Contender, count: int, seed: int) -> list[Settings]:
    """The usual settings, then drawn ones; the same for the same seed, and a longer search begins with a shorter."""
    rng = np.random.default_rng([seed, *contender.name.encode()])
    return [contender.usual, *(contender.draw(rng) for _ in range(count - 1))]


def search(
    contender: Contender,
    learning: Learning,
    *,
    seed: int,
    count: int,
    tell: Callable[[], None] = lambda: None,
) -> Entrant:
    """The best of `count` candidates, ready to be examined. `tell` hears of each, and may raise to end it all."""
    best: tuple[float, Judge, Settings, float] | None = None
    for settings in candidates(contender, count, seed):
        began = time.perf_counter()
        judge = contender.fit(settings, learning.train.inputs, learning.train.labels, seed)
        fit_s = time.perf_counter() - began
        logits = judge(learning.validation.inputs)
        # A candidate that ran away to infinity has lost, whatever the others do.
        ap = -1.0
        if np.isfinite(logits).all():
            ap = float(average_precision_score(learning.validation.labels, logits))
        if best is None or ap > best[0]:
            best = (ap, judge, settings, fit_s)
        tell()
    if best is None or best[0] < 0:
        raise Internal(f"none of {count} candidates of {contender.name} gives scores that are numbers")
    return entered(best[1], learning, best[2], tried=count, fit_s=best[3], seed=seed)


def entered(judge: Judge, learning: Learning, settings: Settings, *, tried: int, fit_s: float, seed: int) -> Entrant:
    """A fitted judge with its calibration and threshold, both by validation alone."""
    labels = learning.validation.labels
    logits = judge(learning.validation.inputs)
    calibration = calibrate(labels, logits, seed)
    scores = scored(logits, calibration)
    return Entrant(
        judge=judge,
        calibration=calibration,
        threshold=stable_threshold(labels, scores, seed),
        settings=settings,
        validation_ap=float(average_precision_score(labels, logits)),
        tried=tried,
        fit_s=fit_s,
    )
