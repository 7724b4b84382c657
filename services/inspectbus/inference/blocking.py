"""An engine that blocks, as one that calls back: each pass is computed on one of a few threads.

start(images, done) ─> queue ─> a thread that is free: infer ─> done(output)
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

from inspectbus.inference.engine import Done, Engine, Images, Output
from inspectbus.inference.priority import computes


class OnThreads:
    """`Starting`, in front of an engine that is not. What is queued is bounded by whoever starts: they give an engine
    no more than it may have in hand.
    """

    def __init__(self, engine: Engine, threads: int) -> None:
        """One more than passes that are computed: while it tells of one, the others compute."""
        self._engine = engine
        self._passes: SimpleQueue[tuple[Images, Done] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"inference-engine-{number}", daemon=True)
            for number in range(threads)
        ]

    def open(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self, until_s: float) -> None:
        """Waits until then, on the monotonic clock, for the threads to end; one that hangs in the engine ends after."""
        for _ in self._threads:
            self._passes.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def start(self, images: Images, done: Done) -> None:
        self._passes.put((images, done))

    def look(self) -> None:
        pass  # a thread always comes back with a word

    def _work(self) -> None:
        computes()
        while self._one():
            pass

    def _one(self) -> bool:
        """Its own frame, so that a thread which waits for the next pass keeps nothing of the last."""
        if (asked := self._passes.get()) is None:
            return False
        images, done = asked
        answer: Output | Exception
        try:
            answer = self._engine.infer(images)
        except Exception as error:  # an engine may raise anything; it concerns these images and never the next
            answer = error
        done(answer)
        return True
