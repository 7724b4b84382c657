"""Calibration: what a score promises, held against drawn samples, scikit-learn and scipy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import Calibration
from inspectbus.errors import BadField
from inspectbus.training.calibration import (
    KNOTS,
    Floats,
    Labels,
    calibrate,
    exact_interval,
    expected_calibration_error,
    reliability,
)


def overstating(count: int, seed: int = 0) -> tuple[Labels, Floats]:
    """Labels, and logits of two Gaussian classes, which Platt's line mends wholly, three times too sure."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(np.int64)
    return labels, 3 * (rng.normal(0, 1, count) + 1.5 * labels) + 2


def stepped(count: int, seed: int = 0) -> tuple[Labels, Floats]:
    """Logits that know three sorts of parts only: no straight line through log odds says their shares."""
    rng = np.random.default_rng(seed)
    logits = rng.uniform(-6, 6, count)
    share = np.select([logits < -1, logits < 4], [0.05, 0.5], 0.95)
    return (rng.random(count) < share).astype(np.int64), logits


# --- the map


def test_knots_are_straight_lines_on_top_of_the_sigmoid_and_any_engines_arithmetic() -> None:
    calibration = Calibration(temperature=2, bias=0.5, knots=((0, 0.01), (0.25, 0.1), (0.7, 0.8), (1, 0.99)))
    logits = np.linspace(-12, 12, 201)

    found = scored(logits, calibration)

    x = 1 / (1 + np.exp(-(logits / 2 + 0.5)))
    sum_of_ramps = np.full_like(x, calibration.knots[0][1])
    for (at, low), (next_at, high) in pairwise(calibration.knots):
        sum_of_ramps += (high - low) * np.clip((x - at) / (next_at - at), 0, 1)
    np.testing.assert_allclose(found, sum_of_ramps, atol=1e-12)
    assert np.all(np.diff(found) > 0)


def test_a_logit_that_is_no_number_stays_none() -> None:
    for calibration in (Calibration(), Calibration(knots=((0, 0.1), (1, 0.9)))):
        found = scored(np.array([np.nan, 0, np.inf, -np.inf]), calibration)

        assert np.isnan(found[0])
        assert np.all((found[1:] >= 0) & (found[1:] <= 1))


@pytest.mark.parametrize(
    ("knots", "words"),
    [
        (((0, 0.2), (0.5, 0.1), (1, 1)), "rise strictly"),
        (((0, 0.2), (0.5, 0.2), (1, 1)), "rise strictly"),
        (((0, 0), (0.6, 0.3), (0.4, 0.5), (1, 1)), "rise strictly"),
        (((0, 0), (0.9, 1)), "begin at 0 and end at 1"),
        (((0.1, 0), (1, 1)), "begin at 0 and end at 1"),
        (((0, 0),), "begin at 0 and end at 1"),
        (((0, 0), (0.5, float("nan")), (1, 1)), "finite"),
        (((0, -0.1), (1, 1)), "greater than or equal to 0"),
    ],
    ids=str,
)
def test_knots_that_do_not_rise_from_0_to_1_are_refused(knots: tuple[tuple[float, float], ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Calibration(knots=knots)


# --- fitting it


def test_a_calibrated_score_is_the_share_of_defective_parts() -> None:
    labels, logits = overstating(20_000)

    scores = scored(logits, calibrate(labels, logits, 0))

    for low in (0.1, 0.3, 0.5, 0.7):
        inside = (scores >= low) & (scores < low + 0.2)
        assert labels[inside].mean() == pytest.approx(scores[inside].mean(), abs=0.04)


def test_what_a_line_mends_gets_no_knots() -> None:
    assert calibrate(*overstating(5000), seed=0).knots == ()


def test_what_no_line_mends_gets_an_isotonic_map_that_is_better_on_parts_it_never_saw() -> None:
    fresh, fresh_logits = stepped(20_000, seed=1)

    isotonic = calibrate(*stepped(4000), seed=0)

    line = Calibration(temperature=isotonic.temperature, bias=isotonic.bias)
    assert len(isotonic.knots) == KNOTS
    of_line, of_isotonic = (expected_calibration_error(fresh, scored(fresh_logits, each)) for each in (line, isotonic))
    assert of_isotonic < 0.03 < 0.06 < of_line


def test_the_isotonic_map_keeps_the_order_of_any_two_parts() -> None:
    calibration = calibrate(*stepped(4000), seed=0)

    scores = scored(np.linspace(-8, 8, 2001), calibration)

    assert calibration.knots
    assert np.all(np.diff(scores) > 0)


@pytest.mark.parametrize("rare", [0, 1])
def test_with_few_images_or_few_of_a_class_there_is_no_isotonic_map(rare: int) -> None:
    labels, logits = stepped(4000)
    few = np.flatnonzero(labels == rare)[:49]
    enough_of_the_other = np.flatnonzero(labels != rare)
    part = np.concatenate([few, enough_of_the_other])

    assert calibrate(labels[:499], logits[:499], 0).knots == ()
    assert calibrate(labels[part], logits[part], 0).knots == ()


def test_the_same_seed_gives_the_same_calibration() -> None:
    assert calibrate(*stepped(1000), seed=3) == calibrate(*stepped(1000), seed=3)


def test_calibration_keeps_the_order_and_stays_finite_on_a_separable_sample() -> None:
    labels, logits = np.array([0] * 10 + [1] * 10), np.concatenate([np.full(10, -50.0), np.full(10, 50.0)])

    calibration = calibrate(labels, logits, 0)

    assert calibration.temperature > 1
    assert 0 < scored(logits, calibration)[0] < 0.5 < scored(logits, calibration)[-1] < 1


@pytest.mark.parametrize("logits", [np.zeros(10), np.linspace(1, -1, 10)])
def test_logits_that_say_nothing_or_the_opposite_are_left_alone(logits: Floats) -> None:
    labels = np.array([0] * 5 + [1] * 5)

    assert calibrate(labels, logits, 0) == Calibration()


@pytest.mark.parametrize(
    ("labels", "logits", "words"),
    [
        ([0, 0, 0], [1.0, 2.0, 3.0], "only good"),
        ([1, 1, 1], [1.0, 2.0, 3.0], "only defective"),
        ([0, 2, 1], [1.0, 2.0, 3.0], "properly labelled"),
        ([0, 1, 1], [1.0, np.nan, 3.0], "image 1"),
        ([0, 1, 1], [1.0, 2.0, np.inf], "image 2"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_by_name(labels: list[int], logits: list[float], words: str) -> None:
    with pytest.raises(BadField, match=words):
        calibrate(np.array(labels), np.array(logits), 0)


# --- measuring it


@pytest.mark.parametrize(("adaptive", "strategy"), [(False, "uniform"), (True, "quantile")])
@pytest.mark.parametrize("bins", [5, 15])
def test_the_error_and_its_table_are_those_of_scikit_learn(adaptive: bool, strategy: str, bins: int) -> None:
    labels, logits = overstating(3000)
    scores = 1 / (1 + np.exp(-logits))

    table = reliability(labels, scores, bins, adaptive=adaptive)
    error = expected_calibration_error(labels, scores, bins, adaptive=adaptive)

    rates, means = calibration_curve(labels, scores, n_bins=bins, strategy=strategy)
    assert [each.rate for each in table] == pytest.approx(rates)
    assert [each.score for each in table] == pytest.approx(means)
    edges = np.quantile(scores, np.linspace(0, 1, bins + 1)) if adaptive else np.linspace(0, 1, bins + 1)
    counts = np.histogram(scores, edges)[0]  # no score lies on an edge, where the two would differ
    weights = counts[counts > 0] / len(scores)
    if adaptive:  # its edges are scores
        weights = np.array([each.count for each in table]) / len(scores)
        assert max(abs(weights - 1 / bins)) < 2 / len(scores)
    assert error == pytest.approx(float(np.sum(weights * abs(rates - means))))
    assert error > 0.05


def test_a_perfect_score_has_no_error_and_a_lying_one_nearly_all() -> None:
    labels = np.array([0] * 50 + [1] * 50)

    assert expected_calibration_error(labels, labels.astype(np.float64)) == 0
    assert expected_calibration_error(labels, 1 - labels.astype(np.float64)) == 1


@pytest.mark.parametrize("adaptive", [False, True])
def test_every_image_is_in_one_bin_wherever_its_score_lies(adaptive: bool) -> None:
    scores = np.array([0, 0, 1 / 15, 2 / 15, 0.5, 1, 1, 1])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])

    table = reliability(labels, scores, adaptive=adaptive)

    assert sum(each.count for each in table) == len(scores)
    assert all(each.low <= each.score <= each.high for each in table)
    assert reliability(labels[:1], np.array([0.3]), adaptive=adaptive)[0].count == 1


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (0, 50), (7, 50), (50, 50)])
def test_the_interval_of_a_rate_is_the_exact_one_of_scipy(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(0.95, method="exact")

    assert exact_interval(hits, count) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1], [0.5, np.nan], "image 1 has score nan"),
        ([0, 1], [-0.1, 0.5], "image 0"),
        ([0, 1], [0.5], "one of each"),
        ([], [], "one of each"),
        ([0, 3], [0.5, 0.5], "0 for good"),
    ],
)
def test_no_error_is_told_of_what_are_no_scores(labels: list[int], scores: list[float], words: str) -> None:
    with pytest.raises(BadField, match=words):
        expected_calibration_error(np.array(labels, np.int64), np.array(scores, np.float64))
