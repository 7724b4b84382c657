"""The threshold of a validation part, held against scikit-learn and against chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from inspectbus.training.calibration import Floats, Labels
from inspectbus.training.threshold import CLEARANCE, best_f1_threshold, clear_of, stable_threshold


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


def test_the_best_threshold_never_lies_between_scores_that_rounding_could_swap() -> None:
    # given the best divide of all between two scores that are as good as one
    labels, scores = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.5, 0.5 + 1e-6, 0.7, 0.9])

    found = best_f1_threshold(labels, scores)

    assert np.abs(scores - found).min() >= CLEARANCE
    assert f1_score(labels, scores >= found) == max(f1_score(labels, scores >= one) for one in (0.35, 0.6))


@pytest.mark.parametrize("seed", range(5))
def test_no_score_lies_near_the_stable_threshold_even_where_scores_are_dense(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Five thousand scores and their twins, a millionth away.
    scores = np.repeat(rng.random(5000), 2) + np.tile([0, 1e-6], 5000)
    labels = (rng.random(10_000) < scores).astype(np.int64)

    found = stable_threshold(labels, scores, seed, rounds=20)

    assert np.abs(scores - found).min() >= CLEARANCE


def test_a_threshold_in_a_crowd_moves_to_the_nearest_gap() -> None:
    scores = np.array([0.2, 0.3, 0.3 + 1e-6, 0.3 + 2e-6, 0.5])

    assert clear_of(scores, 0.300001) == pytest.approx(0.25)
    assert clear_of(scores, 0.41) == 0.41


def test_scores_that_are_all_one_leave_the_threshold_where_it_is() -> None:
    assert clear_of(np.full(4, 0.5), 0.5) == 0.5
