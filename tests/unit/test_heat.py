"""Heatmaps in the units of the score."""

from __future__ import annotations

import numpy as np
import pytest

from inspectbus.domain.calibration import scored
from inspectbus.domain.heat import calibrated_heat
from inspectbus.domain.model_version import Calibration
from inspectbus.imaging.overlay import overlaid


@pytest.mark.parametrize("calibration", [Calibration(), Calibration(temperature=0.016, bias=8.26)])
def test_a_maps_mean_is_what_the_score_is_made_of(calibration: Calibration) -> None:
    heatmap = np.random.default_rng(0).normal(-0.5, 0.1, (7, 7)).astype(np.float32)

    heat = calibrated_heat(heatmap, calibration)

    score = scored(np.array([heatmap.mean()]), calibration)[0]
    assert heat.dtype == np.float32
    assert 1 / (1 + np.exp(-heat.mean(dtype=np.float64))) == pytest.approx(score, abs=1e-3)
    assert np.argmax(heat) == np.argmax(heatmap)


def test_a_defect_that_a_small_logit_tells_is_painted_all_the_same() -> None:
    # given a version whose scores are made of logits that hardly differ, and an image it is sure of
    calibration = Calibration(temperature=0.016, bias=8.26)
    heatmap = np.full((7, 7), -0.2, np.float32)
    heatmap[3, 3] = -0.05
    picture = np.full((70, 70, 3), 128, np.uint8)

    painted = overlaid(picture, calibrated_heat(heatmap, calibration)).astype(int)

    change = np.abs(painted - 128).max(axis=2)
    assert change[35, 35] > 40
    assert change[5, 5] == 0
