"""Heatmaps and exports in a comparison: what ONNX Runtime says of the same files, held against marks known here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from inspectbus.domain.model_version import EXPORT_FILE, ModelCard
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.classifier import Classifier
from inspectbus.networks.trained import load_trained
from inspectbus.stores.datasets import Item, Label, split
from inspectbus.stores.models import read_card
from inspectbus.training.comparison.conductor import CNN_KEY, Comparison
from inspectbus.training.comparison.heatmaps import Explained, explained, masked, point
from inspectbus.training.comparison.measures import surest_errors
from inspectbus.training.comparison.record import as_record
from tests.doubles.compared import CompareBench
from tests.doubles.parts import scratch_mask
from tests.doubles.tiny_model import BRIGHT, DARK, tiny_version

Said = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scores (N,) and heatmaps (N, h, w)."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> CompareBench:
    torch.set_num_threads(1)
    return CompareBench(tmp_path_factory.mktemp("marked"), good=24, defective=24, marked=True)


@pytest.fixture(scope="module")
def found(bench: CompareBench) -> Comparison:
    """Of the held-out images one of each class has the other's label, so that there are errors."""
    held_out = split(bench.data).held_out.items
    lied = {next(item.name for item in held_out if item.label is label): label for label in Label}
    turned = {Label.GOOD: Label.DEFECTIVE, Label.DEFECTIVE: Label.GOOD}
    names = {item.name for item in held_out}
    items = [replace(item, half="test" if item.name in names else "train") for item in bench.data.items]
    items = [replace(item, label=turned[lied[item.name]]) if item.name in lied else item for item in items]
    return bench.compare(replace(bench.data, items=tuple(items)), models=("cnn",), epochs=1, seeds=2)


@pytest.fixture(scope="module")
def versions(bench: CompareBench, found: Comparison) -> list[tuple[ModelCard, Path]]:
    """Each seed's card, and its export."""
    exports = (bench.folder / "trainings").glob(f"*/version/{EXPORT_FILE}")
    return sorted(((read_card(file.parent), file) for file in exports), key=lambda each: each[0].seed)


@pytest.fixture(scope="module")
def said(versions: list[tuple[ModelCard, Path]], found: Comparison) -> list[Said]:
    """What the exports say of the held-out images, by seed."""
    pixels = [decode(item.path.read_bytes()) for item in found.exam.items]
    made = []
    for card, file in versions:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        made.append(session.run(None, {"images": np.stack([prepare(each, card.preparation) for each in pixels])}))
    return [(scores, heatmaps) for scores, heatmaps in made]


def silent(done: int) -> None:
    pass


# --- the export


def test_the_deviation_is_that_of_every_seeds_export_on_the_whole_held_out_part(
    found: Comparison, said: list[Said]
) -> None:
    export = as_record(found)["export"]

    apart = [
        np.abs(scores - answers.scores).max()
        for (scores, _), answers in zip(said, found.figures[CNN_KEY].answers, strict=True)
    ]
    assert export["largest"] == pytest.approx(max(apart), abs=1e-9)
    assert 0 < export["largest"] < 1e-4
    assert (export["images"], export["seeds"], export["differing"]) == (len(found.exam.items), 2, 0)


# --- heatmaps against masks


def heat_inside(heatmap: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """By torch's resizing, where the comparison uses OpenCV's."""
    sized = interpolate(torch.from_numpy(heatmap)[None, None], size=mask.shape, mode="bilinear", align_corners=False)
    positive = sized[0, 0].clamp(min=0).double().numpy()
    return float(positive[mask].sum() / positive.sum()) if positive.any() else 0.0


def test_every_marked_image_is_held_against_its_own_mark(found: Comparison, said: list[Said]) -> None:
    pointing = as_record(found)["pointing"]

    heat, covered = [], []
    for item, heatmap in zip(found.exam.items, said[0][1], strict=True):
        if item.label is Label.DEFECTIVE and item.mask:
            # Not read from the file, but rendered anew.
            mask = scratch_mask(2 * int(item.path.stem) + 1)
            heat.append(heat_inside(heatmap, mask))
            covered.append(mask.mean())
    assert pointing["images"] == len(heat) == found.exam.labels.sum() - 1
    assert pointing["heat"]["mean"] == pytest.approx(np.mean(heat), abs=1e-5)
    assert pointing["heat_by_chance"] == pytest.approx(np.mean(covered))
    assert pointing["hits"]["low"] <= pointing["hits"]["mean"] <= pointing["hits"]["high"]
    assert pointing["left_out"] == []


def test_the_hardest_images_carry_the_heatmaps_of_the_first_seed_in_the_units_of_the_score(
    found: Comparison, said: list[Said], versions: list[tuple[ModelCard, Path]]
) -> None:
    calibration = versions[0][0].calibration
    assert {hard.item.label for hard in found.hardest} == set(Label)
    rows = {item.name: row for row, item in enumerate(found.exam.items)}

    for hard in found.hardest:
        assert hard.explained is not None
        assert hard.explained.item == hard.item
        heat = said[0][1][rows[hard.item.name]] / calibration.temperature + calibration.bias
        np.testing.assert_allclose(hard.explained.heatmap, heat, atol=1e-4 / calibration.temperature)


def test_without_the_cnn_there_is_neither_export_nor_heatmap(tmp_path: Path) -> None:
    found = CompareBench(tmp_path, good=24, defective=16, marked=True).compare(models=("knn",))

    record = as_record(found)
    assert (record["pointing"], record["export"]) == (None, None)
    assert all(hard.explained is None for hard in found.hardest)
    assert found.shown != CNN_KEY


# --- alone, with a network that calls bright places defective

FIELD = Preparation(width=160, height=160)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tiny_version(tmp_path_factory.mktemp("bright"), preparation=FIELD)
    card: ModelCard = read_card(folder)
    return load_trained(folder, card.architecture, card.normalisation)


Mark = Callable[..., Item]


@pytest.fixture
def mark(tmp_path: Path) -> Mark:
    """Writes a wide dark image with a bright right end, and as its mask what it is given."""

    def write(name: str, mask: NDArray[np.uint8] | bytes | None = None, label: Label = Label.DEFECTIVE) -> Item:
        image = np.full((80, 320, 3), DARK, np.uint8)
        image[:, 240:] = BRIGHT
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
        drawn = tmp_path / f"{name}-mask.png"
        if isinstance(mask, bytes):
            drawn.write_bytes(mask)
        elif mask is not None:
            cv2.imwrite(str(drawn), mask)
        return Item(name, tmp_path / f"{name}.png", label, mask=None if mask is None else drawn)

    return write


def right_end(height: int = 80, width: int = 320) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    mask[:, 3 * width // 4 :] = 255
    return mask


def test_a_heatmap_of_the_square_that_a_network_saw_lies_where_the_wide_image_is_marked(
    network: Classifier, mark: Mark
) -> None:
    there = point(network, FIELD, [mark("there", right_end())], silent).agreement
    elsewhere = point(network, FIELD, [mark("elsewhere", right_end()[:, ::-1].copy())], silent).agreement

    assert there is not None
    assert elsewhere is not None
    assert there.hits.mean == 1
    assert there.heat.mean > 2 * there.heat_by_chance
    assert elsewhere.hits.mean == 0


def test_marks_that_cannot_be_used_are_left_out_by_name(network: Classifier, mark: Mark) -> None:
    items = [
        mark("sound", right_end()),
        mark("small", right_end(40, 160)),
        mark("broken", b"no picture"),
        mark("empty", np.zeros((80, 320), np.uint8)),
    ]

    found = point(network, FIELD, items, silent)

    assert found.left_out == ("small", "broken", "empty")
    assert found.agreement is not None
    assert found.agreement.images == 1
    assert [each.explained.item.name for each in found.shown] == ["sound"]


def test_no_usable_mark_at_all_leaves_names_and_no_figures(network: Classifier, mark: Mark) -> None:
    found = point(network, FIELD, [mark("empty", np.zeros((80, 320), np.uint8))], silent)

    assert (found.agreement, found.shown, found.left_out) == (None, [], ("empty",))


def test_an_image_that_cannot_be_read_any_more_is_told(network: Classifier, mark: Mark) -> None:
    gone = mark("gone", right_end())
    gone.path.unlink()

    with pytest.raises(BadField, match=r"gone\.png cannot be read"):
        point(network, FIELD, [gone], silent)


def test_only_defective_images_with_a_mark_are_held_against_it(mark: Mark) -> None:
    items = [mark("marked", right_end()), mark("unmarked"), mark("good", right_end(), Label.GOOD)]

    assert [item.name for item in masked(items)] == ["marked"]


def test_more_images_than_a_batch_keep_their_order_and_size(network: Classifier, mark: Mark) -> None:
    items = [mark(f"part-{number}") for number in range(11)]

    looks: list[Explained] = list(explained(network, FIELD, items))

    assert [look.item for look in looks] == items
    assert {(look.width, look.height, look.picture.shape) for look in looks} == {(320, 80, (160, 160, 3))}


# --- what is shown


def test_the_surest_errors_come_first_and_defective_ones_before_good_ones() -> None:
    labels = np.array([1, 0, 1, 0, 1, 0, 1])
    scores = np.array([0.3, 0.6, 0.9, 0.1, 0.2, 0.8, 0.4])

    assert surest_errors(labels, scores, 0.5, count=2) == [4, 0, 5, 1]
    assert surest_errors(labels, scores, 0.5, count=9) == [4, 0, 6, 5, 1]
    assert surest_errors(labels, np.where(labels == 1, 0.5, 0.4), 0.5, count=2) == []
