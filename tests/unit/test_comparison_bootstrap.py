"""Measures and their intervals agree with scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from inspectbus.training.calibration import Floats, Labels
from inspectbus.training.comparison import bootstrap
from inspectbus.training.comparison.bootstrap import Answers, draw, resamples
from inspectbus.training.comparison.measures import (
    FIXED_OVERKILL,
    calibration_error,
    figures,
    measure,
    reliability,
)


def parts(count: int = 120, seed: int = 0, *, tied: bool = False) -> tuple[Labels, Floats]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.35).astype(np.int64)
    scores = 1 / (1 + np.exp(-(rng.normal(0, 1, count) + 1.5 * (labels - 0.5))))
    return labels, np.round(scores, 1) if tied else scores


@pytest.mark.parametrize("tied", [False, True])
def test_measures_of_weighted_images_are_those_of_scikit_learn(tied: bool) -> None:
    labels, scores = parts(tied=tied)
    weights = np.random.default_rng(1).integers(0, 4, (5, len(labels))).astype(np.float64)

    found = measure(labels, scores, 0.5, weights)

    called = scores >= 0.5
    for row, weight in enumerate(weights):
        assert found["precision"][row] == pytest.approx(precision_score(labels, called, sample_weight=weight))
        assert found["recall"][row] == pytest.approx(recall_score(labels, called, sample_weight=weight))
        assert found["f1"][row] == pytest.approx(f1_score(labels, called, sample_weight=weight))
        assert found["accuracy"][row] == pytest.approx(accuracy_score(labels, called, sample_weight=weight))
        expected = average_precision_score(labels, scores, sample_weight=weight)
        assert found["average_precision"][row] == pytest.approx(expected)
        assert found["auroc"][row] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight))
        overkill, recall, _ = roc_curve(labels, scores, sample_weight=weight, drop_intermediate=False)
        escape = 1 - recall[overkill <= FIXED_OVERKILL].max()
        assert found["escape_at_overkill"][row] == pytest.approx(escape)


def test_what_is_never_called_defective_has_precision_zero_as_in_scikit_learn() -> None:
    labels, scores = parts()

    found = figures(labels, scores, 1.1)

    assert (found["precision"], found["recall"], found["f1"]) == (0, 0, 0)
    assert precision_score(labels, scores >= 1.1, zero_division=0) == 0


def test_calling_everything_defective_has_the_figures_one_expects() -> None:
    labels, _ = parts()
    share = labels.mean()

    found = figures(labels, np.ones(len(labels)), 0.5)

    assert found["precision"] == pytest.approx(share)
    assert found["average_precision"] == pytest.approx(share)
    assert found["recall"] == 1
    assert found["auroc"] == pytest.approx(0.5)
    assert found["escape_at_overkill"] == 1


def test_a_draw_without_a_class_gives_no_number_where_both_are_needed() -> None:
    labels, scores = np.array([0, 0, 1]), np.array([0.1, 0.6, 0.9])

    found = measure(labels, scores, 0.5, np.array([[1.0, 2.0, 0.0]]))

    assert np.isnan(found["recall"][0])
    assert np.isnan(found["auroc"][0])
    assert np.isnan(found["escape_at_overkill"][0])
    assert found["accuracy"][0] == pytest.approx(1 / 3)


def test_the_reliability_bins_are_those_of_scikit_learn() -> None:
    labels, scores = parts(400)

    found = reliability(labels, scores)

    shares, means = calibration_curve(labels, scores, n_bins=10)
    assert [score for score, _, _ in found] == pytest.approx(list(means))
    assert [share for _, share, _ in found] == pytest.approx(list(shares))
    assert sum(count for _, _, count in found) == 400
    assert calibration_error(labels, labels.astype(np.float64)) == 0


# --- intervals


def test_the_interval_of_accuracy_is_that_of_scipys_percentile_bootstrap() -> None:
    labels, scores = parts(300)

    found = draw(labels, {"a": [Answers(scores, 0.5)]}, [None] * 300, rounds=4000, seed=0).interval("a", "accuracy")

    right = ((scores >= 0.5) == labels).astype(np.float64)
    expected = scipy.stats.bootstrap((right,), np.mean, method="percentile", n_resamples=4000, rng=1)
    assert found.mean == pytest.approx(right.mean())
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.01)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.01)


def test_the_interval_of_a_paired_difference_is_that_of_scipys_paired_bootstrap() -> None:
    labels, good = parts(200)
    weak = parts(200, seed=7)[1]
    answers = {"good": [Answers(good, 0.5)], "weak": [Answers(weak, 0.5)]}

    found = draw(labels, answers, [None] * 200, rounds=2000, seed=0).difference("good", "weak", "average_precision")

    expected = scipy.stats.bootstrap(
        (labels, good, weak),
        lambda y, a, b: average_precision_score(y, a) - average_precision_score(y, b),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=1,
    )
    assert found.mean == pytest.approx(average_precision_score(labels, good) - average_precision_score(labels, weak))
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.03)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.03)


def test_a_model_does_not_differ_from_itself() -> None:
    labels, scores = parts()
    answers = {"a": [Answers(scores, 0.5)], "b": [Answers(scores, 0.5)]}

    difference = draw(labels, answers, [None] * len(labels), rounds=200, seed=0).difference("a", "b", "f1")

    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_images_of_one_group_are_drawn_together_and_widen_the_interval() -> None:
    labels, scores = parts(100)
    fivefold = np.repeat(labels, 5), np.repeat(scores, 5)
    groups = [str(row // 5) for row in range(500)]

    (weights,) = resamples(groups, 50, 0)
    assert (weights.reshape(50, 100, 5) == weights.reshape(50, 100, 5)[:, :, :1]).all()
    assert (weights.sum(axis=1) == 500).all()

    def width(groups: list[str] | list[None]) -> float:
        found = draw(fivefold[0], {"a": [Answers(fivefold[1], 0.5)]}, groups, rounds=1000, seed=0).interval("a", "f1")
        return found.high - found.low

    assert width(groups) == pytest.approx(np.sqrt(5) * width([None] * 500), rel=0.25)


def test_blocks_change_nothing_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resamples([None] * 30, 25, 4)))

    monkeypatch.setattr(bootstrap, "BLOCK", 90)
    blocks = list(resamples([None] * 30, 25, 4))

    assert [len(block) for block in blocks] == [3] * 8 + [1]
    assert np.array_equal(np.concatenate(blocks), whole)


def test_figures_of_several_seeds_are_averaged() -> None:
    labels, first = parts()
    second = parts(seed=3)[1]
    answers = {"a": [Answers(first, 0.5), Answers(second, 0.3)]}

    found = draw(labels, answers, [None] * len(labels), rounds=100, seed=0).interval("a", "f1")

    assert found.mean == pytest.approx((f1_score(labels, first >= 0.5) + f1_score(labels, second >= 0.3)) / 2)
    assert found.low <= found.mean <= found.high
