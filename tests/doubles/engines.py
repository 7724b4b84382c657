"""Engines for the batcher's tests: small, and held or broken exactly when a test says so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from inspectbus.inference.engine import Done, Images, Output

PATIENCE_S = 10.0
"""No test waits longer for anything."""


class BrightnessEngine:
    """Scores an image by its first pixel: level / 255. Remembers every batch it was given, as lists of levels.

    `hold` makes it stop inside `infer` until `release`, and only then it reads the pixels of its scores; levels in
    `poison` make it raise.
    """

    name = "brightness"
    device = "here"
    best_batch: int | None = None

    def __init__(self, streams: int = 1) -> None:
        self.streams = streams
        self.batches: list[list[int]] = []
        self.at_once = 0
        """The most batches it was ever given side by side."""
        self._inside = 0
        self._counting = threading.Lock()
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
        levels = images[:, 0, 0, 0].tolist()
        with self._counting:
            self.batches.append(levels)
            self._inside += 1
            self.at_once = max(self.at_once, self._inside)
        try:
            self.entered.release()
            assert self._gate.wait(PATIENCE_S), "the test never released the engine"
        finally:
            with self._counting:
                self._inside -= 1
        if self.poison.intersection(levels):
            raise RuntimeError("this image cannot be computed")
        return Output((images[:, 0, 0, 0] / 255).astype(np.float32))


class CallingEngine(BrightnessEngine):
    """One that calls back when the test says so: `tell` ends the pass that was started first, on the thread that calls
    it. With `inline` each ends before `start` returns.
    """

    def __init__(self, streams: int = 1, *, inline: bool = False) -> None:
        super().__init__(streams)
        self.inline = inline
        self.started: list[tuple[Images, Done]] = []
        self.threads: list[int] = []
        """Who started each."""
        self.looked = threading.Semaphore(0)

    def start(self, images: Images, done: Done) -> None:
        self.threads.append(threading.get_ident())
        self.started.append((images, done))
        if self.inline:
            self.tell()

    def tell(self) -> None:
        images, done = self.started.pop(0)
        try:
            answer: Output | Exception = self.infer(images)
        except RuntimeError as error:
            answer = error
        done(answer)

    def look(self) -> None:
        self.looked.release()


class PoolEngine(CallingEngine):
    """One that calls back from as many threads as it has streams, and at once of each image that `fails`."""

    def __init__(self, streams: int = 1, fails: frozenset[int] = frozenset()) -> None:
        super().__init__(streams)
        self._fails = fails
        self._pool = ThreadPoolExecutor(streams, "engine")

    def start(self, images: Images, done: Done) -> None:
        if self._fails.intersection(images[:, 0, 0, 0].tolist()):
            done(RuntimeError("this image cannot be begun"))
        else:
            self.started.append((images, done))
            self._pool.submit(self.tell)

    def close(self) -> None:
        self._pool.shutdown()
