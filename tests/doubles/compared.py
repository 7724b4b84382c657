"""A whole comparison on rendered parts with a tiny network: what it is given, and what it made, in seconds."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from inspectbus.stores.datasets import Dataset, open_dataset
from inspectbus.training.comparison.conductor import Comparison, compare
from inspectbus.training.comparison.terms import Terms
from inspectbus.training.plan import Plan, Progress
from tests.doubles.parts import TINY_BACKBONE, write_marks, write_set, write_tiny_weights

BRIEF = {"candidates": 2, "rounds": 200, "widths": (1, 2, 8), "repeats": 1, "spoiled": 12}


class CompareBench:
    """A data set, weights and a cache on one disk, to compare on as often as a test wants."""

    def __init__(self, folder: Path, good: int = 48, defective: int = 32, *, marked: bool = False) -> None:
        self.folder = folder
        self.root = write_set(folder / "plates", good, defective)
        if marked:
            write_marks(self.root)
        self.data = open_dataset(str(self.root))
        self.weights = write_tiny_weights(folder / f"{TINY_BACKBONE}.safetensors")
        self.told: list[Progress] = []
        self.cancel = threading.Event()

    def terms(self, epochs: int = 3, **asked: Any) -> Terms:
        plan = Plan(data="plates", model="plates", backbone=TINY_BACKBONE, epochs=epochs, seed=0, input_size=64)
        return Terms.full(plan, **{**BRIEF, **asked})

    def compare(self, data: Dataset | None = None, **asked: Any) -> Comparison:
        return compare(
            self.terms(**asked),
            data or self.data,
            on_progress=self.told.append,
            cancel=self.cancel,
            cache_dir=self.folder / "cache",
            trainings_dir=self.folder / "trainings",
            weights=self.weights,
        )
