"""Augmentation: what an image may become, and that nothing else happens to it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from inspectbus.imaging import Image
from inspectbus.training.augmentation import Augmentation, turned, varied
from tests.doubles.parts import plate

NOTHING: dict[str, Any] = {"flips": False, "turns": False}
EVERYTHING = Augmentation(light=0.3, blur=2.0, noise=10.0, perspective=0.1)


@pytest.fixture
def image() -> Image:
    return plate(3, scratched=True)


def seeded(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("quarters", range(5))
def test_a_turn_is_exact(image: Image, quarters: int) -> None:
    assert np.array_equal(turned(image, quarters), np.rot90(image, quarters))


def test_a_square_image_is_seen_in_all_its_eight_ways(image: Image) -> None:
    ways = {np.ascontiguousarray(np.rot90(side, k)).tobytes() for side in (image, image[:, ::-1]) for k in range(4)}

    seen = {varied(image, Augmentation(), seeded(seed)).tobytes() for seed in range(100)}

    assert seen == ways


def test_a_part_that_has_an_up_is_only_mirrored(image: Image) -> None:
    seen = {varied(image, Augmentation(turns=False), seeded(seed)).tobytes() for seed in range(40)}

    assert seen == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}


def test_an_oblong_image_is_not_turned() -> None:
    image = plate(1, scratched=True, width=96, height=64)

    assert all(varied(image, EVERYTHING, seeded(seed)).shape == (64, 96, 3) for seed in range(20))


@pytest.mark.parametrize("seed", range(20))
def test_shape_and_dtype_stay_and_the_image_itself_is_left_alone(image: Image, seed: int) -> None:
    before = image.copy()

    seen = varied(image, EVERYTHING, seeded(seed))

    assert seen.shape == image.shape
    assert seen.dtype == np.uint8
    assert np.array_equal(image, before)
    assert not np.array_equal(seen, image)


def test_the_same_generator_gives_the_same_image_and_another_another(image: Image) -> None:
    first, again, other = (varied(image, EVERYTHING, seeded(seed)) for seed in (5, 5, 6))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_any_step_the_image_is_the_same(image: Image) -> None:
    assert np.array_equal(varied(image, Augmentation(**NOTHING), seeded(0)), image)


def test_light_moves_brightness_and_contrast_within_their_bounds_and_saturates() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3)).copy()
    how = Augmentation(**NOTHING, light=0.2)

    slopes, middles = [], []
    for seed in range(60):
        levels = varied(ramp, how, seeded(seed))[:, 0, 0].astype(int)
        assert np.all(np.diff(levels) >= 0)
        # Where neither end is reached, a straight line.
        inner = (levels > 0) & (levels < 255)
        slope, offset = np.polyfit(np.arange(256)[inner], levels[inner], 1)
        slopes.append(slope)
        middles.append(slope * 128 + offset - 128)

    assert 0.79 < min(slopes) < 0.9
    assert 1.1 < max(slopes) < 1.21
    assert -52 < min(middles) < -20
    assert 20 < max(middles) < 52


def test_noise_is_grey_unbiased_and_no_stronger_than_told() -> None:
    flat = np.full((128, 128, 3), 128, np.uint8)
    grains = [varied(flat, Augmentation(**NOTHING, noise=8.0), seeded(seed)).astype(int) - 128 for seed in range(40)]

    deviations = [grain.std() for grain in grains]
    assert max(deviations) < 8.3
    assert max(deviations) > 6
    assert all(abs(grain.mean()) < 0.3 for grain in grains)
    assert all(np.array_equal(grain[:, :, 0], grain[:, :, 2]) for grain in grains)


def test_blur_smooths_no_more_than_its_sigma_does(image: Image) -> None:
    edges = [
        cv2.Laplacian(varied(image, Augmentation(**NOTHING, blur=1.5), seeded(s)), cv2.CV_64F).var() for s in range(30)
    ]

    most = cv2.Laplacian(cv2.GaussianBlur(image, (0, 0), 1.5), cv2.CV_64F).var()
    none = cv2.Laplacian(image, cv2.CV_64F).var()
    assert all(most <= edge <= none for edge in edges)
    assert min(edges) < 1.5 * most


def test_perspective_moves_a_point_no_further_than_its_share_and_brings_no_black_rim() -> None:
    white = np.full((100, 100, 3), 200, np.uint8)
    dot = white.copy()
    cv2.circle(dot, (50, 50), 4, (0, 0, 0), -1)
    how = Augmentation(**NOTHING, perspective=0.05)

    moved = []
    for seed in range(30):
        assert (varied(white, how, seeded(seed)) == 200).all()
        ys, xs = np.nonzero(varied(dot, how, seeded(seed))[:, :, 0] < 100)
        moved.append(float(np.hypot(xs.mean() - 50, ys.mean() - 50)))
    assert 1 < max(moved) < 0.05 * 100 * np.sqrt(2)


@pytest.mark.parametrize("field", ["light", "blur", "noise", "perspective"])
@pytest.mark.parametrize("value", [-0.1, 1e9, float("nan")])
def test_a_strength_beyond_its_bounds_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        Augmentation.model_validate({field: value})
