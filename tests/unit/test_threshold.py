"""The threshold of a validation part, held against scikit-learn and against chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from inspectbus.training.calibration import Floats, Labels
from inspectbus.training.threshold import best_f1_threshold, stable_threshold


def sample(count: int, apart: float, seed: int = 0) -> tuple[Labels, Floats]:
    """Labels, and logits whose classes lie `apart` standard deviations from each other."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(np.int64)
    return labels, rng.normal(0, 1, count) + apart * labels


@pytest.mark.parametrize("seed", range(3))
def test_no_other_threshold_gives_a_better_f1(seed: int) -> None:
    labels, logits = sample(80, 1.5, seed)

    found = f1_score(labels, logits >= best_f1_threshold(labels, logits))

    assert all(found >= f1_score(labels, logits >= divide) for divide in logits)


def test_the_threshold_of_a_clean_sample_lies_in_the_middle_of_the_gap() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.7, 0.9])

    assert best_f1_threshold(labels, scores) == pytest.approx(0.5)
    assert 0.3 < stable_threshold(labels, scores, seed=0) < 0.8


def test_a_threshold_below_every_score_is_none_of_them() -> None:
    labels, scores = np.array([1, 0, 1, 1]), np.array([0.4, 0.5, 0.7, 0.9])

    assert best_f1_threshold(labels, scores) == pytest.approx(0.2)


def test_the_stable_threshold_moves_less_between_samples_than_the_best_one() -> None:
    samples = [sample(200, 1.5, seed) for seed in range(15)]

    best = np.std([best_f1_threshold(*one) for one in samples])
    stable = np.std([stable_threshold(*one, seed=0, rounds=40) for one in samples])

    assert stable < 0.9 * best


def test_the_same_seed_gives_the_same_threshold() -> None:
    labels, logits = sample(200, 1.0)

    assert stable_threshold(labels, logits, seed=4) == stable_threshold(labels, logits, seed=4)
