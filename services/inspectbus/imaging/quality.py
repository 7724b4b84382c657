"""Quality: is this picture fit to be judged? Measured after geometry and before denoising.

corrected picture ── measure ──> QualityReport ── violation ──> None, or the HOLD with measure, value and limit
reports of known usable pictures ── limits_from ──> QualityLimits for their recipe
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectbus.api.v1.decision_pb2 import HOLD_REASON_UNUSABLE_IMAGE, Hold
from inspectbus.api.v1.prepared_frame_pb2 import QualityReport
from inspectbus.domain.recipe import QualityLimits
from inspectbus.imaging import Image

SHARPNESS_SIDE = 256
"""Pixels of the longer side at which sharpness is measured, so that cameras of all sizes share a scale."""
GLARE_LEVEL = 250
"""Grey level from which a pixel tells nothing any more."""

OUTLIERS = 0.001
"""Share of usable pictures at each end that limits_from does not let decide."""
LEAST_SHARPNESS = 3.0
"""No limit of sharpness below this: rounding to 8 bits alone leaves up to 2.7 to a picture without any detail."""
LEAST_NOISE = 4.0
"""Grey levels. No limit of noise below this: so little hides no defect."""

_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def measure(image: Image) -> QualityReport:
    """The four measures as the contract defines them, on the luminance of an RGB picture."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return QualityReport(
        sharpness=_sharpness(grey),
        brightness=float(grey.mean()),
        glare=float(np.count_nonzero(grey >= GLARE_LEVEL)) / grey.size,
        noise=_noise(grey),
    )


def _sharpness(grey: Image) -> float:
    height, width = grey.shape
    scale = SHARPNESS_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return float(cv2.Laplacian(scaled, cv2.CV_32F).var(dtype=np.float64))


def _noise(grey: Image) -> float:
    """J. Immerkaer, Fast Noise Variance Estimation, 1996: the mean answer of a mask that is blind to flat and edge."""
    height, width = grey.shape
    if min(height, width) < 3:
        return 0.0
    answer: NDArray[np.int16] = cv2.filter2D(grey, cv2.CV_16S, _IMMERKAER)[1:-1, 1:-1]
    return math.sqrt(math.pi / 2) * float(np.abs(answer).mean(dtype=np.float64)) / 6


def violation(report: QualityReport, limits: QualityLimits) -> Hold | None:
    """The first limit the picture breaks, or None.

    Exposure comes before noise and sharpness: a black picture is unsharp too, and what must be mended is the lamp.
    """
    for measure_name, below, above, low_words, high_words in (
        ("brightness", limits.min_brightness, limits.max_brightness, "too dark", "too bright"),
        ("glare", None, limits.max_glare, "", "burnt out"),
        ("noise", None, limits.max_noise, "", "too noisy"),
        ("sharpness", limits.min_sharpness, None, "too blurred", ""),
    ):
        value = float(getattr(report, measure_name))
        if below is not None and value < below:
            return _hold(measure_name, value, below, f"{low_words}: {measure_name} {value:.3g} is below {below:.3g}")
        if above is not None and value > above:
            return _hold(measure_name, value, above, f"{high_words}: {measure_name} {value:.3g} is above {above:.3g}")
    return None


def limits_from(reports: Iterable[QualityReport]) -> QualityLimits:
    """Limits for a product, from the reports of pictures known to be usable (a training set's, say).

    Each limit lies half way between what all but `OUTLIERS` of these pictures show and the end of the measure's scale;
    noise has no end, so twice what they show. Where even usable pictures show next to no detail, sharpness cannot tell
    blur from a plain surface and gets no limit. Without any report: the defaults.
    """
    rows = np.array([(each.sharpness, each.brightness, each.glare, each.noise) for each in reports])
    if not len(rows):
        return QualityLimits()
    sharpness, darkest, _, _ = np.quantile(rows, OUTLIERS, axis=0)
    _, brightest, glare, noise = np.quantile(rows, 1 - OUTLIERS, axis=0)
    return QualityLimits(
        min_sharpness=round(max(sharpness / 2, LEAST_SHARPNESS), 2) if sharpness > LEAST_SHARPNESS else None,
        min_brightness=round(darkest / 2, 2),
        max_brightness=round((brightest + 255) / 2, 2),
        max_glare=round((glare + 1) / 2, 3),
        max_noise=round(max(noise * 2, LEAST_NOISE), 2),
    )


def _hold(measure_name: str, value: float, limit: float, words: str) -> Hold:
    return Hold(
        reason=HOLD_REASON_UNUSABLE_IMAGE,
        detail=f"The image is {words}.",
        measure=measure_name,
        value=value,
        limit=limit,
    )
