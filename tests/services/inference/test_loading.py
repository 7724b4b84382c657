"""A version folder becomes a warm engine, or is refused with the reason."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from inspectbus.domain.model_version import WEIGHTS_FILE, Architecture, Calibration, ModelCard, PinnedImage
from inspectbus.errors import CorruptModel, NotPossibleNow
from inspectbus.inference.engine import Engine, Images, Place, Scores, open_engine
from inspectbus.inference.pinned import check_pinned
from inspectbus.stores.models import read_card
from tests.doubles.tiny_model import BRIGHT, DARK, SIDE, flat_image, tiny_version

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_version(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / made.name))


def opened(folder: Path) -> tuple[Engine, ModelCard]:
    card = read_card(folder)
    return open_engine("torch", folder, card, Place("cpu")), card


def scorer(engine: Engine) -> Callable[[Images], Scores]:
    return lambda images: engine.infer(images).scores


def with_weights(folder: Path, change: Callable[[Weights], None]) -> ModelCard:
    """Changes the weights and lets the card agree: what hashes alone cannot find."""
    weights = load_file(folder / WEIGHTS_FILE)
    change(weights)
    save_file(weights, folder / WEIGHTS_FILE)
    sha256 = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    card = read_card_unverified(folder)
    return card.model_copy(update={"files": {**card.files, WEIGHTS_FILE: sha256}})


def read_card_unverified(folder: Path) -> ModelCard:
    return ModelCard.model_validate_json((folder / "model.json").read_bytes())


def test_scores_are_the_calibrated_sigmoid_one_per_image_in_order(made: Path) -> None:
    engine, _ = opened(made)
    levels = [BRIGHT, DARK, 127, BRIGHT]
    together = engine.infer(np.stack([flat_image(level) for level in levels])).scores
    alone = [engine.infer(flat_image(level)[None]).scores[0] for level in levels]
    assert together.shape == (4,)
    assert together.dtype == np.float32
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert together[0] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-4)
    assert together[1] == pytest.approx(1 / (1 + np.exp(4)), abs=1e-4)


def test_calibration_is_applied(tmp_path: Path) -> None:
    calibration = Calibration(temperature=2.0, bias=-0.5)
    engine, card = opened(tiny_version(tmp_path, calibration=calibration))
    check_pinned(scorer(engine), tmp_path / card.version, card, 4)
    assert engine.infer(flat_image(BRIGHT)[None]).scores[0] == pytest.approx(1 / (1 + np.exp(-(4 / 2 - 0.5))), abs=1e-4)


def test_the_knots_of_a_calibration_are_applied(tmp_path: Path) -> None:
    calibration = Calibration(knots=((0, 0.1), (0.5, 0.2), (1, 0.7)))
    engine, card = opened(tiny_version(tmp_path, calibration=calibration))
    check_pinned(scorer(engine), tmp_path / card.version, card, 4)
    sure = 1 / (1 + np.exp(-4))
    found = engine.infer(np.stack([flat_image(BRIGHT), flat_image(DARK)]))
    assert found.scores.tolist() == pytest.approx([0.2 + (sure - 0.5), 0.1 + 0.2 * (1 - sure)], abs=1e-4)


def test_an_image_is_judged_alike_whatever_shares_its_batch(made: Path) -> None:
    engine, _ = opened(made)
    noise = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)
    alone = [engine.infer(one[None]).scores[0] for one in noise]
    assert engine.infer(noise).scores.tolist() == pytest.approx(alone, abs=1e-5)


def test_a_sound_version_passes_its_pinned_images(made: Path) -> None:
    engine, card = opened(made)
    check_pinned(scorer(engine), made, card, batch_size=1)
    check_pinned(scorer(engine), made, card, batch_size=8)


def test_a_version_whose_pinned_image_scores_otherwise_here_is_refused_by_the_images_name(made: Path) -> None:
    engine, card = opened(made)
    first, second = card.pinned
    drifted = PinnedImage(file=second.file, score=second.score - card.pinned_tolerance * 1.5)
    with pytest.raises(CorruptModel) as refused:
        check_pinned(scorer(engine), made, card.model_copy(update={"pinned": (first, drifted)}), 4)
    assert refused.value.field == second.file


def test_half_precision_must_also_keep_the_verdict_of_every_pinned_image(made: Path) -> None:
    # Given a version whose threshold lies just below the score of its defective image
    card = read_card(made)
    card = card.model_copy(update={"threshold": card.pinned[1].score - 0.002})
    recorded = np.array([image.score for image in card.pinned], np.float32)

    def a_little_less(images: Images) -> Scores:
        return (recorded - np.float32(0.004))[: len(images)]

    # Then a score within the tolerance, but on the other side, is enough for float32 only
    assert check_pinned(a_little_less, made, card, 2) == pytest.approx(0.004, abs=1e-4)
    with pytest.raises(CorruptModel, match="another verdict") as refused:
        check_pinned(a_little_less, made, card, 2, verdicts=True)
    assert refused.value.field == card.pinned[1].file


def test_an_engine_that_gives_no_numbers_fails_its_pinned_images(made: Path) -> None:
    def broken(images: Images) -> Scores:
        return np.full(len(images), np.nan, np.float32)

    with pytest.raises(CorruptModel, match="nan"):
        check_pinned(broken, made, read_card(made), 4)


def test_weights_that_are_no_numbers_are_refused_by_the_tensors_name(folder: Path) -> None:
    def spoil(weights: Weights) -> None:
        weights["head.bias"][0] = float("nan")

    card = with_weights(folder, spoil)
    with pytest.raises(CorruptModel, match=r"head\.bias"):
        open_engine("torch", folder, card, Place("cpu"))


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("head.bias"),
        lambda weights: weights.update(surprise=torch.zeros(1)),
        lambda weights: weights.update({"head.weight": torch.zeros(1, 7)}),
        lambda weights: weights.update(mean=torch.zeros(1, 3, 1, 1)),
    ],
    ids=["missing", "unknown", "other shape", "its own normalisation"],
)
def test_weights_that_do_not_fit_the_architecture_are_refused(folder: Path, change: Callable[[Weights], None]) -> None:
    card = with_weights(folder, change)
    with pytest.raises(CorruptModel, match="does not fit"):
        open_engine("torch", folder, card, Place("cpu"))


def test_a_weights_file_of_another_kind_is_refused(folder: Path) -> None:
    card = read_card(folder)
    torch.save({"a": 1}, folder / WEIGHTS_FILE)  # a pickle
    with pytest.raises(CorruptModel, match="does not fit"):
        open_engine("torch", folder, card, Place("cpu"))
    (folder / WEIGHTS_FILE).write_bytes((2**62).to_bytes(8, "little") + b"{}")  # a header of exabytes
    with pytest.raises(CorruptModel, match="does not fit"):
        open_engine("torch", folder, card, Place("cpu"))


def test_an_unknown_architecture_is_refused(made: Path) -> None:
    card = read_card(made).model_copy(update={"architecture": Architecture(backbone="hf-hub:someone/something")})
    with pytest.raises(CorruptModel, match="architecture"):
        open_engine("torch", made, card, Place("cpu"))


@pytest.mark.parametrize("bad", ["text", "other size"])
def test_a_pinned_image_that_is_none_or_of_another_size_is_refused(folder: Path, bad: str) -> None:
    engine, card = opened(folder)
    target = folder / card.pinned[0].file
    if bad == "text":
        target.write_text("not an image")
    else:
        wide = tiny_version(folder.parent / "wide", preparation=card.preparation.model_copy(update={"width": 64}))
        shutil.copy(wide / "pinned/0.png", target)
    with pytest.raises(CorruptModel, match=r"0\.png"):
        check_pinned(scorer(engine), folder, card, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_refused(made: Path) -> None:
    with pytest.raises(NotPossibleNow, match="cuda") as refused:
        open_engine("torch", made, read_card(made), Place("cuda"))
    assert refused.value.field == "device"
