"""The threshold advisor: are its bounds broken as seldom as it says, over many samples whose truth is known?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import Calibration
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.training.advice import Advice, Share, advise, trade_off
from inspectbus.training.calibration import Floats, Labels, calibrate

APART = 3.0
"""Standard deviations between good and defective logits."""


def sample(rng: np.random.Generator, good: int, defective: int, levels: int = 0) -> tuple[Labels, Floats]:
    """Labels, and scores that rise with a logit of two Gaussian classes; with `levels`, so many different ones only."""
    labels = np.array([0] * good + [1] * defective, np.int64)
    scores = norm.cdf((rng.normal(0, 1, len(labels)) + APART * (labels - 0.5)) / 2)
    return labels, np.floor(scores * levels) / levels if levels else scores


def below(score: float, defective: bool, levels: int = 0) -> float:
    """The true share of a class with a score below this one."""
    if levels:
        score = math.ceil(score * levels - 1e-9) / levels
    mean = APART / 2 if defective else -APART / 2
    return float(norm.cdf(2 * norm.ppf(score) - mean))


def truth(advice: Advice, levels: int = 0) -> tuple[float, float, float]:
    """What the thresholds really give: escape, overkill, held."""
    lower, upper = advice.thresholds.qualified_below, advice.thresholds.defective_from
    passed, decided = below(lower, False, levels), below(upper, False, levels)
    return below(lower, True, levels), 1 - decided, decided - passed


def broken(rounds: int, good: int, defective: int, held_limit: float, levels: int = 0) -> dict[str, float]:
    """How often each bound was below the truth, over many samples."""
    rng = np.random.default_rng(20260101)
    times = dict.fromkeys(("escape", "overkill", "held"), 0)
    for _ in range(rounds):
        advice = advise(*sample(rng, good, defective, levels), 30_000, held_limit)
        for name, really in zip(times, truth(advice, levels), strict=True):
            times[name] += really > getattr(advice, name).at_most
    return {name: count / rounds for name, count in times.items()}


ROUNDS = 1500
CHANCE = binom.ppf(0.9999, ROUNDS, 0.05) / ROUNDS
"""A bound that is broken in exactly 5 % of samples is broken more often than this in one of ten thousand such tests."""


@pytest.mark.parametrize(
    ("good", "defective", "held_limit"),
    [
        (300, 200, 0.0),
        (300, 200, 0.03),
        # A limit about as large as all that could be held: now the one, now the other way to the upper threshold.
        (300, 200, 0.28),
        (60, 400, 0.5),
        (3000, 150, 0.01),
    ],
)
def test_each_bound_is_broken_in_at_most_one_of_twenty_samples(good: int, defective: int, held_limit: float) -> None:
    found = broken(ROUNDS, good, defective, held_limit)

    assert max(found.values()) <= CHANCE, found


@pytest.mark.parametrize("held_limit", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("levels", [5, 20])
def test_the_bounds_hold_for_scores_that_tie_too(levels: int, held_limit: float) -> None:
    found = broken(ROUNDS, 300, 200, held_limit, levels)

    assert max(found.values()) <= CHANCE, found


def test_the_bound_on_escapes_is_exact_and_not_merely_safe() -> None:
    rng = np.random.default_rng(0)
    advised = [advise(*sample(rng, 20, 200), 30_000) for _ in range(4000)]

    broken = sum(truth(each)[0] > each.escape.at_most for each in advised)

    # Two-sided: a bound that is never broken would pass the other tests, and tell nothing.
    assert binomtest(broken, 4000, 0.05).pvalue > 1e-4


def test_a_calibration_fitted_on_the_same_images_changes_nothing_that_the_bound_is_about() -> None:
    rng = np.random.default_rng(1)
    for seed in range(5):
        labels = np.array([0] * 450 + [1] * 100, np.int64)
        logits = rng.normal(0, 1, 550) + APART * labels + np.where(rng.random(550) < 0.3, 4, 0)
        calibration = calibrate(labels, logits, seed)
        plain, calibrated = scored(logits, Calibration()), scored(logits, calibration)

        by_plain, by_calibrated = advise(labels, plain, 50_000, 0.1), advise(labels, calibrated, 50_000, 0.1)

        assert calibration != Calibration()
        for end in ("qualified_below", "defective_from"):
            divided = plain < getattr(by_plain.thresholds, end)
            assert (divided == (calibrated < getattr(by_calibrated.thresholds, end))).all()
        assert (by_plain.escape, by_plain.overkill, by_plain.held) == (
            by_calibrated.escape,
            by_calibrated.overkill,
            by_calibrated.held,
        )


@pytest.mark.parametrize("defective", [59, 300, 1000])
def test_a_limit_is_shown_from_the_number_of_images_that_the_rule_of_three_made_exact_names(defective: int) -> None:
    labels, scores = sample(np.random.default_rng(0), 50, defective)
    smallest = 1 - 0.05 ** (1 / defective)

    with pytest.raises(NotPossibleNow, match=f"with {defective:,} defective images") as refused:
        advise(labels, scores, smallest * 0.999e6)

    assert refused.value.field == "escape_ppm"
    assert f"less than {math.ceil(smallest * 1e6):,} ppm" in refused.value.message
    shown = advise(labels, scores, smallest * 1.001e6)
    assert shown.escape.at_most == pytest.approx(smallest)
    assert shown.thresholds.qualified_below == pytest.approx(scores[labels == 1].min(), abs=1e-6)


def test_the_number_of_images_it_asks_for_is_enough_and_one_less_is_not() -> None:
    with pytest.raises(NotPossibleNow) as refused:
        advise(*sample(np.random.default_rng(0), 50, 10), 500)
    needed = int(refused.value.message.rsplit(" takes ", 1)[1].split(" ")[0].replace(",", ""))

    advise(*sample(np.random.default_rng(0), 50, needed), 500)
    with pytest.raises(NotPossibleNow):
        advise(*sample(np.random.default_rng(0), 50, needed - 1), 500)


def test_what_is_seen_is_counted_and_the_bounds_without_a_band_are_scipys() -> None:
    labels, scores = sample(np.random.default_rng(2), 400, 300)

    advice = advise(labels, scores, 50_000)

    lower = advice.thresholds.qualified_below
    assert not advice.thresholds.band
    escaped, rejected = (labels == 1) & (scores < lower), (labels == 0) & (scores >= lower)
    for share, event, count in ((advice.escape, escaped, 300), (advice.overkill, rejected, 400)):
        assert share.seen == event.sum() / count
        # One-sided 95 % is the upper end of a two-sided interval of 90 %.
        interval = binomtest(int(event.sum()), count).proportion_ci(0.9, method="exact")
        assert share.at_most == pytest.approx(interval.high)
    assert advice.held == Share(0, 0)
    assert advice.held_defective == 0


def test_the_limit_is_used_up_one_more_escape_would_break_it() -> None:
    labels, scores = sample(np.random.default_rng(3), 400, 300)

    advice = advise(labels, scores, 50_000)

    escaped = round(advice.escape.seen * 300)
    assert advice.escape.at_most <= 0.05
    assert binomtest(escaped + 1, 300).proportion_ci(0.9, method="exact").high > 0.05


def test_a_band_holds_parts_instead_of_rejecting_good_ones() -> None:
    labels, scores = sample(np.random.default_rng(4), 2000, 400)

    alone, banded = advise(labels, scores, 20_000), advise(labels, scores, 20_000, 0.05)

    assert banded.thresholds.qualified_below == alone.thresholds.qualified_below
    lower, upper = banded.thresholds.qualified_below, banded.thresholds.defective_from
    inside = (scores >= lower) & (scores < upper)
    assert banded.held.seen == inside[labels == 0].mean()
    assert banded.held_defective == inside[labels == 1].mean()
    assert 0.03 < banded.held.seen < banded.held.at_most <= 0.05
    assert banded.overkill.seen == pytest.approx(alone.overkill.seen - banded.held.seen)
    assert banded.escape == alone.escape


def test_where_less_than_the_limit_needs_to_be_held_no_good_image_is_rejected_and_certain_defects_are() -> None:
    labels = np.array([0] * 200 + [1] * 200)
    scores = np.concatenate([np.linspace(0.01, 0.4, 200), np.linspace(0.35, 0.99, 200)])

    advice = advise(labels, scores, 20_000, 0.4)

    assert advice.overkill.seen == 0
    assert 0.4 < advice.thresholds.defective_from < 0.41
    assert 0 < advice.held.seen < 0.4


def test_classes_that_lie_apart_need_no_band() -> None:
    labels, scores = np.array([0] * 100 + [1] * 100), np.array([0.1] * 100 + [0.9] * 100)

    advice = advise(labels, scores, 50_000, 0.1)

    assert not advice.thresholds.band
    assert (advice.escape.seen, advice.overkill.seen, advice.held) == (0, 0, Share(0, 0))


def test_thresholds_are_whole_millionths_that_a_person_can_type() -> None:
    advice = advise(*sample(np.random.default_rng(5), 500, 300), 30_000, 0.05)

    for threshold in vars(advice.thresholds).values():
        assert threshold == float(f"{threshold:.6f}")


def test_a_good_part_of_the_highest_score_there_is_can_only_be_rejected() -> None:
    labels, scores = np.array([0] * 100 + [1] * 100), np.array([0.1] * 98 + [0.95, 1.0] + [0.9] * 100)

    advice = advise(labels, scores, 50_000, 0.2)

    assert advice.thresholds.defective_from == 1.0
    assert advice.overkill.seen == 0.01


def test_a_trade_off_goes_from_few_escapes_to_many_and_each_rung_is_the_advice_for_its_limit() -> None:
    labels, scores = sample(np.random.default_rng(6), 400, 300)

    curve = trade_off(labels, scores, 0.03)

    limits = [each.escape.at_most for each in curve]
    assert limits == sorted(set(limits))
    assert limits[0] == pytest.approx(1 - 0.05 ** (1 / 300))
    assert 0.4 < limits[-1] <= 0.5
    assert all(advise(labels, scores, each.escape.at_most * 1e6 * (1 + 1e-9), 0.03) == each for each in curve)
    assert len(trade_off(*sample(np.random.default_rng(7), 5, 1))) == 1


@pytest.mark.parametrize(
    ("labels", "scores", "limits", "kind", "words"),
    [
        ([0, 1], [0.1, math.nan], (5e5, 0.0), BadField, "image 1 has score nan"),
        ([0, 1], [0.1, 1.1], (5e5, 0.0), BadField, "image 1"),
        ([0, 0], [0.1, 0.2], (5e5, 0.0), BadField, "only good"),
        ([1, 1], [0.1, 0.2], (5e5, 0.0), BadField, "only defective"),
        ([], [], (5e5, 0.0), BadField, "one of each per image"),
        ([0, 1], [0.1, 0.2], (0.0, 0.0), BadField, "escape_ppm is 0;"),
        ([0, 1], [0.1, 0.2], (1e6, 0.0), BadField, "escape_ppm is 1e"),
        ([0, 1], [0.1, 0.2], (math.nan, 0.0), BadField, "escape_ppm is nan"),
        ([0, 1], [0.1, 0.2], (9.9e5, math.nan), BadField, "held limit is nan"),
        ([0, 1], [0.1, 0.2], (9.9e5, -0.1), BadField, "held limit is -0.1"),
        ([0, 1], [0.1, 0.2], (9.9e5, 1.0), BadField, "held limit is 1.0"),
        ([0, 1], [0.1, 0.2], (5e5, 0.0), NotPossibleNow, "with 1 defective image no"),
        ([0, 1], [0.1, 0.2], (9.9e5, 0.1), NotPossibleNow, "with 1 good image no band"),
    ],
)
def test_what_cannot_be_advised_is_refused_with_the_reason(
    labels: list[int], scores: list[float], limits: tuple[float, float], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        advise(np.array(labels, np.int64), np.array(scores, np.float64), *limits)
