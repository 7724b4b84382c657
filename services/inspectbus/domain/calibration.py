"""From a network's logit to the score that a threshold divides: the arithmetic of training.

logit ─> / temperature + bias ─> sigmoid ─> (straight lines between the knots, where the card has any) ─> score

Engines compute the same in float32, by networks/scorer.py, and tests hold one against the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.model_version import Calibration

Floats = NDArray[np.float64]


def scored(logits: NDArray[np.floating], calibration: Calibration) -> Floats:
    """(N,) scores in 0 to 1, in double precision; NaN stays NaN, so that whoever judges can refuse it."""
    shifted = np.asarray(logits, np.float64) / calibration.temperature + calibration.bias
    scores: Floats = 1 / (1 + np.exp(-np.clip(shifted, -700, 700)))
    if calibration.knots:
        at, becomes = np.array(calibration.knots).T
        scores = np.interp(scores, at, becomes)
    return scores
