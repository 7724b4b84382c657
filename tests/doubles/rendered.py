"""A rendered product: discs, some of them scratched. Enough for a real training in seconds, and free of any licence."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 160


def disc(rng: np.random.Generator, *, scratched: bool) -> NDArray[np.uint8]:
    """A grey disc of about 110 px on a dark ground, with grain; a scratch is a dark line across it."""
    image = np.full((SIDE, SIDE), 60, np.uint8)
    centre = (SIDE // 2 + int(rng.integers(-6, 7)), SIDE // 2 + int(rng.integers(-6, 7)))
    cv2.circle(image, centre, 55, int(rng.integers(150, 190)), -1, cv2.LINE_AA)
    cv2.circle(image, centre, 18, 90, -1, cv2.LINE_AA)
    if scratched:
        angle = rng.uniform(0, np.pi)
        reach = np.array([np.cos(angle), np.sin(angle)]) * 50
        middle = np.array(centre) + rng.uniform(-15, 15, 2)
        start, end = (middle - reach).astype(int), (middle + reach).astype(int)
        cv2.line(image, tuple(map(int, start)), tuple(map(int, end)), 20, 5, cv2.LINE_AA)
    grain = rng.normal(0, 4, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def encode(image: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    written, data = cv2.imencode(suffix, image)
    assert written
    return data.tobytes()
