"""What a version said of its validation images, kept in its folder, so that two versions can be compared for ever.

trainer ─ write ─> validation.csv ─ read ─┐
                       the other's ─ read ─┴> compare ─> is it worse, beyond what chance does?

The interval is a bootstrap's, 95 %, of the difference of two scores (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13). Drawn are groups, because images of one part tell less than images of as many parts, and
as many with a defect in every round as there are. Two versions that judged the very same images are compared image by
image: the same draws for both. Otherwise each is drawn for itself, which is wider.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inspectbus.errors import CorruptModel
from inspectbus.stores.datasets import Item
from inspectbus.training.calibration import Floats, Labels

VALIDATION_FILE = "validation.csv"
MAX_FILE_BYTES = 64 * 1024**2
"""Some four hundred thousand images."""
COLUMNS = ("name", "sha256", "group", "label", "score")
_LABELS = ("good", "defective")

ROUNDS = 2000
LEVEL = 0.95
FEWEST = 5
"""Groups with an image of each class below which drawing them again says too little."""
_CHUNK = 2_000_000
"""Weights held at once while drawing; many images need no more memory than few."""


@dataclass(frozen=True)
class Validation:
    """Every validation image, in the order of contents."""

    images: tuple[str, ...]
    """sha256 of each file's bytes."""
    groups: NDArray[np.int64]
    """(N,), a number for each group; an image of none is a group of its own."""
    labels: Labels
    """(N,), 1 for DEFECTIVE."""
    scores: Floats
    """(N,), 0 to 1."""

    @property
    def fewest(self) -> int:
        """Groups with an image of the class that fewer have."""
        return min(len(set(self.groups[self.labels == label])) for label in (0, 1))

    def same_images(self, other: Validation) -> bool:
        mine, others = (self.labels, self.groups), (other.labels, other.groups)
        return self.images == other.images and all(map(np.array_equal, mine, others))


@dataclass(frozen=True)
class Difference:
    """Of one score, with the interval of the difference."""

    score: str
    new: float
    old: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.score} {self.new:.3f} against {self.old:.3f} "
            f"(difference {self.new - self.old:+.3f}, 95 % interval {self.low:+.3f} to {self.high:+.3f})"
        )


@dataclass(frozen=True)
class Comparison:
    """`differences` is empty where there were too few images to tell."""

    differences: tuple[Difference, ...]
    paired: bool

    @property
    def worse(self) -> tuple[Difference, ...]:
        """Those whose interval lies below zero."""
        return tuple(each for each in self.differences if each.high < 0)


def write_validation(folder: Path, items: Sequence[tuple[Item, str]], labels: Labels, scores: Floats) -> None:
    """Writes validation.csv, of items with the sha256 of their bytes. The card must name it like every other file."""
    # A file name need not be text; it is here to be read by people.
    with (folder / VALIDATION_FILE).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        for (item, sha256), label, score in zip(items, labels, scores, strict=True):
            out.writerow((item.name, sha256, item.group or "", _LABELS[label], repr(float(score))))


def read_validation(data: bytes) -> Validation:
    """Raises CorruptModel where it is not what `write_validation` wrote."""
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
        found = sorted((row["sha256"], row["group"], _LABELS.index(row["label"]), float(row["score"])) for row in rows)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise CorruptModel(f"model file {VALIDATION_FILE} cannot be read: {error}", field=VALIDATION_FILE) from None
    scores = np.array([score for *_, score in found], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise CorruptModel(f"model file {VALIDATION_FILE} holds scores that are no numbers", field=VALIDATION_FILE)
    _, groups = np.unique([group or image for image, group, *_ in found], return_inverse=True)
    labels = np.array([label for _, _, label, _ in found], dtype=np.int64)
    return Validation(tuple(image for image, *_ in found), groups.astype(np.int64), labels, scores)


def compare(
    new: Validation, new_threshold: float, old: Validation, old_threshold: float, *, seed: int = 0, rounds: int = ROUNDS
) -> Comparison:
    """Average precision, and F1 at each version's own threshold: new less old, with the interval of each.

    Of versions that are equally good, about one in twenty is called worse: two intervals, each wrong on the low side in
    one of forty.
    """
    paired = new.same_images(old)
    if min(new.fewest, old.fewest) < FEWEST:
        return Comparison((), paired)
    rng = np.random.default_rng(seed)
    drawn: list[NDArray[np.float64]] = []
    for chunk in _chunks(rounds, max(len(new.labels), len(old.labels))):
        weights = draw(new, chunk, rng)
        others = weights if paired else draw(old, chunk, rng)
        drawn.append(_both(new, new_threshold, weights) - _both(old, old_threshold, others))
    low, high = np.quantile(np.concatenate(drawn, axis=1), ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=1)
    once = (np.ones((1, len(new.labels)), np.int64), np.ones((1, len(old.labels)), np.int64))
    measured = _both(new, new_threshold, once[0])[:, 0], _both(old, old_threshold, once[1])[:, 0]
    return Comparison(
        tuple(
            Difference(score, float(measured[0][row]), float(measured[1][row]), float(low[row]), float(high[row]))
            for row, score in enumerate(("average precision", "F1"))
        ),
        paired,
    )


def draw(judged: Validation, rounds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(rounds, N): how often each image was drawn, with as many groups with and without a defect as there are."""
    count = int(judged.groups.max()) + 1
    spoilt = np.zeros(count, bool)
    spoilt[judged.groups[judged.labels == 1]] = True
    drawn = np.zeros((rounds, count), np.int64)
    for groups in (np.flatnonzero(spoilt), np.flatnonzero(~spoilt)):
        if len(groups):
            drawn[:, groups] = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), rounds)
    return drawn[:, judged.groups]


def average_precisions(labels: Labels, scores: Floats, weights: NDArray[np.int64]) -> Floats:
    """(rounds,), of weights (rounds, N): scikit-learn's average_precision_score with each row as sample_weight."""
    order = np.argsort(-scores, kind="stable")
    # Images of one score are called defective together.
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits = np.cumsum(weights[:, order] * labels[order], axis=1)[:, ends]
    called = np.cumsum(weights[:, order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    found: Floats = (gained * hits / np.maximum(called, 1)).sum(axis=1) / hits[:, -1]
    return found


def f1_scores(labels: Labels, scores: Floats, threshold: float, weights: NDArray[np.int64]) -> Floats:
    """(rounds,), of weights (rounds, N): 2 TP / (2 TP + FP + FN)."""
    called = scores >= threshold
    found: Floats = 2 * (weights @ (called & (labels == 1))) / (weights @ (called.astype(np.int64) + labels))
    return found


def _both(judged: Validation, threshold: float, weights: NDArray[np.int64]) -> Floats:
    return np.stack(
        (
            average_precisions(judged.labels, judged.scores, weights),
            f1_scores(judged.labels, judged.scores, threshold, weights),
        )
    )


def _chunks(rounds: int, images: int) -> Iterator[int]:
    size = max(1, _CHUNK // images)
    while rounds > 0:
        yield min(size, rounds)
        rounds -= size
