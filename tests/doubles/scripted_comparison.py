"""A comparison that goes as the test says: step by step, and then well, wrong or not at all."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inspectbus.training.comparison.terms import Terms
from inspectbus.training.plan import Cancelled, Progress
from inspectbus.training.worker import OnProgress
from tests.doubles.scripted_training import PATIENCE_S

PAGE = "<p>Every model beside the CNN.</p>"
RECORD: Mapping[str, Any] = {
    "data": {"sha256": "0f" * 32},
    "models": {"cnn": {"f1": {"mean": 0.875}, "average_precision": {"mean": 0.9375}}},
    "raw_models": {"svm": {"f1": {"mean": 0.5}, "average_precision": {"mean": 0.75}}},
}


class ScriptedComparison:
    """Takes the comparison's place in `open_service`. Heeds its cancel event while it waits for the next word."""

    def __init__(self) -> None:
        self.begun: queue.Queue[Terms] = queue.Queue()
        self.stopped: queue.Queue[Terms] = queue.Queue()
        self._words: queue.Queue[Progress | Exception | None] = queue.Queue()

    def tell(self, stage: str, done: int, total: int) -> None:
        self._words.put(Progress(stage=stage, done=done, total=total))

    def succeed(self) -> None:
        self._words.put(None)

    def fail(self, error: Exception) -> None:
        self._words.put(error)

    def __call__(
        self, terms: Terms, out_dir: Path, on_progress: OnProgress, cancel: threading.Event
    ) -> Mapping[str, Any]:
        self.begun.put(terms)
        while (word := self._next_word(terms, cancel)) is not None:
            if isinstance(word, Exception):
                raise word
            on_progress(word)
        (out_dir / "report.html").write_text(PAGE)
        (out_dir / "report.json").write_text(json.dumps(RECORD))
        (out_dir / "scores.png").write_bytes(np.random.default_rng(0).bytes(600_000))
        return RECORD

    def _next_word(self, terms: Terms, cancel: threading.Event) -> Progress | Exception | None:
        for _ in range(int(PATIENCE_S / 0.05)):
            if cancel.is_set():
                self.stopped.put(terms)
                raise Cancelled
            try:
                return self._words.get(timeout=0.05)
            except queue.Empty:
                continue
        raise TimeoutError("the test never said how this comparison goes on")
