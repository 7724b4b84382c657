"""Does the heatmap fall on the defect? Held against masks that people drew, because a model can be right for a wrong
reason.

heatmap, mask of each defective image ─┬─> is its hottest place in the mask? ──────> share of hits  ┐ with intervals,
                                       └─> how much of its heat lies in the mask? ─> share of heat ─┘ beside chance

A heatmap that knows nothing of the defect gets what its mask covers of the image: that is chance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectbus.errors import BadField

TOLERANCE = 0.03
"""Of the mask's longer side: how far beside the mask still hits. The pointing game's 15 pixels on images of 500."""
CONFIDENCE = 0.95
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Mean:
    """Over images, with its 95 % interval: percentiles of the means of as many images drawn again."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Of heatmaps with masks; all figures lie in 0 to 1."""

    images: int
    hits: Mean
    """Share of images whose hottest place lies in the mask, widened by the tolerance: the pointing game of Zhang et
    al., Top-Down Neural Attention by Excitation Backprop, ECCV 2016, section 4.1."""
    hits_by_chance: float
    """Mean share of the image that a widened mask covers."""
    heat: Mean
    """Share of the positive heat that lies in the mask: the energy-based pointing game of Wang et al., Score-CAM, CVPR
    workshops 2020, section 4.2, with masks for boxes. 0 for an image without any positive heat."""
    heat_by_chance: float
    """Mean share of the image that a mask covers."""


def agreement(
    pairs: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]], *, seed: int = 0, tolerance: float = TOLERANCE
) -> Agreement:
    """From heatmap (h, w) and mask (H, W), true on the defect, of each defective image; both show the same field.

    Heatmaps are interpolated to the size of their masks. Of several hottest places, as many count as are inside.
    Raises BadField naming the pair, from 0, that is no heatmap and mask, and when there are none.
    """
    rows = [_one(number, heatmap, mask, tolerance) for number, (heatmap, mask) in enumerate(pairs)]
    if not rows:
        raise BadField("there are no defective images with a mask", field="masks")
    hits, widened, heat, covered = np.array(rows, np.float64).T
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(rows), (BOOTSTRAPS, len(rows)))
    return Agreement(
        images=len(rows),
        hits=_mean(hits, drawn),
        hits_by_chance=float(widened.mean()),
        heat=_mean(heat, drawn),
        heat_by_chance=float(covered.mean()),
    )


def _one(
    number: int, heatmap: NDArray[np.float32], mask: NDArray[np.bool_], tolerance: float
) -> tuple[float, float, float, float]:
    """Hit, share of the widened mask, heat inside, share of the mask."""
    if heatmap.ndim != 2 or mask.ndim != 2 or mask.dtype != np.bool_:
        raise BadField(
            f"pair {number} is a heatmap of shape {heatmap.shape} and a mask of shape {mask.shape} and {mask.dtype}; "
            "both have two dimensions, and a mask is bool",
            field=f"pairs[{number}]",
        )
    if not mask.any():
        raise BadField(f"the mask of pair {number} marks nothing", field=f"pairs[{number}]")
    if not np.isfinite(heatmap).all():
        raise BadField(f"the heatmap of pair {number} holds values that are no numbers", field=f"pairs[{number}]")
    height, width = mask.shape
    heat = cv2.resize(heatmap.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    reach = round(tolerance * max(height, width))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    widened = cv2.dilate(mask.astype(np.uint8), disc).astype(bool)
    positive = np.maximum(heat, 0).astype(np.float64)
    total = positive.sum()
    inside = float(positive[mask].sum() / total) if total > 0 else 0.0
    return float(widened[heat == heat.max()].mean()), float(widened.mean()), inside, float(mask.mean())


def _mean(values: NDArray[np.float64], drawn: NDArray[np.int64]) -> Mean:
    edge = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[drawn].mean(axis=1), [edge, 100 - edge])
    return Mean(float(values.mean()), float(low), float(high))
