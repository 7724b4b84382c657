"""What a learner may see: a train part and a validation part. The held-out part has no place here, so none can use it.

inputs, labels of the train side ─> Learning ─> searches.search ─> Entrant, which knows its threshold already
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import Calibration
from inspectbus.training.calibration import Floats, Labels

Inputs = NDArray[np.float32]
Settings = Mapping[str, float | int | str]
Judge = Callable[[Inputs], Floats]
"""Logits (N,) float64 for inputs (N, D); higher is more defective."""


@dataclass(frozen=True)
class Part:
    """Images in the form a learner takes them."""

    inputs: Inputs
    """(N, D)."""
    labels: Labels
    """(N,), 1 for DEFECTIVE."""


@dataclass(frozen=True)
class Learning:
    """All that a learner is given."""

    train: Part
    """Weights, projections and scales come from here."""
    validation: Part
    """Settings, calibration and threshold come from here."""


@dataclass(frozen=True)
class Entrant:
    """A learner that is ready to be examined: nothing about it changes any more."""

    judge: Judge
    calibration: Calibration
    threshold: float
    settings: Settings
    """What the search chose."""
    validation_ap: float
    tried: int
    """Candidates the search compared."""
    fit_s: float
    """Seconds the fit of the chosen candidate took, its inputs at hand."""

    def scores(self, inputs: Inputs) -> Floats:
        """(N,), 0 to 1; at or above `threshold` is DEFECTIVE."""
        return scored(self.judge(inputs), self.calibration)
