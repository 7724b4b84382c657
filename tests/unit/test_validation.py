"""When is a version worse than another? The interval against SciPy's bootstrap, its scores against scikit-learn's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score

from inspectbus.errors import CorruptModel
from inspectbus.stores.datasets import Item
from inspectbus.training.validation import (
    FEWEST,
    VALIDATION_FILE,
    Validation,
    average_precisions,
    compare,
    draw,
    f1_scores,
    read_validation,
    write_validation,
)

THRESHOLD = 0.5


def judged(
    good: int, defective: int, seed: int, *, apart: float = 2.0, images: str = "a", per_group: int = 1
) -> Validation:
    """Scores of two overlapping classes, whose means lie `apart` standard deviations from each other."""
    labels = np.array([0] * good + [1] * defective)
    drawn = np.random.default_rng(seed).normal(0, 1, len(labels)) + apart * labels
    names = tuple(f"{images}{number}" for number in range(len(labels)))
    groups = np.concatenate((np.arange(good) // per_group, good + np.arange(defective) // per_group))
    _, groups = np.unique(groups, return_inverse=True)
    return Validation(names, groups, labels, 1 / (1 + np.exp(apart / 2 - drawn)))


@pytest.mark.parametrize("ties", [False, True])
def test_scores_of_resamples_are_those_of_scikit_learn(ties: bool) -> None:
    found = judged(60, 25, 1)
    scores = found.scores.round(1) if ties else found.scores
    weights = draw(found, 20, np.random.default_rng(2))

    ap, f1 = average_precisions(found.labels, scores, weights), f1_scores(found.labels, scores, THRESHOLD, weights)

    for row, weight in enumerate(weights):
        assert ap[row] == pytest.approx(average_precision_score(found.labels, scores, sample_weight=weight))
        assert f1[row] == pytest.approx(f1_score(found.labels, scores >= THRESHOLD, sample_weight=weight))


def test_the_interval_of_two_versions_on_the_same_images_is_scipys() -> None:
    new, old = judged(200, 80, 3), judged(200, 80, 4, apart=2.4)

    def difference(good: NDArray[np.int64], defective: NDArray[np.int64]) -> float:
        rows = np.concatenate((good, defective))
        ours, theirs = (average_precision_score(each.labels[rows], each.scores[rows]) for each in (new, old))
        return float(ours - theirs)

    rows = (np.flatnonzero(new.labels == 0), np.flatnonzero(new.labels == 1))
    expected = _scipys(rows, difference)

    found = compare(new, THRESHOLD, old, THRESHOLD)

    assert found.paired
    assert (found.differences[0].low, found.differences[0].high) == pytest.approx(expected, abs=0.01)


def test_the_interval_of_two_versions_on_different_images_is_scipys() -> None:
    new, old = judged(150, 60, 5), judged(200, 80, 6, images="b")

    def difference(*rows: NDArray[np.int64]) -> float:
        ours, theirs = np.concatenate(rows[:2]), np.concatenate(rows[2:])
        return float(
            f1_score(new.labels[ours], new.scores[ours] >= THRESHOLD)
            - f1_score(old.labels[theirs], old.scores[theirs] >= THRESHOLD)
        )

    rows = tuple(np.flatnonzero(each.labels == label) for each in (new, old) for label in (0, 1))
    expected = _scipys(rows, difference)

    found = compare(new, THRESHOLD, old, THRESHOLD)

    assert not found.paired
    assert (found.differences[1].low, found.differences[1].high) == pytest.approx(expected, abs=0.015)


def _scipys(rows: tuple[NDArray[np.int64], ...], statistic: Any) -> tuple[float, float]:
    found = stats.bootstrap(
        rows, statistic, vectorized=False, n_resamples=2000, method="percentile", random_state=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def test_the_same_scores_twice_differ_by_nothing() -> None:
    found = compare(judged(60, 25, 1), THRESHOLD, judged(60, 25, 1), THRESHOLD)

    assert [(each.new - each.old, each.low, each.high) for each in found.differences] == [(0, 0, 0)] * 2
    assert not found.worse


def test_a_version_that_sees_much_less_is_worse_and_the_other_is_not() -> None:
    good, poor = judged(200, 80, 1, apart=3.0), judged(200, 80, 2, apart=1.0)

    worse = compare(poor, THRESHOLD, good, THRESHOLD).worse

    assert [each.score for each in worse] == ["average precision", "F1"]
    assert "95 % interval -0." in str(worse[0])
    assert not compare(good, THRESHOLD, poor, THRESHOLD).worse


@pytest.mark.parametrize("images", ["a", "b"], ids=["same images", "different images"])
@pytest.mark.parametrize("defective", [FEWEST, 30])
def test_versions_that_are_equally_good_are_seldom_told_apart(images: str, defective: int) -> None:
    rounds = 200
    pairs = (
        (judged(3 * defective, defective, 2 * n), judged(3 * defective, defective, 2 * n + 1, images=images))
        for n in range(rounds)
    )

    told_apart = sum(bool(compare(new, THRESHOLD, old, THRESHOLD, rounds=400).worse) for new, old in pairs)

    # Two scores at one in forty each: about one in twenty, and by chance not more than one in ten of two hundred.
    assert told_apart <= rounds / 10


def test_images_of_one_part_count_as_one_part() -> None:
    alone, in_tens = (
        compare(judged(200, 80, 1, per_group=size), 0.5, judged(200, 80, 2, per_group=size), 0.5) for size in (1, 10)
    )
    # Ten copies of each image tell no more than one.
    once = [judged(20, 20, seed) for seed in (1, 2)]
    copied = [
        Validation(
            tuple(f"{image}-{copy}" for image in each.images for copy in range(10)),
            np.repeat(each.groups, 10),
            np.repeat(each.labels, 10),
            np.repeat(each.scores, 10),
        )
        for each in once
    ]

    assert in_tens.differences != alone.differences
    single, tenfold = compare(once[0], 0.5, once[1], 0.5), compare(copied[0], 0.5, copied[1], 0.5)
    assert (tenfold.differences[0].low, tenfold.differences[0].high) == pytest.approx(
        (single.differences[0].low, single.differences[0].high), abs=0.03
    )


def test_too_few_images_tell_nothing() -> None:
    few, perfect = judged(50, FEWEST - 1, 1, apart=0.1), judged(50, FEWEST - 1, 2, apart=9)

    assert compare(few, THRESHOLD, perfect, THRESHOLD).differences == ()


def test_many_images_are_drawn_in_little_memory() -> None:
    new, old = judged(30_000, 10_000, 1), judged(30_000, 10_000, 2)

    (ap, _) = compare(new, THRESHOLD, old, THRESHOLD, rounds=60).differences

    assert ap.low < ap.new - ap.old < ap.high


def test_what_is_written_is_read(tmp_path: Path) -> None:
    names = ['a, "b".png', "ü\nnew line.png", "\udcff.png"]
    items = [
        (Item(name, Path(name), None, group), _sha(name)) for name, group in zip(names, ("g", "g", None), strict=True)
    ]

    write_validation(tmp_path, items, np.array([1, 0, 1]), np.array([0.1 + 0.2, 1e-300, 1.0]))
    found = read_validation((tmp_path / VALIDATION_FILE).read_bytes())

    told = {image: (label, score) for image, label, score in zip(found.images, found.labels, found.scores, strict=True)}
    assert told == {_sha(names[0]): (1, 0.1 + 0.2), _sha(names[1]): (0, 1e-300), _sha(names[2]): (1, 1.0)}
    groups = dict(zip(found.images, found.groups, strict=True))
    assert groups[_sha(names[0])] == groups[_sha(names[1])] != groups[_sha(names[2])]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"name,sha256\nx,y\n",
        b"name,sha256,group,label,score\nx,y,,fine,0.5\n",
        b"name,sha256,group,label,score\nx,y,,good,much\n",
        b"name,sha256,group,label,score\nx,y,,good,nan\n",
        b"name,sha256,group,label,score\nx,y\n",
    ],
)
def test_a_file_that_holds_no_scores_is_named(content: bytes) -> None:
    with pytest.raises(CorruptModel) as refused:
        read_validation(content)
    assert refused.value.field == VALIDATION_FILE


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
