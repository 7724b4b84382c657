"""Features: where a network is cut, and a cache that is right or silent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.pretrained import Pretrained, load_pretrained
from inspectbus.stores.datasets import Item, Label
from inspectbus.training import features
from inspectbus.training.features import FLIPS, FeatureCache, cut_network, extract
from tests.doubles.parts import TINY_BACKBONE, write_plates, write_tiny_weights

PREPARATION = Preparation(width=64, height=64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    torch.set_num_threads(1)
    return load_pretrained(TINY_BACKBONE, write_tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors"))


@pytest.fixture
def items(tmp_path: Path) -> list[tuple[Item, str]]:
    return hashed(write_plates(tmp_path / "images", 5, scratched=True))


def hashed(files: list[Path]) -> list[tuple[Item, str]]:
    return [(Item(file.name, file, Label.GOOD), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the lower part, per forward pass."""
    seen: list[int] = []
    real: Callable[..., features.Half] = features._through

    def through(lower: torch.nn.Module, images: list[np.ndarray]) -> features.Half:
        seen.append(len(images))
        return real(lower, images)

    monkeypatch.setattr(features, "_through", through)
    return seen


def nobody(done: int) -> None:
    del done


def test_lower_and_upper_part_together_are_the_network(tiny: Pretrained, items: list[tuple[Item, str]]) -> None:
    cut = cut_network(tiny, PREPARATION)
    images = torch.from_numpy(np.stack([prepare(decode(item.read()), PREPARATION) for item, _ in items]))

    with torch.inference_mode():
        maps = cut.lower(images)
        for _, module in cut.upper:
            maps = module(maps)
        whole = tiny.network.backbone(tiny.network.normalise(images))

    torch.testing.assert_close(maps, whole, rtol=1e-3, atol=1e-3)
    assert cut.upper


def test_the_cut_lies_at_a_sixteenth_of_the_side(tiny: Pretrained) -> None:
    assert cut_network(tiny, PREPARATION).shape[1:] == (4, 4)
    assert cut_network(tiny, Preparation(width=224, height=160)).shape[1:] == (10, 14)


def test_the_whole_network_gives_the_pooled_features_of_its_backbone(
    tiny: Pretrained, items: list[tuple[Item, str]], tmp_path: Path
) -> None:
    whole = cut_network(tiny, PREPARATION, whole=True)

    found = extract(items, 1, whole, PREPARATION, FeatureCache(tmp_path / "cache"), nobody).batch(np.arange(5))

    images = torch.from_numpy(np.stack([prepare(decode(item.read()), PREPARATION) for item, _ in items]))
    with torch.inference_mode():
        expected = tiny.network.backbone(tiny.network.normalise(images))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert whole.upper == []
    assert whole.key != cut_network(tiny, PREPARATION).key


def test_a_backbone_that_is_no_chain_is_taken_whole(tmp_path: Path) -> None:
    import torchvision  # only after inspectbus.networks

    state = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")

    cut = cut_network(load_pretrained("torchvision/shufflenet_v2_x0_5", tmp_path / "weights.pth"), PREPARATION)

    assert cut.upper == []
    assert cut.shape == (1024,)


def test_maps_are_those_of_the_flipped_pictures(
    tiny: Pretrained, items: list[tuple[Item, str]], tmp_path: Path
) -> None:
    cut = cut_network(tiny, PREPARATION)

    maps = extract(items, len(FLIPS), cut, PREPARATION, FeatureCache(tmp_path / "cache"), nobody)

    picture = prepare(decode(items[3][0].read()), PREPARATION)
    turned = {0: picture, 1: picture[:, ::-1], 2: picture[::-1], 3: picture[::-1, ::-1]}
    for view, image in turned.items():
        with torch.inference_mode():
            expected = cut.lower(torch.from_numpy(np.ascontiguousarray(image)[None]))
        torch.testing.assert_close(maps.batch(np.array([3]), view), expected, rtol=2e-3, atol=2e-3)


def test_a_second_extraction_finds_everything_in_the_cache(
    tiny: Pretrained, items: list[tuple[Item, str]], tmp_path: Path, passes: list[int]
) -> None:
    cut, cache = cut_network(tiny, PREPARATION), FeatureCache(tmp_path / "cache")
    told: list[int] = []
    first = extract(items, 2, cut, PREPARATION, cache, nobody)
    assert sum(passes) == 10

    passes.clear()
    second = extract(items, 2, cut, PREPARATION, cache, told.append)

    assert passes == []
    assert sum(told) == 10
    rows = np.arange(5)
    assert all(torch.equal(first.batch(rows, view), second.batch(rows, view)) for view in (0, 1))


def test_content_counts_and_not_the_name(
    tiny: Pretrained, items: list[tuple[Item, str]], tmp_path: Path, passes: list[int]
) -> None:
    cut, cache = cut_network(tiny, PREPARATION), FeatureCache(tmp_path / "cache")
    extract(items, 1, cut, PREPARATION, cache, nobody)
    passes.clear()

    renamed = items[0][0].path.rename(tmp_path / "elsewhere.png")
    extract(hashed([renamed]), 1, cut, PREPARATION, cache, nobody)
    assert passes == []

    items[1][0].path.write_bytes(items[2][0].read() + b"\0")
    extract(hashed([items[1][0].path]), 1, cut, PREPARATION, cache, nobody)
    assert passes == [1]


def test_another_preparation_or_other_weights_find_nothing(
    tiny: Pretrained, items: list[tuple[Item, str]], tmp_path: Path, passes: list[int]
) -> None:
    cache = FeatureCache(tmp_path / "cache")
    extract(items, 1, cut_network(tiny, PREPARATION), PREPARATION, cache, nobody)
    passes.clear()

    flat = Preparation(width=64, height=64, illumination="flatten")
    extract(items, 1, cut_network(tiny, flat), flat, cache, nobody)
    assert sum(passes) == 5

    other = load_pretrained(TINY_BACKBONE, write_tiny_weights(tmp_path / "other.safetensors", seed=1))
    extract(items, 1, cut_network(other, PREPARATION), PREPARATION, cache, nobody)
    assert sum(passes) == 10


@pytest.mark.parametrize("damage", ["a byte", "the end", "everything", "another array"])
def test_a_damaged_cache_file_is_computed_anew(
    tiny: Pretrained, items: list[tuple[Item, str]], tmp_path: Path, passes: list[int], damage: str
) -> None:
    cut, cache = cut_network(tiny, PREPARATION), FeatureCache(tmp_path / "cache")
    before = extract(items, 1, cut, PREPARATION, cache, nobody).batch(np.arange(5))
    file = sorted(cache.folder.glob("*/*.map"))[2]
    data = bytearray(file.read_bytes())
    if damage == "a byte":
        data[-1] ^= 1
    elif damage == "another array":
        body = b"\x93NUMPY not really"
        data = bytearray(hashlib.sha256(body).digest() + body)
    else:
        del data[0 if damage == "everything" else len(data) // 2 :]
    file.write_bytes(data)
    passes.clear()

    after = extract(items, 1, cut, PREPARATION, cache, nobody).batch(np.arange(5))

    assert passes == [1]
    torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3)
    passes.clear()
    extract(items, 1, cut, PREPARATION, cache, nobody)
    assert passes == []


def test_the_cache_keeps_what_was_used_last_within_its_limit(tmp_path: Path) -> None:
    maps = np.zeros((8, 8, 4), np.float16)
    cache = FeatureCache(tmp_path, limit_bytes=2000)
    for number in range(4):
        cache.put(f"{number:064x}", maps)
    for number, file in enumerate(sorted(tmp_path.glob("*/*"))):
        os.utime(file, (number, number))
    assert cache.get(f"{0:064x}", maps.shape) is not None

    cache.trim()

    assert [cache.get(f"{number:064x}", maps.shape) is not None for number in range(4)] == [True, False, False, True]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tiny: Pretrained, items: list[tuple[Item, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = FeatureCache(tmp_path / "cache")
    monkeypatch.setattr(Path, "write_bytes", full)

    maps = extract(items, 1, cut_network(tiny, PREPARATION), PREPARATION, cache, nobody)

    assert torch.isfinite(maps.batch(np.arange(5))).all()
    assert list(cache.folder.glob("*/*")) == []


def test_an_image_that_changes_under_way_is_refused(
    tiny: Pretrained, items: list[tuple[Item, str]], tmp_path: Path
) -> None:
    items[4][0].path.write_bytes(items[0][0].read())

    with pytest.raises(BadField, match="changed while the training ran"):
        extract(items, 1, cut_network(tiny, PREPARATION), PREPARATION, FeatureCache(tmp_path / "cache"), nobody)
