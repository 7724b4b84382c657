"""Doubtful labels are found, subsets are what they are called, and widths are those of scikit-learn's components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from inspectbus.domain.preparation import Preparation
from inspectbus.networks.pretrained import load_pretrained
from inspectbus.stores.datasets import Item, Label, open_dataset
from inspectbus.training.calibration import Labels
from inspectbus.training.comparison.contenders import KNN, SVM
from inspectbus.training.comparison.dimensions import TIMED, examine, narrow_all
from inspectbus.training.comparison.images import read_images
from inspectbus.training.comparison.inputs import frozen_features
from inspectbus.training.comparison.learning import Inputs, Learning, Part
from inspectbus.training.comparison.subsets import find_subsets
from inspectbus.training.comparison.suspects import FOLDS, STRENGTH, SUSPICIOUS, found_again, suspect
from inspectbus.training.evaluation import labels_of
from inspectbus.training.features import FeatureCache, cut_network
from tests.doubles.parts import TINY_BACKBONE, write_set, write_tiny_weights

Rendered = tuple[Inputs, Labels]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Features and labels of 160 rendered plates by the tiny backbone."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rendered")
    data = open_dataset(str(write_set(folder / "plates", good=100, defective=60)))
    tiny = load_pretrained(TINY_BACKBONE, write_tiny_weights(folder / "tiny.safetensors"))
    form = Preparation(width=64, height=64)
    images = read_images(data.items, lambda done: None)
    whole = cut_network(tiny, form, whole=True)
    return frozen_features(images, whole, form, FeatureCache(folder / "cache"), lambda done: None), images.labels


# --- label noise


@pytest.mark.parametrize("seed", range(3))
def test_of_five_in_a_hundred_turned_labels_half_are_among_the_tenth_most_suspicious(
    rendered: Rendered, seed: int
) -> None:
    features, labels = rendered

    assert (found_again(features, labels, [None] * len(labels), share=0.05, seed=seed) or 0) >= 0.5


def test_confidences_are_scikit_learns_out_of_fold_probabilities(rendered: Rendered) -> None:
    features, labels = rendered

    found = suspect(features, labels, [None] * len(labels), seed=4)

    machine = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=4)
    expected = cross_val_predict(machine, features, labels, cv=folds, method="predict_proba")
    assert found is not None
    assert found.confidence == pytest.approx(expected[np.arange(len(labels)), labels])
    assert list(found.confidence[found.order]) == sorted(found.confidence)
    assert len(found.suspects) == round(SUSPICIOUS * len(labels))


def test_an_image_is_never_judged_by_another_of_its_group() -> None:
    # given three photographs of each part, and labels that have nothing to do with what they show
    rng = np.random.default_rng(0)
    features = np.tile(rng.normal(size=(100, 200)).astype(np.float32), (3, 1))
    labels = np.tile(rng.permutation(100) % 2, 3)
    groups = [str(row % 100) for row in range(300)]

    by_group, by_image = (suspect(features, labels, each, seed=0) for each in (groups, [None] * 300))

    # then only those that had met the same part are sure of its label
    assert by_group is not None
    assert by_image is not None
    assert (by_group.confidence > 0.5).mean() == pytest.approx(0.5, abs=0.15)
    assert (by_image.confidence > 0.5).mean() > 0.8


def test_too_few_images_of_a_class_give_no_suspicion(rendered: Rendered) -> None:
    features, labels = rendered
    few = np.append(np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:1])

    assert suspect(features[few], labels[few], [None] * len(few), seed=0) is None
    assert found_again(features[few], np.zeros(len(few), np.int64), ["one"] * len(few), seed=0) is None


# --- subsets


def items(*parts: tuple[Label, str | None, str | None, int]) -> list[Item]:
    """From (label, kind, group, how many)."""
    made: list[Item] = []
    for label, kind, group, count in parts:
        for _ in range(count):
            name = f"{len(made)}.png"
            made.append(Item(name, Path(name), label, kind=kind, group=group))
    return made


def test_kinds_of_defect_each_stand_against_all_good_images() -> None:
    found = items((Label.GOOD, None, None, 5), (Label.DEFECTIVE, "pit", None, 2), (Label.DEFECTIVE, "scratch", None, 3))

    subsets = find_subsets(found, labels_of(found))

    assert subsets.words == "kinds of defect, each with all good images"
    assert {name: len(rows) for name, rows in subsets.rows.items()} == {"pit": 7, "scratch": 8}


def test_kinds_of_part_are_taken_where_both_classes_have_them() -> None:
    found = items(*((label, kind, None, 3) for label in (Label.GOOD, Label.DEFECTIVE) for kind in ("mono", "poly")))

    subsets = find_subsets(found, labels_of(found))

    assert subsets.words == "kinds of part"
    assert {name: len(rows) for name, rows in subsets.rows.items()} == {"mono": 6, "poly": 6}


def test_groups_are_taken_where_each_has_both_classes() -> None:
    both = (Label.GOOD, Label.DEFECTIVE)
    found = items(*((label, "casting", group, 2) for label in both for group in ("a", "b", "c")))

    subsets = find_subsets(found, labels_of(found))

    assert (subsets.words, set(subsets.rows)) == ("groups", {"a", "b", "c"})


@pytest.mark.parametrize("groups", [True, False])
def test_folds_are_taken_where_nothing_else_divides_and_hold_every_image_once(groups: bool) -> None:
    # One group has good images only.
    parts = [(Label.GOOD, None, "a" if groups else None, 9), (Label.DEFECTIVE, None, "b" if groups else None, 6)]
    found = items(*parts)
    labels = labels_of(found)

    subsets = find_subsets(found, labels)

    assert "5 stratified folds" in subsets.words
    assert sorted(np.concatenate(list(subsets.rows.values()))) == list(range(15))
    assert all(0 < labels[rows].sum() < len(rows) for rows in subsets.rows.values())


def test_a_single_defective_image_makes_no_folds() -> None:
    found = items((Label.GOOD, None, None, 5), (Label.DEFECTIVE, None, None, 1))

    assert list(find_subsets(found, labels_of(found)).rows) == ["all"]


# --- widths


def test_more_components_tell_more_and_too_many_are_left_out(rendered: Rendered) -> None:
    features, labels = rendered
    rows = np.random.default_rng(0).permutation(160)
    train, validation, unseen = rows[:80], rows[80:110], rows[110:]
    learning = Learning(Part(features[train], labels[train]), Part(features[validation], labels[validation]))
    told: list[int] = []

    contenders = [(contender, contender.usual) for contender in (SVM, KNN)]
    narrowed = narrow_all(learning, contenders, (1, 4, 16, 5000), cnn=True, repeats=2, seed=0, tell=told.append)
    points = examine(narrowed, features[unseen], labels[unseen])

    assert [(each.model, each.dimension) for each in points] == [
        (model, width) for width in (1, 4, 16) for model in ("svm", "knn", "cnn")
    ]
    assert sum(told) == 9
    by = {(each.model, each.dimension): each for each in points}
    assert by["svm", 16].average_precision > by["svm", 1].average_precision
    assert by["cnn", 16].average_precision > labels.mean() + 0.2
    assert all(each.fit_s > 0 and each.predict_ms > 0 for each in points)
    assert TIMED % 2


def test_a_narrow_head_comes_out_the_same_for_the_same_seed(rendered: Rendered) -> None:
    features, labels = rendered
    learning = Learning(Part(features[::2], labels[::2]), Part(features[1::2], labels[1::2]))

    first, second = (narrow_all(learning, [], (3,), cnn=True, repeats=1, seed=5, tell=lambda _: None) for _ in "ab")

    assert np.array_equal(first[0].entrant.scores(features), second[0].entrant.scores(features))
