"""Our CNN as an entrant: trained as every other training, by way of a version folder, and judged from that folder.

train side ─> trainer.train ─> version folder ─> evaluation.judged ─> scores of the images to be examined
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import BadField
from inspectbus.networks.classifier import Classifier
from inspectbus.networks.trained import load_trained
from inspectbus.stores.datasets import Dataset, Item
from inspectbus.training import trainer
from inspectbus.training.calibration import Floats
from inspectbus.training.evaluation import judged
from inspectbus.training.plan import Plan, Progress


@dataclass(frozen=True)
class TrainedNetwork:
    """A version, ready to be examined."""

    folder: Path
    card: ModelCard
    fit_s: float
    """Seconds of the whole training, its features included."""

    def network(self) -> Classifier:
        return load_trained(self.folder, self.card.architecture, self.card.normalisation)

    def scores(self, items: Sequence[Item], tell: Callable[[int], None]) -> Floats:
        """(N,), 0 to 1, by the pixels, weights and calibration of the version. Raises BadField for no image."""
        logits = np.full(len(items), np.nan)
        for row, logit in judged(self.network(), self.card.preparation, items):
            if np.isnan(logit):
                raise BadField(f"{items[row].path} became unreadable while the comparison ran", field=items[row].name)
            logits[row] = logit
            tell(1)
        return scored(logits, self.card.calibration)


def train_network(
    plan: Plan,
    data: Dataset,
    folder: Path,
    *,
    on_progress: Callable[[Progress], None],
    cancel: threading.Event,
    cache_dir: Path,
    weights: Path | None,
) -> TrainedNetwork:
    """Trains on the train side of a split; what trainer.train raises."""
    began = time.perf_counter()
    card = trainer.train(
        plan, data, folder, on_progress=on_progress, cancel=cancel, cache_dir=cache_dir, weights=weights
    )
    return TrainedNetwork(folder, card, time.perf_counter() - began)
