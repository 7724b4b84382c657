"""Subsets of the examined images, as in the literature's tables by kind of defect.

kinds of defect, each with all good images | kinds of part | groups | stratified folds ─> precision, recall, F1 of each
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from inspectbus.stores.datasets import Item
from inspectbus.training.calibration import Labels

FEWEST, MOST = 2, 12
"""Subsets that still make a figure."""
FOLDS = 5


@dataclass(frozen=True)
class Subsets:
    """Rows of the examined images, by subset."""

    words: str
    """What the subsets are."""
    rows: dict[str, NDArray[np.int64]]


def find_subsets(items: Sequence[Item], labels: Labels, seed: int = 0) -> Subsets:
    """The finest meaningful division: each subset has images of both classes."""
    kinds_of_good = {item.kind for item, label in zip(items, labels, strict=True) if not label and item.kind}
    kinds_of_bad = {item.kind for item, label in zip(items, labels, strict=True) if label and item.kind}
    good = labels == 0
    if FEWEST <= len(kinds_of_bad - kinds_of_good) <= MOST:
        defects = sorted(kinds_of_bad - kinds_of_good)
        rows = {kind: np.flatnonzero(_has(items, lambda item: item.kind, kind) | good) for kind in defects}
        return Subsets("kinds of defect, each with all good images", rows)
    for words, value in (("kinds of part", _kind), ("groups", _group)):
        names = sorted({name for item in items if (name := value(item))})
        if FEWEST <= len(names) <= MOST:
            rows = {name: np.flatnonzero(_has(items, value, name)) for name in names}
            if all(0 < labels[found].sum() < len(found) for found in rows.values()):
                return Subsets(words, rows)
    folds = min(FOLDS, int(labels.sum()), int(good.sum()))
    if folds < FEWEST:
        return Subsets("all images", {"all": np.arange(len(items))})
    cutter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return Subsets(
        f"{folds} stratified folds of the held-out part",
        {f"fold {number}": found for number, (_, found) in enumerate(cutter.split(labels, labels), 1)},
    )


def _kind(item: Item) -> str | None:
    return item.kind


def _group(item: Item) -> str | None:
    return item.group


def _has(items: Sequence[Item], value: Callable[[Item], str | None], name: str) -> NDArray[np.bool_]:
    return np.array([value(item) == name for item in items])
