"""The whole experiment on rendered parts: order, fairness, figures, and what it says to bad input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from inspectbus.domain.model_version import WEIGHTS_FILE, ModelCard
from inspectbus.errors import BadField, StorageFull
from inspectbus.stores.datasets import Item, Label, cut, split
from inspectbus.stores.models import read_card
from inspectbus.training import features
from inspectbus.training.comparison import network
from inspectbus.training.comparison.conductor import CNN_KEY, LIGHT_KEY, Comparison, Key
from inspectbus.training.comparison.network import TrainedNetwork
from inspectbus.training.comparison.record import as_record
from inspectbus.training.comparison.terms import MODELS, Terms, known_models
from inspectbus.training.plan import Cancelled, Progress
from inspectbus.training.trainer import VALIDATION_SHARE
from tests.doubles.compared import CompareBench
from tests.doubles.tiny_model import tiny_version

BASELINES = ("svm", "knn", "bpn", "mlp")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompareBench, Comparison]:
    torch.set_num_threads(1)
    bench = CompareBench(tmp_path_factory.mktemp("whole"))
    return bench, bench.compare(seeds=2)


@pytest.fixture
def bench(tmp_path: Path) -> CompareBench:
    return CompareBench(tmp_path, good=24, defective=16)


# --- what comes out


def test_every_model_is_examined_in_both_forms_with_the_floors(whole: tuple[CompareBench, Comparison]) -> None:
    _, found = whole

    assert {key.name for key in found.figures} == {
        "cnn",
        *(f"{name}, {form}" for name in BASELINES for form in ("raw", "frozen")),
        "light, light",
        "all-defective, light",
    }
    assert all(len(each.answers) == 2 for each in found.figures.values())
    assert all(each.predict_ms > 0 and each.fit_s >= 0 for each in found.figures.values())


def test_the_record_has_the_promised_shape_and_survives_json(whole: tuple[CompareBench, Comparison]) -> None:
    _, found = whole

    record = json.loads(json.dumps(as_record(found), allow_nan=False))

    assert set(record["models"]) == {"cnn", *BASELINES, "floor"}
    assert set(record["raw_models"]) == {*BASELINES, "floor"}
    for model in [*record["models"].values(), *record["raw_models"].values()]:
        for measure in ("precision", "recall", "f1", "average_precision", "auroc"):
            figure = model[measure]
            assert 0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 1
        assert model["fit_s"] >= 0
        assert model["predict_ms"] > 0
    assert {(each["model"], each["dimension"]) for each in record["dimensions"]} == {
        (model, width) for model in MODELS for width in (1, 2, 8)
    }
    assert {(each["condition"], each["steps"], each["model"]) for each in record["preprocessing"]} == {
        (condition, steps, model)
        for condition in ("clean", "distortion", "motion blur", "noise", "all three")
        for steps in ("none", "denoise", "geometry", "all")
        for model in ("svm", "knn", "cnn", "light")
    }
    assert record["split"]["held_out"] + record["split"]["train"] == record["data"]["images"] == 80
    assert record["pointing"] is None, "nobody marked anything"
    assert record["export"]["images"] == record["split"]["held_out"]


def test_the_figures_are_scikit_learns_means_over_the_seeds(whole: tuple[CompareBench, Comparison]) -> None:
    _, found = whole
    labels, record = found.exam.labels, as_record(found)

    for name, key in (("cnn", CNN_KEY), ("svm", Key("svm", "frozen"))):
        answers = found.figures[key].answers
        f1 = [f1_score(labels, each.scores >= each.threshold) for each in answers]
        ap = [average_precision_score(labels, each.scores) for each in answers]
        assert record["models"][name]["f1"]["mean"] == pytest.approx(np.mean(f1))
        assert record["models"][name]["f1"]["spread"] == pytest.approx(np.std(f1, ddof=1))
        assert record["models"][name]["average_precision"]["mean"] == pytest.approx(np.mean(ap))
    lead = record["models"]["svm"]["cnn_less_this"]["f1"]
    assert lead["mean"] == pytest.approx(
        record["models"]["cnn"]["f1"]["mean"] - record["models"]["svm"]["f1"]["mean"], abs=1e-9
    )
    assert lead["low"] <= lead["mean"] <= lead["high"]


def test_on_clean_images_the_preprocessing_table_says_what_the_first_table_says_of_the_first_seed(
    bench: CompareBench,
) -> None:
    found = bench.compare(models=("svm",), spoiled=1000)

    rows = {(row.model, row.condition, row.steps): row for row in found.preprocessing}
    for key in (LIGHT_KEY, Key("svm", "frozen")):
        answers = found.figures[key].answers[0]
        row = rows[key.model, "clean", "none"]
        assert row.f1 == pytest.approx(f1_score(found.exam.labels, answers.scores >= answers.threshold))
        assert row.average_precision == pytest.approx(average_precision_score(found.exam.labels, answers.scores))


def test_scratches_are_told_apart_better_than_by_light_or_by_chance(whole: tuple[CompareBench, Comparison]) -> None:
    record = as_record(whole[1])

    defective = record["split"]["held_out_defective"] / record["split"]["held_out"]
    assert record["floors"]["all_defective"]["average_precision"]["mean"] == pytest.approx(defective)
    assert record["floors"]["all_defective"]["recall"]["mean"] == 1
    assert record["models"]["svm"]["average_precision"]["mean"] > defective + 0.2


def test_the_average_over_subsets_is_the_mean_of_the_subsets(whole: tuple[CompareBench, Comparison]) -> None:
    subsets = as_record(whole[1])["subsets"]

    assert "folds" in subsets["words"]
    assert sum(subsets["images"].values()) == len(whole[1].exam.labels)
    for model in subsets["models"]:
        parts = [each["recall"] for name, each in model["subsets"].items() if name != "average"]
        assert model["subsets"]["average"]["recall"] == pytest.approx(np.mean(parts))


def test_the_cnn_cuts_the_same_validation_part_as_the_others(whole: tuple[CompareBench, Comparison]) -> None:
    bench, _ = whole
    train = split(bench.data).train.items

    for seed in (0, 1):
        told = [each for each in bench.told if each.stage == f"cnn, seed {seed}: threshold"]
        assert told[-1].total == len(cut(train, VALIDATION_SHARE, seed)[1])


def test_only_the_models_asked_for_are_compared(bench: CompareBench) -> None:
    found = bench.compare(models=("svm",))

    record = as_record(found)
    assert set(record["models"]) == {"svm", "floor"}
    assert "cnn_less_this" not in record["models"]["svm"]
    assert {each["model"] for each in record["dimensions"]} == {"svm"}
    assert {each["model"] for each in record["preprocessing"]} == {"svm", "light"}


# --- the held-out part reaches nobody


def test_no_held_out_image_is_read_before_everything_is_learnt(bench: CompareBench, tmp_path: Path) -> None:
    # given a set whose held-out files do not exist yet
    parts = split(bench.data)
    away = tmp_path / "away"
    away.mkdir()
    hidden = {item.name: item.path.rename(away / item.name.replace("/", "-")) for item in parts.held_out.items}

    class Until(list[Progress]):
        def append(self, progress: Progress) -> None:
            super().append(progress)
            if progress.stage == "held-out part" and progress.done == 0:
                for item in parts.held_out.items:
                    hidden[item.name].rename(item.path)

    bench.told = Until()

    # when they come only with the examination
    found = bench.compare()

    # then nothing was missing
    assert len(found.exam.items) == len(parts.held_out.items)
    stages = list(dict.fromkeys(each.stage for each in bench.told))
    at = stages.index("held-out part")
    assert {"dimensions", "labels", "baselines, seed 0", "cnn, seed 0: registering"} <= set(stages[:at])
    assert not any(stage.startswith(("baselines", "cnn, seed", "dimensions")) for stage in stages[at:])


def test_labels_of_the_held_out_part_change_no_threshold_and_no_setting(bench: CompareBench) -> None:
    held_out = {item.name for item in split(bench.data).held_out.items}
    # Its own halves keep the split where it was.
    halves = [replace(item, half="test" if item.name in held_out else "train") for item in bench.data.items]
    turned = {Label.GOOD: Label.DEFECTIVE, Label.DEFECTIVE: Label.GOOD}

    def compared(items: list[Item]) -> Comparison:
        return bench.compare(replace(bench.data, items=tuple(items)), models=("svm", "mlp"))

    plain = compared(halves)
    lied = compared([replace(i, label=turned[i.label]) if i.half == "test" and i.label else i for i in halves])

    for key, each in plain.figures.items():
        other = lied.figures[key]
        assert [answers.threshold for answers in each.answers] == [answers.threshold for answers in other.answers]
        assert each.settings == other.settings
        assert np.array_equal(each.answers[0].scores, other.answers[0].scores)
    assert not np.array_equal(plain.exam.labels, lied.exam.labels)


# --- features are found again


def test_a_second_comparison_skips_extraction(bench: CompareBench, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    real: Callable[..., features.Half] = features._through

    def through(lower: torch.nn.Module, images: list[np.ndarray]) -> features.Half:
        passes.append(len(images))
        return real(lower, images)

    monkeypatch.setattr(features, "_through", through)
    first = bench.compare(models=("knn",))
    assert sum(passes) == len(bench.data.items)

    passes.clear()
    second = bench.compare(models=("knn",))

    assert passes == []
    one, other = (each.figures[Key("knn", "frozen")].answers[0].scores for each in (first, second))
    assert np.array_equal(one, other)


# --- trainings are found again


def test_the_same_comparison_takes_its_trainings_from_the_first(bench: CompareBench) -> None:
    first = bench.compare(models=("cnn",), epochs=1, seeds=2)
    bench.told.clear()

    second = bench.compare(models=("cnn",), epochs=1, seeds=2)

    assert not any(each.stage.startswith("cnn, seed") for each in bench.told)
    one, other = (each.figures[CNN_KEY] for each in (first, second))
    assert one.fit_s == other.fit_s > 0
    for mine, theirs in zip(one.answers, other.answers, strict=True):
        assert np.array_equal(mine.scores, theirs.scores)
        assert mine.threshold == theirs.threshold


def test_another_plan_or_other_data_is_trained_anew(bench: CompareBench) -> None:
    bench.compare(models=("cnn",), epochs=1)
    fewer = replace(bench.data, items=bench.data.items[1:])

    for data, epochs in ((bench.data, 2), (fewer, 1)):
        bench.told.clear()
        bench.compare(data, models=("cnn",), epochs=epochs)
        assert any(each.stage == "cnn, seed 0: training" for each in bench.told)


def test_a_damaged_training_is_made_anew(bench: CompareBench) -> None:
    first = bench.compare(models=("cnn",), epochs=1)
    (weights,) = (bench.folder / "trainings").glob(f"*/version/{WEIGHTS_FILE}")
    weights.write_bytes(weights.read_bytes()[:-1])
    bench.told.clear()

    second = bench.compare(models=("cnn",), epochs=1)

    assert any(each.stage == "cnn, seed 0: training" for each in bench.told)
    one, other = (each.figures[CNN_KEY].answers[0].scores for each in (first, second))
    assert np.array_equal(one, other)


def test_a_training_that_is_interrupted_leaves_nothing_behind(bench: CompareBench) -> None:
    class Until(list[Progress]):
        def append(self, progress: Progress) -> None:
            if progress.stage == "cnn, seed 0: threshold":
                bench.cancel.set()

    bench.told = Until()

    with pytest.raises(Cancelled):
        bench.compare(models=("cnn",), epochs=1)

    assert list((bench.folder / "trainings").iterdir()) == []


def copied(version: Path, folder: Path) -> ModelCard:
    return read_card(Path(shutil.copytree(version, folder)))


def test_the_trainings_used_longest_ago_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "KEPT", 2)
    trainings = network.Trainings(tmp_path)

    for number, key in enumerate("abc"):
        version = tiny_version(tmp_path / "made", seed=number)
        card = trainings.make(key, partial(copied, version)).card
        os.utime(tmp_path / key, (number, number))

    assert trainings.find("a") is None
    found = trainings.find("c")
    assert found is not None
    assert found.card == card


def test_a_folder_that_keeps_no_trainings_says_so_before_one_is_made(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    trained: list[Path] = []

    def train(folder: Path) -> ModelCard:
        trained.append(folder)
        raise AssertionError

    with pytest.raises(StorageFull, match=r"trainings cannot be kept in .*kept: "):
        network.Trainings(tmp_path / "kept").make("a", train)
    assert trained == []


# --- bad input


def test_a_model_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(BadField, match=r"no model is called 'resnet'; known are cnn, svm, knn, bpn, mlp"):
        known_models(["cnn", "resnet"])
    assert known_models(["svm", "cnn", "svm"]) == ("cnn", "svm")


def test_one_class_alone_is_refused(bench: CompareBench) -> None:
    good = tuple(item for item in bench.data.items if item.label is Label.GOOD)

    with pytest.raises(BadField, match="no defective images"):
        bench.compare(replace(bench.data, items=good))


def test_too_few_images_for_a_validation_part_are_told_in_numbers(bench: CompareBench) -> None:
    kinds = {label: [item for item in bench.data.items if item.label is label] for label in Label}
    few = tuple(kinds[Label.GOOD][:3] + kinds[Label.DEFECTIVE][:3])

    with pytest.raises(BadField, match="2 good and 2 defective images are too few"):
        bench.compare(replace(bench.data, items=few))


def with_damaged(bench: CompareBench, count: int, sound: int) -> tuple[Item, ...]:
    """The train half has some damaged images, and as many sound ones as asked for."""
    damaged = []
    for number in range(count):
        file = bench.folder / f"damaged-{number}.png"
        file.write_bytes(b"no picture")
        damaged.append(Item(file.name, file, Label.GOOD, half="train"))
    parts = split(bench.data)
    train = [replace(item, half="train") for item in parts.train.items]
    while len(train) < sound:
        train += [replace(item, name=f"again-{len(train)}-{item.name}") for item in train[: sound - len(train)]]
    return (*damaged, *train, *(replace(item, half="test") for item in parts.held_out.items))


def test_one_unreadable_image_among_many_is_left_out_and_told(bench: CompareBench) -> None:
    found = bench.compare(replace(bench.data, items=with_damaged(bench, 1, 120)), models=("cnn", "knn"), epochs=1)

    assert [item.name for item in found.train.lost] == ["damaged-0.png"]
    assert "1 unreadable images left out" in found.words
    assert len(found.train.items) == 120


def test_many_unreadable_images_end_the_comparison_and_are_named(bench: CompareBench) -> None:
    with pytest.raises(BadField, match=r"5 of 35 images cannot be read: .*damaged-\d.png, .* The first: not a"):
        bench.compare(replace(bench.data, items=with_damaged(bench, 5, 30)))


@pytest.mark.parametrize("stage", ["reading", "features", "baselines, seed 0", "cnn, seed 0: training", "dimensions"])
def test_a_cancelled_comparison_stops_where_it_is_and_leaves_nothing_half_done(bench: CompareBench, stage: str) -> None:
    class Stopping(list[Progress]):
        def append(self, progress: Progress) -> None:
            super().append(progress)
            if progress.stage == stage:
                bench.cancel.set()

    bench.told = Stopping()

    with pytest.raises(Cancelled):
        bench.compare()

    assert bench.told[-1].stage == stage
    # A training that was done by then is kept for the next time.
    kept = {file.name for file in bench.folder.glob("trainings/*/*")}
    assert kept == ({"version", "times.json"} if stage == "dimensions" else set())
    assert not list(bench.folder.glob("trainings/.part-*"))


def test_images_asked_for_are_taken_of_both_parts_in_proportion(bench: CompareBench) -> None:
    found = bench.compare(models=("knn",), images=24)

    assert len(found.train.items) + len(found.exam.items) == pytest.approx(24, abs=2)
    assert len(found.exam.items) == pytest.approx(6, abs=1)
    assert "of train" in found.words


@pytest.mark.parametrize("images", [62, 78])
def test_a_set_hardly_larger_than_asked_for_keeps_nearly_all_of_it_groups_or_not(tmp_path: Path, images: int) -> None:
    larger = CompareBench(tmp_path / "larger")
    grouped = tuple(replace(item, group=str(row // 2)) for row, item in enumerate(larger.data.items))

    for data in (larger.data, replace(larger.data, items=grouped)):
        found = larger.compare(data, models=("knn",), images=images)
        assert len(found.train.items) + len(found.exam.items) == pytest.approx(images, abs=2)


def test_quick_terms_are_shorter_in_every_respect(bench: CompareBench) -> None:
    full, quick = (form(bench.terms(epochs=7).plan) for form in (Terms.full, Terms.quick))

    assert quick.candidates < full.candidates
    assert quick.rounds < full.rounds
    assert len(quick.widths) < len(full.widths)
    assert quick.plan.epochs < full.plan.epochs
    assert quick.images > 0
    assert Terms.quick(bench.terms().plan, images=90).images == 90


def test_an_image_that_became_unreadable_under_way_is_no_score(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    (tmp_path / "gone.png").write_bytes(b"no picture")
    trained = TrainedNetwork(folder, read_card(folder), fit_s=0.0)

    with pytest.raises(BadField, match=r"gone\.png became unreadable"):
        trained.scores([Item("gone.png", tmp_path / "gone.png", Label.GOOD)], lambda done: None)
