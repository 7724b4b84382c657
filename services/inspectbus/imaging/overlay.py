"""A heatmap laid over its image, for people: one way to paint it wherever one is shown.

heatmap (h, w), in logits ─> what speaks for DEFECTIVE ─> smoothed to the image's size ─> colours over the image
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectbus.imaging import Image

FULL_LOGITS = 4.0
"""What is painted in the strongest colour speaks at least so much for DEFECTIVE: enough to take a score from 0.12 to
0.88. Without it the hottest place of a sound part would glow as brightly as a crack."""
OPACITY = 0.6
"""Of the strongest colour: the part must be seen beneath."""
STRONGEST = 0.85
"""Place of the strongest colour on OpenCV's scale: a bright red; it ends in one too dark to see on dark parts."""


def overlaid(image: Image, heatmap: NDArray[np.float32]) -> Image:
    """An RGB uint8 image (H, W, 3) with its heatmap (h, w), from blue to red; the image itself is left as it is.

    What speaks for a sound part, or for nothing, is not painted.
    """
    height, width = image.shape[:2]
    strength = np.maximum(heatmap, 0) / max(float(heatmap.max()), FULL_LOGITS)
    heat = cv2.resize(strength.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.rint(255 * STRONGEST * heat).astype(np.uint8), cv2.COLORMAP_TURBO)
    cover = OPACITY * heat[:, :, None]
    over: Image = np.rint(image * (1 - cover) + cv2.cvtColor(colours, cv2.COLOR_BGR2RGB) * cover).astype(np.uint8)
    return over
