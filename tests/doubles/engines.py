"""Engines for the batcher's tests: small, and held or broken exactly when a test says so."""

from __future__ import annotations

import threading

import numpy as np

from inspectbus.inference.engine import Images, Output

PATIENCE_S = 10.0
"""No test waits longer for anything."""


class BrightnessEngine:
    """Scores an image by its first pixel: level / 255. Remembers every batch it was given, as lists of levels.

    `hold` makes it stop inside `infer` until `release`; levels in `poison` make it raise.
    """

    name = "brightness"
    device = "here"
    streams = 1

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.poison: set[int] = set()
        self.entered = threading.Semaphore(0)
        """Released each time a batch is begun."""
        self._gate = threading.Event()
        self._gate.set()

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S), "the engine was not called"

    def infer(self, images: Images) -> Output:
        levels = [int(image[0, 0, 0]) for image in images]
        self.batches.append(levels)
        self.entered.release()
        assert self._gate.wait(PATIENCE_S), "the test never released the engine"
        if self.poison.intersection(levels):
            raise RuntimeError("this image cannot be computed")
        return Output(np.array([level / 255 for level in levels], np.float32))
