"""A whole training on rendered parts with a tiny network: seconds, and everything a version promises."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from structlog.testing import capture_logs

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import EXPORT_FILE, WEIGHTS_FILE, ModelCard
from inspectbus.domain.scores import Confusion
from inspectbus.domain.thresholds import Thresholds
from inspectbus.errors import BadField, CorruptModel, Internal
from inspectbus.imaging.decoding import decode
from inspectbus.networks.trained import load_trained
from inspectbus.stores.datasets import Dataset, Item, Label, cut, fingerprint, open_dataset, split
from inspectbus.stores.models import read_card, write_card
from inspectbus.training import evaluation, features, fitting, trainer
from inspectbus.training.calibration import Floats, expected_calibration_error
from inspectbus.training.evaluation import evaluate, judged, judged_by, labels_of, logits_of
from inspectbus.training.export import MAX_DEVIATION, ScoreBatch, open_export
from inspectbus.training.plan import Cancelled, Plan, Progress
from inspectbus.training.trainer import train
from inspectbus.training.validation import VALIDATION_FILE, f1_scores, read_validation
from tests.doubles.parts import TINY_BACKBONE, write_plates, write_set, write_tiny_weights
from tests.doubles.tiny_model import tiny_version

STAGES = ["reading", "features", "training", "threshold", "exporting", "registering"]


class Bench:
    """A data set, weights and a cache on one disk, to train on as often as a test wants."""

    def __init__(self, folder: Path, **shape: Any) -> None:
        self.folder = folder
        self.parts = split(open_dataset(str(write_set(folder / "plates", **shape))))
        self.weights = write_tiny_weights(folder / f"{TINY_BACKBONE}.safetensors")
        self.told: list[Progress] = []
        self.cancel = threading.Event()
        self.versions = 0

    def train(
        self, data: Dataset | None = None, cache: str = "cache", checkpoint: Path | None = None, **plan: Any
    ) -> tuple[Path, ModelCard]:
        self.versions += 1
        out = self.folder / f"version-{self.versions}"
        settled = {"data": "plates", "model": "plates", "backbone": TINY_BACKBONE, "epochs": 4, "seed": 0}
        card = train(
            Plan.model_validate({**settled, "input_size": 64, **plan}),
            data or self.parts.train,
            out,
            on_progress=self.told.append,
            cancel=self.cancel,
            cache_dir=self.folder / cache,
            weights=self.weights,
            checkpoint_dir=checkpoint,
        )
        return out, card


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path, ModelCard]:
    torch.set_num_threads(1)
    bench = Bench(tmp_path_factory.mktemp("trained"), good=72, defective=48)
    return bench, *bench.train(epochs=12)


# --- what comes out


def test_scratches_are_learnt_and_told_apart_on_parts_never_seen(trained: tuple[Bench, Path, ModelCard]) -> None:
    bench, folder, card = trained

    found = evaluate(folder, bench.parts.held_out.items)

    assert (found.scores["average_precision"] or 0) > 0.9
    assert (found.scores["f1"] or 0) > 0.75
    assert found.version == card.version
    assert found.unreadable == 0


def test_the_version_is_whole_and_its_pinned_images_give_their_scores(trained: tuple[Bench, Path, ModelCard]) -> None:
    _, folder, card = trained

    assert read_card(folder, card.version) == card
    assert set(card.files) == {WEIGHTS_FILE, EXPORT_FILE, VALIDATION_FILE, *(image.file for image in card.pinned)}
    network = load_trained(folder, card.architecture, card.normalisation)
    for image in card.pinned:
        pixels = decode((folder / image.file).read_bytes())
        assert pixels.shape == (card.preparation.height, card.preparation.width, 3)
        assert scored(logits_of(network, pixels[None]), card.calibration)[0] == pytest.approx(image.score, abs=1e-6)
    assert min(image.score for image in card.pinned) < card.threshold <= max(image.score for image in card.pinned)


def test_the_scores_on_the_card_are_those_of_the_written_weights_on_the_validation_part(
    trained: tuple[Bench, Path, ModelCard],
) -> None:
    bench, folder, card = trained
    _, validation, _ = cut(bench.parts.train.items, trainer.VALIDATION_SHARE, card.seed)

    network = load_trained(folder, card.architecture, card.normalisation)
    logits = np.array([logit for _, logit in judged(network, card.preparation, validation)])
    scores, labels = scored(logits, card.calibration), labels_of(validation)

    precision, recall, f1, _ = precision_recall_fscore_support(labels, scores >= card.threshold, average="binary")
    expected = {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "average_precision": average_precision_score(labels, scores),
    }
    assert card.validation_scores == pytest.approx(expected)


def test_the_version_keeps_what_it_said_of_every_validation_image(trained: tuple[Bench, Path, ModelCard]) -> None:
    bench, folder, card = trained
    _, validation, _ = cut(bench.parts.train.items, trainer.VALIDATION_SHARE, card.seed)

    kept = read_validation((folder / VALIDATION_FILE).read_bytes())

    assert VALIDATION_FILE in card.files
    by_content = {hashlib.sha256(item.read()).hexdigest(): item.label is Label.DEFECTIVE for item in validation}
    assert dict(zip(kept.images, kept.labels, strict=True)) == by_content
    expected = average_precision_score(kept.labels, kept.scores)
    assert card.validation_scores["average_precision"] == pytest.approx(expected)
    once = np.ones((1, len(kept.labels)), np.int64)
    found = f1_scores(kept.labels, kept.scores, card.threshold, once)
    assert card.validation_scores["f1"] == pytest.approx(found[0])


def test_the_card_says_what_it_was_trained_on(trained: tuple[Bench, Path, ModelCard]) -> None:
    bench, _, card = trained

    assert card.data.sha256 == fingerprint(bench.parts.train.items)
    assert card.data.name == "plates"
    assert (card.data.train_good, card.data.train_defective) == (43, 29)
    assert (card.data.validation_good, card.data.validation_defective) == (11, 7)
    assert "75% and 25%" in card.data.split
    assert card.code_revision.partition("+")[2]


def test_progress_goes_through_every_stage_to_its_end(trained: tuple[Bench, Path, ModelCard]) -> None:
    bench, _, _ = trained

    assert list(dict.fromkeys(progress.stage for progress in bench.told)) == STAGES
    for stage in STAGES:
        told = [progress for progress in bench.told if progress.stage == stage]
        assert [progress.done for progress in told] == sorted(progress.done for progress in told)
        assert told[-1].done == told[-1].total > 0 or stage == "training"
    epochs = [
        progress.figures
        for progress in bench.told
        if progress.stage == "training" and progress.figures and not progress.steps
    ]
    assert [figures["epoch"] for figures in epochs] == list(range(1, len(epochs) + 1))
    assert set(epochs[0]) >= {"train_loss", "validation_loss", "validation_ap", "learning_rate"}
    assert epochs[-1]["learning_rate"] < epochs[0]["learning_rate"]


# --- the export


def test_the_export_in_the_version_was_proven_on_the_validation_part_and_the_card_says_so(
    trained: tuple[Bench, Path, ModelCard],
) -> None:
    bench, folder, card = trained
    _, validation, _ = cut(bench.parts.train.items, trainer.VALIDATION_SHARE, card.seed)

    network = load_trained(folder, card.architecture, card.normalisation)
    ours = scored(np.array([logit for _, logit in judged(network, card.preparation, validation)]), card.calibration)
    theirs = np.array(
        [score for _, score in judged_by(open_export(folder / EXPORT_FILE), card.preparation, validation)]
    )

    assert card.export is not None
    assert (card.export.images, card.export.heatmap) == (len(validation), (2, 2))
    assert 0 < card.export.deviation == pytest.approx(np.abs(ours - theirs).max(), rel=0.01)
    assert card.export.deviation < 1e-5
    assert ((ours >= card.threshold) == (theirs >= card.threshold)).all()


def test_the_pinned_images_get_their_scores_from_the_export_too(trained: tuple[Bench, Path, ModelCard]) -> None:
    _, folder, card = trained
    pixels = np.stack([decode((folder / image.file).read_bytes()) for image in card.pinned])

    assert open_export(folder / EXPORT_FILE)(pixels) == pytest.approx([image.score for image in card.pinned], abs=1e-5)


def test_an_export_that_judges_otherwise_fails_the_training_and_nothing_is_finished(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_spoilt(file: Path) -> ScoreBatch:
        score = open_export(file)

        def spoilt(images: NDArray[np.uint8]) -> Floats:
            scores: Floats = np.abs(score(images) - 2 * MAX_DEVIATION)
            return scores

        return spoilt

    monkeypatch.setattr(trainer, "open_export", open_spoilt)

    with pytest.raises(Internal, match=rf"backbone {TINY_BACKBONE} does not say what the network says"):
        bench.train(epochs=1)

    assert not (bench.folder / "version-1/model.json").exists()


def test_a_truncated_export_is_refused_by_its_name(trained: tuple[Bench, Path, ModelCard], tmp_path: Path) -> None:
    _, folder, card = trained
    copy = Path(shutil.copytree(folder, tmp_path / card.version))
    (copy / EXPORT_FILE).write_bytes((folder / EXPORT_FILE).read_bytes()[:-1000])

    with pytest.raises(CorruptModel, match=r"model\.onnx") as refused:
        evaluate(copy, trained[0].parts.held_out.items)
    assert refused.value.field == EXPORT_FILE


# --- the same again


def test_the_same_seed_gives_the_same_version(bench: Bench) -> None:
    _, first = bench.train(cache="one")
    _, second = bench.train(cache="two")

    assert first.files == second.files
    assert (first.threshold, first.validation_scores, first.pinned) == (
        second.threshold,
        second.validation_scores,
        second.pinned,
    )


def test_another_seed_gives_another_version_of_the_same_data(bench: Bench) -> None:
    _, first = bench.train()
    _, second = bench.train(seed=1)

    assert first.files[WEIGHTS_FILE] != second.files[WEIGHTS_FILE]
    assert first.data.sha256 == second.data.sha256


def test_a_second_training_takes_its_features_from_the_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = bench.train()

    def computed(*_: object) -> None:
        raise AssertionError("a map was computed again")

    monkeypatch.setattr(features, "_through", computed)
    _, second = bench.train()

    assert first.files == second.files


# --- the whole network


WHOLE: dict[str, Any] = {"depth": "whole", "batch": 16, "precision": "fp32"}


def test_the_whole_network_learns_from_pixels_and_tells_parts_apart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, good=60, defective=40)

    folder, card = bench.train(**WHOLE, epochs=6, views=4, augmentation={"light": 0.1, "noise": 2.0})

    assert list(dict.fromkeys(progress.stage for progress in bench.told)) == [
        "reading",
        "preparing",
        "training",
        "threshold",
        "exporting",
        "registering",
    ]
    found = evaluate(folder, bench.parts.held_out.items)
    assert (found.scores["average_precision"] or 0) > 0.9
    assert found.export is not None
    assert (found.export.differing, card.architecture.views) == (0, 4)
    # As every engine would: with the network of the card.
    network = load_trained(folder, card.architecture, card.normalisation)
    for image in card.pinned:
        pixels = decode((folder / image.file).read_bytes())
        mirrored = np.ascontiguousarray(pixels[:, ::-1])
        logits = [logits_of(network, each[None]) for each in (pixels, mirrored)]
        assert scored(logits[0], card.calibration)[0] == pytest.approx(image.score, abs=1e-6)
        assert logits[0] == pytest.approx(logits[1], abs=1e-4)


def test_the_same_seed_gives_the_same_whole_network(bench: Bench) -> None:
    _, first = bench.train(**WHOLE, epochs=2)
    _, second = bench.train(**WHOLE, epochs=2)
    _, other = bench.train(**WHOLE, epochs=2, seed=1)

    assert first.files == second.files
    assert first.files[WEIGHTS_FILE] != other.files[WEIGHTS_FILE]


def test_steps_within_an_epoch_are_told(bench: Bench) -> None:
    bench.train(**WHOLE, epochs=2)

    training = [progress for progress in bench.told if progress.stage == "training"]
    assert [(progress.done, progress.step, progress.steps) for progress in training[:4]] == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 0),
        (1, 1, 1),
    ]


def test_auto_measures_for_the_whole_network_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fastest(*_: object) -> str:
        asked.append("measured")
        return "bf16"

    monkeypatch.setattr(fitting, "fastest", fastest)

    bench.train(epochs=1)
    assert asked == []
    _, fp32 = bench.train(**WHOLE, epochs=1)
    assert asked == []
    _, auto = bench.train(**{**WHOLE, "precision": "auto"}, epochs=1)
    assert asked == ["measured"]
    assert fp32.files[WEIGHTS_FILE] != auto.files[WEIGHTS_FILE]


def test_a_checkpoint_of_another_plan_is_refused_by_the_fields_that_differ(bench: Bench, tmp_path: Path) -> None:
    bench.train(**WHOLE, epochs=1, checkpoint=tmp_path / "checkpoint")
    bench.told.clear()

    with pytest.raises(BadField) as refused:
        bench.train(**WHOLE, epochs=2, seed=1, checkpoint=tmp_path / "checkpoint")

    assert refused.value.field == "checkpoint"
    assert "plan.epochs is 2 here and 1 there; plan.seed is 1 here and 0 there" in refused.value.message
    assert bench.told == [], "before an image is read"


def test_parts_that_have_an_up_are_only_mirrored_at_either_depth(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = features.extract

    def extract(items: Any, views: int, *rest: Any) -> Any:
        asked.append(views)
        return real(items, views, *rest)

    monkeypatch.setattr(trainer, "extract", extract)

    bench.train(epochs=1)
    bench.train(epochs=1, augmentation={"turns": False})
    bench.train(epochs=1, augmentation={"flips": False})

    assert asked[::2] == [4, 2, 1]
    assert asked[1::2] == [1, 1, 1]


# --- what a training cannot see


@pytest.mark.parametrize("plan", [{}, WHOLE], ids=["upper", "whole"])
def test_the_held_out_part_cannot_reach_a_selector_because_it_is_not_given(bench: Bench, plan: dict[str, Any]) -> None:
    # given what a training makes
    _, before = bench.train(**plan, epochs=2, cache="one")

    # when the held-out images are no more, and whatever is asked of them fails
    for item in bench.parts.held_out.items:
        item.path.unlink()
    _, after = bench.train(**plan, epochs=2, cache="two")

    # then epoch, calibration, threshold, scores and weights are the same
    assert after.model_copy(update={"created_at": ""}) == before.model_copy(update={"created_at": ""})
    # and there is one data set that can be given
    kinds = [kind for kind in get_type_hints(train).values() if kind is Dataset]
    assert kinds == [Dataset]


# --- other data


def test_colour_images_of_different_sizes_are_trained_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sizes=[(64, 64), (120, 48), (40, 200)])

    _, card = bench.train(epochs=1)

    assert (card.preparation.width, card.preparation.height) == (64, 64)


def test_validation_is_cut_by_group_where_groups_are_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given parts of which there are three images each
    items = sorted(bench.parts.train.items, key=lambda item: item.name)
    grouped = [replace(item, group=f"{item.label}-{number // 3}") for number, item in enumerate(items)]
    seen: list[list[Item]] = []
    real = features.extract

    def extract(entries: list[tuple[Item, str]], *rest: Any) -> Any:
        seen.append([item for item, _ in entries])
        return real(entries, *rest)

    monkeypatch.setattr(trainer, "extract", extract)

    # When a model learns from them
    _, card = bench.train(replace(bench.parts.train, items=tuple(grouped)), epochs=1)

    # Then no part is on both sides
    learnt, validated = seen
    assert not {item.group for item in learnt} & {item.group for item in validated}
    assert len(learnt) + len(validated) == len(items)
    assert "by group" in card.data.split


def test_doubtful_labels_soften_the_target(bench: Bench) -> None:
    item = bench.parts.train.items[0]
    doubtful = [
        replace(item, label=Label.DEFECTIVE, probability=2 / 3),
        replace(item, label=Label.GOOD, probability=1 / 3),
        replace(item, label=Label.DEFECTIVE),
    ]

    assert trainer._targets([(one, "") for one in doubtful]) == pytest.approx([5 / 6, 1 / 6, 1.0])


def with_damaged(bench: Bench, damaged: int, sound: int) -> Dataset:
    """The bench's training part among many more, of which some are text files called .png."""
    folder = bench.folder / "more"
    files = write_plates(folder, damaged + sound, scratched=False, first_seed=500)
    for file in files[:damaged]:
        file.write_text("no picture")
    more = tuple(Item(f"more/{file.name}", file, Label.GOOD) for file in files)
    return replace(bench.parts.train, items=(*bench.parts.train.items, *more))


def test_one_damaged_image_among_many_is_left_out_and_told(bench: Bench) -> None:
    data = with_damaged(bench, damaged=1, sound=90)

    _, card = bench.train(data, epochs=1)

    learnt = card.data.train_good + card.data.train_defective
    assert learnt + card.data.validation_good + card.data.validation_defective == len(data.items) - 1
    assert "1 unreadable images left out" in card.data.split
    reading = [progress for progress in bench.told if progress.stage == "reading"]
    assert reading[-1].figures["unreadable"] == 1


def test_copies_on_both_sides_of_the_validation_cut_are_told(bench: Bench) -> None:
    # given every image twice, the second time mirrored and saved as a JPEG
    copies = []
    for item in bench.parts.train.items:
        file = bench.folder / f"copy-{item.name.replace('/', '-')}.jpg"
        cv2.imwrite(str(file), cv2.flip(cv2.imread(str(item.path)), 1))
        copies.append(replace(item, name=f"copies/{item.name}", path=file))
    items = (*bench.parts.train.items, *copies)

    # when
    with capture_logs() as logs:
        _, card = bench.train(replace(bench.parts.train, items=items), epochs=1)

    # then as many are told as lost their twin to the training side
    part = {item.name.removeprefix("copies/") for item in cut(items, trainer.VALIDATION_SHARE, 0)[1]}
    rest = {item.name.removeprefix("copies/") for item in cut(items, trainer.VALIDATION_SHARE, 0)[0]}
    told = [line for line in logs if line["event"].startswith("validation images look like training images")]
    assert told[0]["images"] == len(part & rest) > 0
    assert f"{len(part & rest)} of {told[0]['of']} validation images look like training images" in card.data.split


def test_nothing_is_said_of_copies_where_there_are_none(trained: tuple[Bench, Path, ModelCard]) -> None:
    assert "look like" not in trained[2].data.split


def test_the_code_revision_covers_every_room_a_training_passes_through() -> None:
    """All that trainer.py imports of ours, and what that imports in turn, save what decides nothing of the outcome."""
    package = Path(trainer.__file__).parents[1]
    named = {file for source in trainer._SOURCES for file in (package / source, *(package / source).glob("*.py"))}
    beside = {"errors", "domain/names", "domain/model_version", "domain/preparation", "domain/thresholds"}
    beside |= {"domain/scores", "domain/decision", "domain/strict_yaml", "stores/models"}

    met: set[Path] = set()
    waiting = [Path(trainer.__file__)]
    while waiting:
        file = waiting.pop()
        met.add(file)
        for module in re.findall(r"^\s*from inspectbus\.([\w.]+) import", file.read_text(), re.MULTILINE):
            stem = package / module.replace(".", "/")
            for found in (stem.with_suffix(".py"), stem / "__init__.py"):
                if found.exists() and found not in met and module.replace(".", "/") not in beside:
                    waiting.append(found)

    strange = sorted(str(file.relative_to(package)) for file in met - named)
    assert [name for name in strange if not name.startswith("stores/datasets/check/")] == []


def test_many_damaged_images_end_the_training_and_are_named(bench: Bench) -> None:
    with pytest.raises(BadField, match=r"5 of 45 images .*: more/000\.png, .*, \.\.\.\. The first: not a"):
        bench.train(with_damaged(bench, damaged=5, sound=10))


def test_one_class_alone_is_refused(bench: Bench) -> None:
    good = tuple(item for item in bench.parts.train.items if item.label is Label.GOOD)

    with pytest.raises(BadField, match="no defective images"):
        bench.train(replace(bench.parts.train, items=good))


def test_a_backbone_nobody_knows_is_refused_before_an_image_is_read(bench: Bench) -> None:
    with pytest.raises(BadField, match="no timm or torchvision backbone"):
        bench.train(backbone="efficientnet_of_my_dreams")
    assert bench.told == []


# --- stopping


@pytest.mark.parametrize("stage", STAGES)
def test_a_cancelled_training_stops_in_whatever_stage_it_is(bench: Bench, stage: str) -> None:
    class Stopping(list[Progress]):
        def append(self, progress: Progress) -> None:
            super().append(progress)
            if progress.stage == stage and (progress.done or stage == "training"):
                bench.cancel.set()

    bench.told = Stopping()

    with pytest.raises(Cancelled):
        bench.train()

    assert bench.told[-1].stage == stage
    assert not (bench.folder / "version-1/model.json").exists()


# --- evaluating


def test_an_evaluation_agrees_with_scikit_learn(trained: tuple[Bench, Path, ModelCard]) -> None:
    bench, folder, card = trained
    items = bench.parts.held_out.items
    told: list[tuple[int, int]] = []

    found = evaluate(folder, items, on_progress=lambda done, total: told.append((done, total)))

    network = load_trained(folder, card.architecture, card.normalisation)
    logits = np.array([logit for _, logit in judged(network, card.preparation, items)])
    scores, labels = scored(logits, card.calibration), labels_of(items)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, scores >= card.threshold, average="binary")
    assert (found.scores["precision"], found.scores["recall"], found.scores["f1"]) == pytest.approx(
        (precision, recall, f1)
    )
    assert found.average_precision == pytest.approx(average_precision_score(labels, scores))
    assert told[-1] == (len(items), len(items))


def test_an_evaluation_holds_what_lies_between_the_thresholds(
    trained: tuple[Bench, Path, ModelCard], tmp_path: Path
) -> None:
    bench, folder, card = trained
    items = bench.parts.held_out.items
    network = load_trained(folder, card.architecture, card.normalisation)
    scores = scored(np.array([logit for _, logit in judged(network, card.preparation, items)]), card.calibration)
    low, high = np.quantile(scores, [0.3, 0.6])
    shutil.copytree(folder, tmp_path / "banded")
    write_card(tmp_path / "banded", card.model_copy(update={"qualified_below": low, "threshold": high}))

    found = evaluate(tmp_path / "banded", items)

    labels, called, held = labels_of(items) == 1, scores >= high, (scores >= low) & (scores < high)
    assert found.thresholds == Thresholds(low, high)
    assert held.any()
    assert found.confusion == Confusion(
        true_positives=int((called & labels).sum()),
        false_positives=int((called & ~labels).sum()),
        true_negatives=int((~called & ~held & ~labels).sum()),
        false_negatives=int((~called & ~held & labels).sum()),
        held_defective=int((held & labels).sum()),
        held_good=int((held & ~labels).sum()),
    )
    assert found.scores["expected_calibration_error"] == expected_calibration_error(labels.astype(np.int64), scores)


def test_an_evaluation_counts_what_it_cannot_read(trained: tuple[Bench, Path, ModelCard], tmp_path: Path) -> None:
    bench, folder, _ = trained
    (tmp_path / "text.png").write_text("no picture")
    damaged = Item("text.png", tmp_path / "text.png", Label.GOOD)

    found = evaluate(folder, [damaged, *bench.parts.held_out.items])

    assert found.unreadable == 1
    assert found.confusion == evaluate(folder, bench.parts.held_out.items).confusion
    with pytest.raises(BadField, match="none of 1 images can be read"):
        evaluate(folder, [damaged])


def test_an_evaluation_needs_labels_and_heeds_its_cancel_event(trained: tuple[Bench, Path, ModelCard]) -> None:
    bench, folder, _ = trained
    nameless = replace(bench.parts.held_out.items[0], label=None)
    stop = threading.Event()
    stop.set()

    with pytest.raises(BadField, match="has no label"):
        evaluate(folder, [nameless])
    with pytest.raises(Cancelled):
        evaluate(folder, bench.parts.held_out.items, cancel=stop)


def test_an_evaluation_lets_the_export_judge_the_same_images(
    trained: tuple[Bench, Path, ModelCard], tmp_path: Path
) -> None:
    bench, folder, _ = trained
    items = bench.parts.held_out.items
    (tmp_path / "text.png").write_text("no picture")

    found = evaluate(folder, [*items[:3], Item("text.png", tmp_path / "text.png", Label.GOOD), *items[3:]]).export

    assert found is not None
    assert (found.images, found.differing) == (len(items), 0)
    assert 0 < found.largest < 1e-5


def test_an_evaluation_goes_without_an_export_where_there_is_none_or_nothing_to_run_it(
    trained: tuple[Bench, Path, ModelCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, folder, card = trained
    items = bench.parts.held_out.items[:4]

    assert evaluate(tiny_version(tmp_path, preparation=card.preparation), items).export is None

    monkeypatch.setattr(evaluation, "runtime_installed", lambda: False)
    assert evaluate(folder, items).export is None


def test_an_average_precision_of_one_class_is_none(trained: tuple[Bench, Path, ModelCard]) -> None:
    bench, folder, _ = trained

    found = evaluate(folder, [item for item in bench.parts.held_out.items if item.label is Label.GOOD])

    assert found.average_precision is None
    assert found.scores["recall"] is None


def test_weights_that_do_not_fit_the_card_are_refused(trained: tuple[Bench, Path, ModelCard], tmp_path: Path) -> None:
    _, _, card = trained
    (tmp_path / WEIGHTS_FILE).write_bytes(b"nothing")

    with pytest.raises(CorruptModel, match=r"weights\.safetensors does not fit"):
        load_trained(tmp_path, card.architecture, card.normalisation)
