"""What stands against the CNN: each learns, each is searched alike, and none has ever seen the held-out part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from inspectbus.training.calibration import Floats
from inspectbus.training.comparison import backpropagation
from inspectbus.training.comparison.contenders import ALL_DEFECTIVE, BASELINES, KNN, LIGHT, SVM, Contender
from inspectbus.training.comparison.inputs import Components, fitted_projection
from inspectbus.training.comparison.learning import Entrant, Learning, Part
from inspectbus.training.comparison.searches import candidates, search

EVERYBODY = pytest.mark.parametrize("contender", BASELINES, ids=lambda each: each.name)


def two_moons(count: int, seed: int, width: int = 6) -> Part:
    """Two classes no line divides: the defective lie on both sides of the good."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3 == 0).astype(np.int64)
    inputs = rng.normal(0, 0.6, (count, width))
    inputs[:, 0] += labels * rng.choice([-2.5, 2.5], count)
    return Part(inputs.astype(np.float32), labels)


@pytest.fixture(scope="module")
def learning() -> Learning:
    return Learning(two_moons(150, 1), two_moons(60, 2))


# --- BPN


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gradient_of_back_propagation_is_the_slope_of_its_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, wanted = rng.normal(size=(7, 4)), rng.choice([-1.0, 1.0], 7)
    start = backpropagation.begin(4, 3, rng)

    def unpacked(weights: Floats) -> backpropagation.Network:
        return backpropagation.Network(weights[:12].reshape(4, 3), weights[12:15], weights[15:18], weights[18:])

    def packed(network: backpropagation.Network) -> Floats:
        parts = [network.hidden.ravel(), network.hidden_bias, network.output, network.output_bias]
        return np.concatenate(parts)

    miss = check_grad(
        lambda weights: unpacked(weights).error(inputs, wanted),
        lambda weights: packed(unpacked(weights).gradient(inputs, wanted)),
        packed(start),
    )

    assert miss < 1e-6


def test_plain_gradient_descent_lowers_the_error_step_by_step() -> None:
    part = two_moons(90, 3)
    network = backpropagation.begin(6, 8, np.random.default_rng(0))
    inputs, wanted = part.inputs.astype(np.float64), (2 * part.labels - 1).astype(np.float64)
    errors = []
    for _ in range(20):
        errors.append(network.error(inputs, wanted))
        network.descend(network.gradient(inputs, wanted), 0.1)

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


# --- everybody


@EVERYBODY
def test_each_tells_apart_what_no_line_divides(contender: Contender, learning: Learning) -> None:
    entrant = search(contender, learning, seed=0, count=4)
    unseen = two_moons(120, 9)

    scores = entrant.scores(unseen.inputs)

    assert roc_auc_score(unseen.labels, scores) > 0.9
    assert np.mean((scores >= entrant.threshold) == unseen.labels) > 0.85
    assert scores.min() >= 0
    assert scores.max() <= 1


@EVERYBODY
def test_the_same_seed_gives_the_same_entrant_and_a_search_of_the_same_size(
    contender: Contender, learning: Learning
) -> None:
    told: list[None] = []
    first, second = (search(contender, learning, seed=3, count=3, tell=lambda: told.append(None)) for _ in range(2))

    unseen = two_moons(30, 9).inputs
    assert np.array_equal(first.scores(unseen), second.scores(unseen))
    assert (first.threshold, first.settings) == (second.threshold, second.settings)
    assert first.tried == 3
    assert len(told) == 6


@EVERYBODY
def test_a_longer_search_begins_with_the_candidates_of_a_shorter_one(contender: Contender) -> None:
    assert candidates(contender, 8, 5)[:3] == candidates(contender, 3, 5)
    assert candidates(contender, 3, 5)[1:] != candidates(contender, 3, 6)[1:]
    assert candidates(contender, 1, 5) == [contender.usual]


def test_the_best_by_validation_average_precision_is_taken(learning: Learning) -> None:
    entrant = search(SVM, learning, seed=0, count=6)

    found = []
    for settings in candidates(SVM, 6, 0):
        judge = SVM.fit(settings, learning.train.inputs, learning.train.labels, 0)
        found.append(average_precision_score(learning.validation.labels, judge(learning.validation.inputs)))
    assert entrant.validation_ap == pytest.approx(max(found))
    assert entrant.settings == candidates(SVM, 6, 0)[int(np.argmax(found))]


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_neighbours_that_all_agree_still_give_finite_logits(weights: str) -> None:
    part = Part(np.array([[0.0], [0.1], [5.0], [5.1]], np.float32), np.array([0, 0, 1, 1]))

    judge = KNN.fit({"neighbours": 9, "weights": weights}, part.inputs, part.labels, 0)

    logits = judge(part.inputs)
    assert np.isfinite(logits).all()


def test_a_floor_knows_only_light_and_another_calls_everything_defective(learning: Learning) -> None:
    light = search(LIGHT, learning, seed=0, count=1)
    everything = search(ALL_DEFECTIVE, learning, seed=0, count=1)
    unseen = two_moons(30, 9).inputs

    assert np.isfinite(light.scores(unseen)).all()
    assert (everything.scores(unseen) >= everything.threshold).all()


# --- the held-out part


def test_what_a_learner_is_given_has_no_place_for_the_held_out_part() -> None:
    assert [each.name for each in fields(Learning)] == ["train", "validation"]
    assert [each.name for each in fields(Part)] == ["inputs", "labels"]
    learners: list[Callable[..., object]] = [search, *(contender.fit for contender in BASELINES)]
    for learner in learners:
        given = [name for name in inspect.signature(learner).parameters if name not in ("seed", "count", "tell")]
        assert set(given) <= {"contender", "learning", "settings", "inputs", "labels"}


def test_an_entrant_cannot_be_changed_by_examining_it(learning: Learning) -> None:
    entrant = search(SVM, learning, seed=0, count=2)
    before = entrant.scores(learning.validation.inputs)

    entrant.scores(two_moons(50, 11).inputs)

    assert np.array_equal(entrant.scores(learning.validation.inputs), before)
    with pytest.raises(AttributeError):
        entrant.threshold = 0.1  # type: ignore[misc]
    assert isinstance(entrant, Entrant)


# --- forms


def test_projections_are_fitted_on_the_train_part_alone() -> None:
    inputs, _ = make_classification(80, 30, random_state=0)
    train, other = inputs[:60].astype(np.float32), inputs[60:].astype(np.float32)

    together = fitted_projection("frozen", train, 0)(other)

    assert np.allclose(together, StandardScaler().fit(train).transform(other), atol=1e-5)
    # One image more or less on the other side changes nothing of the rest.
    assert np.allclose(fitted_projection("frozen", train, 0)(other[:5]), together[:5])


def test_principal_components_are_those_of_scikit_learn_up_to_one_scale() -> None:
    inputs = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)

    found = Components.of(inputs, 3, 0).project(inputs)

    expected = PCA(3, random_state=0).fit_transform(StandardScaler().fit_transform(inputs))
    assert np.allclose(found / expected, (found / expected)[0, 0], atol=1e-3)
    assert np.mean(found.var(axis=0)) == pytest.approx(1, abs=0.05)


def test_fewer_images_than_components_give_fewer_components() -> None:
    inputs = np.random.default_rng(0).normal(size=(7, 40)).astype(np.float32)

    assert fitted_projection("raw", inputs, 0)(inputs).shape == (7, 7)
