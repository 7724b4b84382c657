"""Pixels: prepared once, varied each time, made ahead by one thread that ends."""

from __future__ import annotations

import hashlib
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField
from inspectbus.imaging import Image
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.pretrained import load_pretrained
from inspectbus.stores.datasets import Item, Label
from inspectbus.training import augmentation
from inspectbus.training.augmentation import Augmentation
from inspectbus.training.fitting import Upper
from inspectbus.training.pixels import AHEAD, Pixels, from_pixels, load
from tests.doubles.parts import TINY_BACKBONE, write_plates, write_tiny_weights

PREPARATION = Preparation(width=64, height=64)
PLAIN = Augmentation(flips=False, turns=False)
BATCHES = np.split(np.random.default_rng(1).permutation(12), 4)


@pytest.fixture
def items(tmp_path: Path) -> list[tuple[Item, str]]:
    files = write_plates(tmp_path / "images", 12, scratched=True, sizes=((64, 64), (90, 50)))
    return [(Item(file.name, file, Label.GOOD), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


@pytest.fixture
def pixels(items: list[tuple[Item, str]], tmp_path: Path) -> Pixels:
    return load(items, PREPARATION, Augmentation(noise=5.0), tmp_path, lambda done: None)


def shown(pixels: Pixels, seed: int, batches: list[np.ndarray] = BATCHES) -> list[torch.Tensor]:
    return list(pixels.shown(batches, np.random.default_rng(seed)))


def test_every_image_stands_prepared_in_its_row(pixels: Pixels, items: list[tuple[Item, str]]) -> None:
    prepared = np.stack([prepare(decode(item.read()), PREPARATION) for item, _ in items])

    kept = torch.cat(list(pixels.batches()))

    assert kept.dtype is torch.uint8
    assert np.array_equal(kept.numpy(), prepared)


def test_an_unvaried_batch_has_the_rows_it_was_asked_for(items: list[tuple[Item, str]], tmp_path: Path) -> None:
    pixels = load(items, PREPARATION, PLAIN, tmp_path, lambda done: None)
    kept = torch.cat(list(pixels.batches()))

    assert all(torch.equal(batch, kept[rows]) for rows, batch in zip(BATCHES, shown(pixels, 0), strict=True))


def test_the_same_draw_gives_the_same_batches_and_the_next_other_ones(pixels: Pixels) -> None:
    first, again, other = torch.cat(shown(pixels, 0)), torch.cat(shown(pixels, 0)), torch.cat(shown(pixels, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    rng = np.random.default_rng(0)
    epochs = [torch.cat(list(pixels.shown(BATCHES, rng))) for _ in range(2)]
    assert not torch.equal(*epochs)


def test_an_images_variation_does_not_depend_on_its_company(pixels: Pixels) -> None:
    together = shown(pixels, 0, [np.arange(12)])[0]
    alone = shown(pixels, 0, [np.array([row]) for row in range(12)])

    assert torch.equal(together, torch.cat(alone))


def test_leaving_early_ends_the_thread_which_was_never_far_ahead(
    pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def varied(image: Image, how: Augmentation, rng: np.random.Generator) -> Image:
        made.append(1)
        return augmentation.varied(image, how, rng)

    monkeypatch.setattr("inspectbus.training.pixels.varied", varied)
    batches = [np.array([row % 12]) for row in range(500)]

    with closing(pixels.shown(batches, np.random.default_rng(0))) as coming:
        next(coming)
        assert any(thread.name.startswith("training-pixels") for thread in threading.enumerate())

    assert not any(thread.name.startswith("training-pixels") for thread in threading.enumerate())
    assert len(made) <= 1 + AHEAD


def test_what_goes_wrong_in_the_thread_is_met_by_whoever_learns(
    pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def varied(*_: object) -> Image:
        raise MemoryError("no room")

    monkeypatch.setattr("inspectbus.training.pixels.varied", varied)

    with pytest.raises(MemoryError, match="no room"):
        shown(pixels, 0)
    assert not any(thread.name.startswith("training-pixels") for thread in threading.enumerate())


def test_an_image_that_changed_meanwhile_is_refused(items: list[tuple[Item, str]], tmp_path: Path) -> None:
    first, second = items[0][0].path, items[1][0].path
    assert first is not None
    assert second is not None
    first.write_bytes(second.read_bytes())

    with pytest.raises(BadField, match="changed while the training ran"):
        load(items, PREPARATION, PLAIN, tmp_path, lambda done: None)


def test_cut_below_everything_the_network_takes_pixels_and_is_the_same(pixels: Pixels, tmp_path: Path) -> None:
    network = load_pretrained(TINY_BACKBONE, write_tiny_weights(tmp_path / "tiny.safetensors")).network
    images = torch.cat(list(pixels.batches()))

    with torch.inference_mode():
        assert torch.equal(Upper(network, from_pixels(network)).eval()(images), network(images))
