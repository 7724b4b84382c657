"""Our CNN as an entrant: trained as every other training, by way of a version folder, and judged from that folder.

train side ─> trainer.train ─> version folder, kept ─┬─> network ─> scores of the images to be examined ─┐
                                                     └─> model.onnx ─> what it says of the same images ───┴> Deviation

A training takes most of a comparison's time, and the same plan, data, weights and code end in the same version; so one
that is done is kept, and a comparison that was interrupted, or is made again, takes it from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import EXPORT_FILE, ModelCard
from inspectbus.errors import BadField, CorruptModel, NotFound, StorageFull
from inspectbus.networks.classifier import Classifier
from inspectbus.networks.pretrained import load_pretrained
from inspectbus.networks.trained import load_trained
from inspectbus.stores.datasets import Dataset, Item
from inspectbus.stores.models import read_card
from inspectbus.training import trainer
from inspectbus.training.calibration import Floats
from inspectbus.training.evaluation import judged_by, logits_of
from inspectbus.training.export import Deviation, ScoreBatch, deviation, open_export, runtime_installed
from inspectbus.training.plan import Plan, Progress

log = structlog.get_logger(__name__)

KEPT = 24
"""Trainings; the oldest make room. Some 30 MB each."""
_VERSION, _TIMES = "version", "times.json"
_PART = ".part-"


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
        logits = self._judged_by(partial(logits_of, self.network()), items, tell)
        return scored(logits, self.card.calibration)

    def export_deviation(self, items: Sequence[Item], scores: Floats, tell: Callable[[int], None]) -> Deviation | None:
        """How far what the version's export says of the items lies from `scores`, and how many verdicts differ.

        None where the version has no export or ONNX Runtime is missing. Raises BadField as `scores` does.
        """
        if self.card.export is None or not runtime_installed():
            return None
        exported = self._judged_by(open_export(self.folder / EXPORT_FILE), items, tell)
        thresholds = self.card.thresholds
        return deviation(scores, exported, [thresholds.qualified_below, thresholds.defective_from])

    def _judged_by(self, judge: ScoreBatch, items: Sequence[Item], tell: Callable[[int], None]) -> Floats:
        found = np.full(len(items), np.nan)
        for row, value in judged_by(judge, self.card.preparation, items):
            if np.isnan(value):
                raise BadField(f"{items[row].path} became unreadable while the comparison ran", field=items[row].name)
            found[row] = value
            tell(1)
        return found


class Trainings:
    """Those that are done, below one folder by what they followed from. What is damaged counts as missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> TrainedNetwork | None:
        home = self._folder / key
        if not home.exists():
            return None
        try:
            card = read_card(home / _VERSION)
            for name, sha256 in card.files.items():
                if hashlib.sha256((home / _VERSION / name).read_bytes()).hexdigest() != sha256:
                    raise CorruptModel(f"{name} is not the file that was kept", field=name)
            fit_s = float(json.loads((home / _TIMES).read_bytes())["fit_s"])
            home.touch()
        except (OSError, ValueError, KeyError, NotFound, CorruptModel) as error:
            log.warning("a damaged training is made anew", folder=str(home), error=str(error))
            return None
        return TrainedNetwork(home / _VERSION, card, fit_s)

    def make(self, key: str, train: Callable[[Path], ModelCard]) -> TrainedNetwork:
        """Has `train` fill a folder, and keeps it under the key. What it raises leaves nothing behind.

        Raises StorageFull where the folder takes nothing.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._trim()
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise StorageFull(f"trainings cannot be kept in {self._folder}: {error.strerror}", field="state") from error
        with tempfile.TemporaryDirectory(prefix=_PART, dir=self._folder) as room:
            home = Path(room) / key
            home.mkdir()
            began = time.perf_counter()
            card = train(home / _VERSION)
            fit_s = time.perf_counter() - began
            (home / _TIMES).write_text(json.dumps({"fit_s": fit_s}))
            kept = self._folder / key
            shutil.rmtree(kept, ignore_errors=True)
            home.rename(kept)
        return TrainedNetwork(kept / _VERSION, card, fit_s)

    def _trim(self) -> None:
        """Leaves room for one more. The part folders of a killed process are as old as it, and go with the rest."""
        ages = [(_changed_s(home), home) for home in self._folder.iterdir()]
        for _, home in sorted(ages, reverse=True)[KEPT - 1 :]:
            shutil.rmtree(home, ignore_errors=True)


def _changed_s(home: Path) -> float:
    """0 for one that another process has just removed."""
    try:
        return home.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def train_network(
    plan: Plan,
    data: Dataset,
    trainings: Trainings,
    *,
    on_progress: Callable[[Progress], None],
    cancel: threading.Event,
    cache_dir: Path,
    weights: Path | None,
) -> TrainedNetwork:
    """Trains on the train side of a split, unless the very training is kept; what trainer.train raises."""
    words = trainer.identity(plan, load_pretrained(plan.backbone, weights), data)
    key = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:32]

    def train(folder: Path) -> ModelCard:
        return trainer.train(
            plan, data, folder, on_progress=on_progress, cancel=cancel, cache_dir=cache_dir, weights=weights
        )

    return trainings.find(key) or trainings.make(key, train)
