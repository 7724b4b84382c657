"""What a model version said of its validation part, kept in its folder: by that, thresholds can be chosen again.

trainer ─> validation.csv (name,label,score), hashed by the card ─> the threshold advisor
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspectbus.errors import CorruptModel, NotPossibleNow
from inspectbus.training.calibration import Floats, Labels

VALIDATION_FILE = "validation.csv"
_HEADER = ["name", "label", "score"]
_LABELS = ("good", "defective")


@dataclass(frozen=True)
class Validation:
    """One of each per image."""

    names: tuple[str, ...]
    labels: Labels
    """(N,) 1 for defective, 0 for good."""
    scores: Floats
    """(N,) calibrated, 0 to 1."""


def write_validation(folder: Path, names: Sequence[str], labels: Labels, scores: Floats) -> None:
    """Writes validation.csv, UTF-8; a score comes back as the very number it was."""
    # A file name need not be text; it is here to be read by people.
    with (folder / VALIDATION_FILE).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_HEADER)
        for name, label, score in zip(names, labels.tolist(), scores.tolist(), strict=True):
            rows.writerow((name, _LABELS[label], repr(score)))


def read_validation(folder: Path) -> Validation:
    """Raises NotPossibleNow for a version made before these scores were kept, CorruptModel for what is no such file."""
    names, labels, scores = [], [], []
    try:
        with (folder / VALIDATION_FILE).open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            if next(rows, None) != _HEADER:
                raise ValueError(f"does not begin with {','.join(_HEADER)}")
            for name, label, score in rows:
                labels.append(_LABELS.index(label))
                scores.append(float(score))
                names.append(name)
    except FileNotFoundError:
        raise NotPossibleNow(
            f"model version {folder.name} was made before validation scores were kept; train it again",
            field="version",
        ) from None
    except (ValueError, csv.Error) as error:
        fault = f"{VALIDATION_FILE}: after {len(names)} images: {error}"
        raise CorruptModel(fault, field=VALIDATION_FILE) from None
    return Validation(tuple(names), np.array(labels, np.int64), np.array(scores, np.float64))
