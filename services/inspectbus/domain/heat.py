"""A heatmap in the units of the score: what each place says once the version is calibrated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.model_version import Calibration


def calibrated_heat(heatmap: NDArray[np.float32], calibration: Calibration) -> NDArray[np.float32]:
    """(h, w) in the network's logits, as (h, w) in calibrated ones: above 0 speaks for DEFECTIVE.

    A map's mean is its image's logit but for the head's own bias, and calibration is a straight line before its knots.
    A network that was trained for a moment says little in its own logits, and its version much with them: painted as
    they are, nothing would be seen.
    """
    heat: NDArray[np.float32] = (heatmap / calibration.temperature + calibration.bias).astype(np.float32)
    return heat
