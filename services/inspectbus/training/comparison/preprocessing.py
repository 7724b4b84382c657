"""What each step of preprocessing is worth: spoiled images, corrected or not, before models that learnt on clean ones.

examined images ─> spoiled ─> geometry, denoising, or neither ─┬─> the prepared size ─┬─> backbone ─> SVM, KNN
                                                               │                      └─> CNN
                                                               └─> mean grey and its spread ─> floor
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import Calibration
from inspectbus.domain.preparation import Preparation
from inspectbus.domain.recipe import Geometry
from inspectbus.imaging import Image
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.geometry import correct
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.classifier import Classifier
from inspectbus.stores.datasets import Item
from inspectbus.training.calibration import Floats
from inspectbus.training.comparison.contenders import LIGHT
from inspectbus.training.comparison.images import raw_light
from inspectbus.training.comparison.learning import Entrant, Inputs
from inspectbus.training.comparison.measures import figures
from inspectbus.training.comparison.spoiling import FAULTS, Fault, lens_of, spoil
from inspectbus.training.evaluation import labels_of, logits_of
from inspectbus.training.features import EXTRACT_BATCH, Cut

STEPS = ("none", "denoise", "geometry", "all")
CONDITIONS: Mapping[str, tuple[Fault, ...]] = {
    "clean": (),
    **{fault: (fault,) for fault in FAULTS},
    "all three": FAULTS,
}
DENOISE: Literal["median"] = "median"


@dataclass(frozen=True)
class Row:
    """One cell of the table."""

    condition: str
    steps: str
    model: str
    accuracy: float
    f1: float
    average_precision: float


@dataclass(frozen=True)
class Seen:
    """What is read of the treated images."""

    features: Inputs
    """(N, F)."""
    light: Inputs
    """(N, 2), as images.raw_light has it."""
    logits: Floats
    """(N,), the CNN's; zeros without one."""


@dataclass(frozen=True)
class Network:
    """The CNN as this table judges by it."""

    network: Classifier
    calibration: Calibration
    threshold: float


def preprocessing_table(
    items: Sequence[Item],
    cut: Cut,
    preparation: Preparation,
    entrants: Mapping[str, Entrant],
    floor: Entrant,
    cnn: Network | None,
    tell: Callable[[int], None],
) -> list[Row]:
    """`entrants` judge by the backbone's features, `floor` by light alone.

    `tell` hears of each pass over the images, and may raise.
    """
    if not entrants and cnn is None:
        return []
    labels = labels_of(items)
    rows: list[Row] = []
    for condition, faults in CONDITIONS.items():
        known: dict[tuple[bool, bool], dict[str, dict[str, float]]] = {}
        for steps in STEPS:
            # A lens that does not distort is corrected by leaving the picture alone.
            straighten = steps in ("geometry", "all") and "distortion" in faults
            denoise = steps in ("denoise", "all")
            if (straighten, denoise) not in known:
                form = preparation.model_copy(update={"denoise": DENOISE if denoise else preparation.denoise})
                seen = _seen(items, faults, straighten, form, cut, cnn)
                found = {
                    name: figures(labels, entrant.scores(seen.features), entrant.threshold)
                    for name, entrant in entrants.items()
                }
                found[LIGHT.name] = figures(labels, floor.scores(seen.light), floor.threshold)
                if cnn is not None:
                    found["cnn"] = figures(labels, scored(seen.logits, cnn.calibration), cnn.threshold)
                known[straighten, denoise] = found
            rows += [
                Row(condition, steps, model, each["accuracy"], each["f1"], each["average_precision"])
                for model, each in known[straighten, denoise].items()
            ]
            tell(1)
    return rows


def treated(picture: Image, faults: tuple[Fault, ...], straighten: bool, seed: int) -> Image:
    """The picture spoiled, then straightened as a station would, or not."""
    spoiled = spoil(picture, faults, seed)
    return correct(spoiled, Geometry(lens=lens_of(picture))) if straighten else spoiled


def light_of(picture: Image, form: Preparation) -> Inputs:
    """(2,), of the picture denoised as the form has it but else untouched: evened out, its light would be gone."""
    smallest, largest = 32, 2048
    height, width = np.clip(picture.shape[:2], smallest, largest)
    return raw_light(prepare(picture, Preparation(denoise=form.denoise, width=int(width), height=int(height))))


def _seen(
    items: Sequence[Item], faults: tuple[Fault, ...], straighten: bool, form: Preparation, cut: Cut, cnn: Network | None
) -> Seen:
    features, light, logits = [], [], []
    for start in range(0, len(items), EXTRACT_BATCH):
        pictures = [
            treated(decode(item.read()), faults, straighten, start + row)
            for row, item in enumerate(items[start : start + EXTRACT_BATCH])
        ]
        light += [light_of(picture, form) for picture in pictures]
        batch = np.stack([prepare(picture, form) for picture in pictures])
        with torch.inference_mode():
            features.append(cut.lower(torch.from_numpy(batch)).float().numpy())
        logits.append(np.zeros(len(batch)) if cnn is None else logits_of(cnn.network, batch))
    return Seen(np.concatenate(features), np.stack(light), np.concatenate(logits))
