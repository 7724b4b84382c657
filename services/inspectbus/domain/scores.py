"""Scores: precision, recall, F1 and the plant's two risks. DEFECTIVE is positive; held parts are counted apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Confusion:
    """Counts of parts whose truth is known. Held parts got no prediction, so they enter no ratio."""

    true_positives: int = 0
    false_positives: int = 0
    true_negatives: int = 0
    false_negatives: int = 0
    held_defective: int = 0
    held_good: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.true_negatives + other.true_negatives,
            self.false_negatives + other.false_negatives,
            self.held_defective + other.held_defective,
            self.held_good + other.held_good,
        )

    @property
    def precision(self) -> float | None:
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def accuracy(self) -> float | None:
        decided = self.true_positives + self.false_positives + self.true_negatives + self.false_negatives
        return _ratio(self.true_positives + self.true_negatives, decided)

    @property
    def escape(self) -> float | None:
        """Share of the decided defective parts that were passed."""
        return _ratio(self.false_negatives, self.true_positives + self.false_negatives)

    @property
    def overkill(self) -> float | None:
        """Share of the decided good parts that were rejected."""
        return _ratio(self.false_positives, self.false_positives + self.true_negatives)


def _ratio(part: int, whole: int) -> float | None:
    """None where nothing was counted: 0/0 is not a score."""
    return part / whole if whole else None
