"""A training that goes as the test says: epoch by epoch, and then well, wrong or not at all. Its versions are real."""

from __future__ import annotations

import queue
import shutil
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from inspectbus.training.plan import Cancelled, Plan, Progress
from inspectbus.training.worker import OnProgress
from tests.doubles.tiny_model import tiny_version

PATIENCE_S = 30.0
"""A test that forgets to say how it goes on fails instead of hanging."""


class ScriptedTraining:
    """Takes the trainer's place in `open_service`. Heeds its cancel event while it waits for the next word."""

    def __init__(self) -> None:
        self.begun: queue.Queue[Plan] = queue.Queue()
        self.stopped: queue.Queue[Plan] = queue.Queue()
        self.out_dir: Path | None = None
        self.checkpoint_dir: Path | None = None
        self._words: queue.Queue[str | Exception | Path] = queue.Queue()
        self._made = 0

    def epoch(self) -> None:
        """The next epoch is done and reported."""
        self._words.put("epoch")

    def succeed(self) -> None:
        """The training ends with a version that differs from all before."""
        self._words.put("succeed")

    def give(self, folder: Path) -> None:
        """The training ends with this folder, whatever is in it."""
        self._words.put(folder)

    def fail(self, error: Exception) -> None:
        self._words.put(error)

    def __call__(
        self, plan: Plan, out_dir: Path, checkpoint_dir: Path, on_progress: OnProgress, cancel: threading.Event
    ) -> None:
        self.checkpoint_dir = checkpoint_dir
        self.out_dir = out_dir
        self.begun.put(plan)
        on_progress(Progress(stage="reading", done=1, total=1))
        epochs = 0
        while True:
            word = self._next_word(plan, cancel)
            if word == "epoch":
                epochs += 1
                figures = {"epoch": float(epochs), "train_loss": 1 / epochs, "validation_ap": 1 - 1 / (epochs + 1)}
                on_progress(Progress(stage="training", done=epochs, total=plan.epochs, figures=figures))
            elif isinstance(word, Exception):
                raise word
            elif isinstance(word, Path):
                shutil.copytree(word, out_dir, dirs_exist_ok=True)
                return
            else:
                self._made += 1
                with TemporaryDirectory() as folder:
                    shutil.copytree(
                        tiny_version(Path(folder), plan.model, seed=self._made), out_dir, dirs_exist_ok=True
                    )
                return

    def _next_word(self, plan: Plan, cancel: threading.Event) -> str | Exception | Path:
        for _ in range(int(PATIENCE_S / 0.05)):
            if cancel.is_set():
                self.stopped.put(plan)
                raise Cancelled
            try:
                return self._words.get(timeout=0.05)
            except queue.Empty:
                continue
        raise TimeoutError("the test never said how this training goes on")
