"""Near duplicates: found however a picture was saved, lit or turned, never among parts that are merely of one kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from inspectbus.imaging import Image
from inspectbus.stores.datasets.check import alike, near_across, sketch
from inspectbus.stores.datasets.check.likeness import ALIKE
from inspectbus.stores.datasets.check.sketches import TURNS, Sketch
from tests.doubles.pictures import textured

Change = Callable[[Image], Image]


def part(seed: int) -> Image:
    """Seven tenths of it every part has, before a camera that never moves; the rest is its own."""
    return (0.7 * textured(seed=9999) + 0.3 * textured(seed=seed)).astype(np.uint8)


def saved_as_jpeg(picture: Image) -> Image:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def noisy(picture: Image) -> Image:
    noise = np.random.default_rng(0).normal(0, 6, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "saved as a JPEG": saved_as_jpeg,
    "halved": lambda picture: cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "brighter": lambda picture: cv2.convertScaleAbs(picture, alpha=1.1, beta=10),
    "blurred": lambda picture: cv2.GaussianBlur(picture, (0, 0), 1.0),
    "noisy": noisy,
    "grey": lambda picture: cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
}
TURNED: dict[str, Change] = {
    "mirrored": lambda picture: picture[:, ::-1],
    "turned by 90°": lambda picture: np.rot90(picture, -1),
    "turned by 180°": lambda picture: np.rot90(picture, 2),
    "mirrored, turned by 90°": lambda picture: np.rot90(picture, -1)[:, ::-1],
}


@pytest.fixture(scope="module")
def parts() -> list[Image]:
    return [part(seed) for seed in range(60)]


def test_parts_of_one_kind_are_no_copies_of_each_other_though_they_look_alike(parts: list[Image]) -> None:
    sketches = [sketch(picture) for picture in parts]

    plain = [float(np.vdot(one.astype(float), two.astype(float))) for one, two in itertools.combinations(sketches, 2)]
    assert min(plain) > 0.6
    assert max(plain) > ALIKE
    assert alike(sketches) == []


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_picture_is_known_again_however_it_was_changed(parts: list[Image], change: Change) -> None:
    sketches = [sketch(picture) for picture in [*parts, np.ascontiguousarray(change(parts[17]))]]

    (pair,) = alike(sketches)

    assert (pair.first, pair.second, pair.turn) == (17, 60, "")
    assert ALIKE <= pair.likeness <= 1


@pytest.mark.parametrize("turn", TURNED.values(), ids=TURNED)
def test_a_turned_or_mirrored_picture_is_known_again_and_how_to_turn_it_back(parts: list[Image], turn: Change) -> None:
    sketches = [sketch(picture) for picture in [*parts, np.ascontiguousarray(turn(parts[3]))]]

    (pair,) = alike(sketches)

    assert (pair.first, pair.second) == (3, 60)
    assert pair.turn in TURNED
    back = np.rot90(turn(parts[3])[:, ::-1] if "mirrored" in pair.turn else turn(parts[3]), _quarters(pair.turn))
    assert np.array_equal(back, parts[3])


def _quarters(turn: str) -> int:
    return TURNS.index(turn) % 4


def test_the_search_finds_what_comparing_all_with_all_finds() -> None:
    """By scikit-learn's principal components and plain cosines, without any hash."""
    # given parts, some of which come again with more and more noise, so that likeness falls through the threshold
    parts = [part(seed) for seed in range(100)]
    random = np.random.default_rng(1)
    for number in range(40):
        spoilt = parts[number] + random.normal(0, 1 + number * 1.5, parts[number].shape)
        parts.append(np.rot90(np.clip(spoilt, 0, 255).astype(np.uint8), number % 4))
    sketches = [sketch(np.ascontiguousarray(picture)) for picture in parts]
    # when
    found = {(pair.first, pair.second): pair.likeness for pair in alike(sketches)}
    # then
    expected = compared(sketches)
    assert 10 < len(expected) < 40
    sure = {pair for pair, cosine in expected.items() if cosine > ALIKE + 1e-3}
    possible = {pair for pair, cosine in expected.items() if cosine > ALIKE - 1e-3}
    assert sure <= found.keys() <= possible
    assert all(found[pair] == pytest.approx(expected[pair], abs=1e-3) for pair in found)


def compared(sketches: list[Sketch]) -> dict[tuple[int, int], float]:
    pictures = np.stack(sketches).astype(np.float64)
    count = len(pictures)
    pca = PCA(svd_solver="full").fit(pictures.reshape(count, -1))
    shared = count // 8
    left = np.ones(len(pca.explained_variance_))
    usual = pca.explained_variance_[shared:].mean()
    left[:shared] = np.minimum(1, (usual / pca.explained_variance_[:shared]) ** (1 / 3))

    def own(turned: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = turned.reshape(count, -1) - pca.mean_
        rows = rows - ((rows @ pca.components_.T) * (1 - left)) @ pca.components_
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    first = own(pictures)
    best = np.max(
        [
            first @ own(np.rot90(pictures[:, :, ::-1] if mirrored else pictures, quarters, axes=(1, 2))).T
            for quarters in range(4)
            for mirrored in (False, True)
        ],
        axis=0,
    )
    return {(i, j): float(best[i, j]) for i, j in itertools.combinations(range(count), 2) if best[i, j] > 0.7}


def test_across_a_cut_only_pairs_of_one_from_each_side_are_told(parts: list[Image]) -> None:
    again = saved_as_jpeg(parts[5])
    rest = [sketch(picture) for picture in [*parts[:40], saved_as_jpeg(parts[2])]]
    part = [sketch(picture) for picture in [again, *parts[40:]]]

    (pair,) = near_across(rest, part)

    assert (pair.first, pair.second) == (5, 0)


def test_pictures_without_detail_are_like_nothing(parts: list[Image]) -> None:
    even = [np.full((80, 80, 3), grey, np.uint8) for grey in (0, 0, 128, 255)]

    assert not sketch(even[0]).any()
    assert alike([sketch(picture) for picture in [*parts, *even]]) == []


def test_of_few_pictures_nobody_can_say_what_they_share(parts: list[Image]) -> None:
    assert alike([sketch(parts[0])] * 7) == []


def test_one_picture_many_times_ends_the_search_at_its_bound(
    parts: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectbus.stores.datasets.check.likeness.MAX_PAIRS", 20)

    found = alike([*(sketch(picture) for picture in parts), *[sketch(parts[0])] * 10])

    assert len(found) == 55
