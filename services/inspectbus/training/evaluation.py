"""How good a model version is on labelled images, with the pixels, weights, calibration and threshold of the line.

version folder ─> network, export ─┐
items ─> decoded, prepared ────────┴> scores ─> Evaluation
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import EXPORT_FILE, ModelCard
from inspectbus.domain.preparation import Preparation
from inspectbus.domain.scores import Confusion
from inspectbus.domain.thresholds import Thresholds
from inspectbus.errors import BadField
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.classifier import Classifier
from inspectbus.networks.trained import load_trained
from inspectbus.stores.datasets import Item, Label
from inspectbus.stores.models import read_card
from inspectbus.training.calibration import Floats, Labels, expected_calibration_error
from inspectbus.training.export import Deviation, ScoreBatch, deviation, open_export, runtime_installed
from inspectbus.training.plan import Cancelled

log = structlog.get_logger(__name__)

BATCH = 8


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model version on one set of items. DEFECTIVE is positive."""

    model: str
    version: str
    thresholds: Thresholds
    confusion: Confusion
    average_precision: float | None
    """None where only one class was seen."""
    expected_calibration_error: float
    unreadable: int
    """Images that could not be judged; they enter no score."""
    export: Deviation | None
    """What the version's ONNX export says of the same images; None where it has none, or ONNX Runtime is missing."""

    @property
    def scores(self) -> dict[str, float | None]:
        """By name; None where nothing was counted that the score divides by."""
        found = self.confusion
        return {
            "precision": found.precision,
            "recall": found.recall,
            "f1": found.f1,
            "accuracy": found.accuracy,
            "escape": found.escape,
            "overkill": found.overkill,
            "average_precision": self.average_precision,
            "expected_calibration_error": self.expected_calibration_error,
        }


def evaluate(
    folder: Path,
    items: Sequence[Item],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancel: threading.Event | None = None,
) -> Evaluation:
    """Judges every item with the version in `folder`. `on_progress` hears images done and to do.

    Raises BadField when an item has no label or none can be read, what read_card raises for a damaged version, and
    Cancelled soon after `cancel` is set.
    """
    labels = labels_of(items)
    card = read_card(folder)
    network = load_trained(folder, card.architecture, card.normalisation)
    exported = open_export(folder / EXPORT_FILE) if card.export is not None and runtime_installed() else None
    theirs: list[Floats] = []

    def both(images: NDArray[np.uint8]) -> Floats:
        if exported is not None:
            theirs.append(exported(images))
        return logits_of(network, images)

    logits = np.full(len(items), np.nan)
    for done, (row, logit) in enumerate(judged_by(both, card.preparation, items), 1):
        logits[row] = logit
        on_progress(done, len(items))
        if cancel is not None and cancel.is_set():
            raise Cancelled
    readable = ~np.isnan(logits)
    if not readable.any():
        raise BadField(f"none of {len(items)} images can be read", field="data")
    scores = scored(logits[readable], card.calibration)
    divides = [card.thresholds.qualified_below, card.thresholds.defective_from]
    proof = deviation(scores, np.concatenate(theirs), divides) if theirs else None
    return _evaluation(card, labels[readable], scores, int((~readable).sum()), proof)


def judged(network: Classifier, preparation: Preparation, items: Sequence[Item]) -> Iterator[tuple[int, float]]:
    """(row, logit) of each item, in order; the logit is NaN where the image cannot be read."""
    return judged_by(partial(logits_of, network), preparation, items)


def judged_by(judge: ScoreBatch, preparation: Preparation, items: Sequence[Item]) -> Iterator[tuple[int, float]]:
    """(row, score) of each item, in order, whatever `judge` calls a score; NaN where the image cannot be read."""
    for start in range(0, len(items), BATCH):
        pictures = [_picture(item, preparation) for item in items[start : start + BATCH]]
        readable = [picture for picture in pictures if picture is not None]
        scores = iter(judge(np.stack(readable)) if readable else ())
        for row, picture in enumerate(pictures, start):
            yield row, float("nan") if picture is None else float(next(scores))


def logits_of(network: Classifier, images: NDArray[np.uint8]) -> Floats:
    """(N,), from prepared images (N, H, W, 3)."""
    with torch.inference_mode():
        found: Floats = network(torch.from_numpy(images)).double().numpy()
        return found


def labels_of(items: Sequence[Item]) -> Labels:
    """1 for DEFECTIVE, 0 for GOOD. Raises BadField naming the first item that has no label."""
    if nameless := next((item for item in items if item.label is None), None):
        raise BadField(f"{nameless.path} has no label", field=nameless.name)
    return np.array([item.label is Label.DEFECTIVE for item in items], dtype=np.int64)


def confusion_of(labels: Labels, scores: Floats, thresholds: Thresholds) -> Confusion:
    """Counts as the line would judge: what lies between the thresholds is held."""
    called, passed = scores >= thresholds.defective_from, scores < thresholds.qualified_below
    held = ~called & ~passed
    return Confusion(
        true_positives=int((called & (labels == 1)).sum()),
        false_positives=int((called & (labels == 0)).sum()),
        true_negatives=int((passed & (labels == 0)).sum()),
        false_negatives=int((passed & (labels == 1)).sum()),
        held_defective=int((held & (labels == 1)).sum()),
        held_good=int((held & (labels == 0)).sum()),
    )


def _evaluation(
    card: ModelCard, labels: Labels, scores: Floats, unreadable: int, export: Deviation | None
) -> Evaluation:
    both = 0 < labels.sum() < len(labels)
    return Evaluation(
        model=card.name,
        version=card.version,
        thresholds=card.thresholds,
        confusion=confusion_of(labels, scores, card.thresholds),
        average_precision=float(average_precision_score(labels, scores)) if both else None,
        expected_calibration_error=expected_calibration_error(labels, scores),
        unreadable=unreadable,
        export=export,
    )


def _picture(item: Item, preparation: Preparation) -> NDArray[np.uint8] | None:
    try:
        return prepare(decode(item.read()), preparation)
    except BadField as error:
        log.warning("an image cannot be judged", file=str(item.path), error=error.message)
        return None
