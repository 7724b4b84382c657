"""Spoiling is what it says, always the same, and undone by the correction a station would make."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from inspectbus.domain.preparation import Preparation
from inspectbus.domain.recipe import Geometry
from inspectbus.imaging import Image
from inspectbus.imaging.geometry import correct
from inspectbus.imaging.preparation import prepare
from inspectbus.training.comparison.images import raw_light
from inspectbus.training.comparison.preprocessing import CONDITIONS, DENOISE, light_of, treated
from inspectbus.training.comparison.spoiling import (
    BLUR_ANGLE_DEG,
    FAULTS,
    NOISE,
    distorted,
    lens_of,
    motion,
    moved,
    noisy,
    spoil,
)
from tests.doubles.pictures import textured


def miss(one: Image, other: Image, edge: int = 12) -> float:
    """Mean difference in grey levels, away from the edges."""
    inner = np.s_[edge:-edge, edge:-edge]
    return float(np.abs(one[inner].astype(float) - other[inner].astype(float)).mean())


def smooth(height: int = 120, width: int = 160) -> Image:
    picture: Image = cv2.GaussianBlur(textured(height, width), (0, 0), 3)
    return picture


@pytest.mark.parametrize("faults", CONDITIONS.values(), ids=CONDITIONS)
def test_the_same_seed_spoils_in_the_same_way_and_keeps_the_form(faults: tuple[str, ...]) -> None:
    picture = textured()
    before = picture.copy()

    first, second = (spoil(picture, faults, seed=3) for _ in range(2))  # type: ignore[arg-type]

    assert np.array_equal(first, second)
    assert np.array_equal(picture, before)
    assert first.shape == picture.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, picture) == (not faults)


@pytest.mark.parametrize(("height", "width"), [(120, 160), (200, 90)])
def test_the_geometric_correction_undoes_the_lens(height: int, width: int) -> None:
    picture = smooth(height, width)

    bent = distorted(picture, lens_of(picture))
    straight = correct(bent, Geometry(lens=lens_of(picture)))

    assert miss(bent, picture) > 5
    assert miss(straight, picture) < 1.5


def test_a_point_moves_to_where_opencv_projects_it() -> None:
    picture = np.zeros((121, 161, 3), np.uint8)
    cv2.circle(picture, (30, 25), 3, (255, 255, 255), -1)
    lens = lens_of(picture)
    matrix = np.array(lens.camera_matrix)

    found = distorted(picture, lens)[:, :, 0].astype(float)

    ray = np.linalg.inv(matrix) @ [30, 25, 1]
    expected, _ = cv2.projectPoints(ray[None], np.zeros(3), np.zeros(3), matrix, np.array(lens.distortion))
    rows, columns = np.indices(found.shape)
    centre = (found * columns).sum() / found.sum(), (found * rows).sum() / found.sum()
    assert centre == pytest.approx(tuple(expected.ravel()), abs=0.3)


@pytest.mark.parametrize("length", [3.0, 9.0, 20.5])
def test_the_motion_kernel_is_a_line_of_its_length_and_angle(length: float) -> None:
    kernel = motion(length)

    assert kernel.sum() == pytest.approx(1)
    middle = kernel.shape[0] // 2
    rows, columns = np.indices(kernel.shape) - middle
    assert (kernel * rows).sum() == pytest.approx(0, abs=1e-9)
    # A uniform line has the variance length^2 / 12 along itself; sharing among pixels adds a little.
    spread = np.array([[(kernel * a * b).sum() for b in (columns, -rows)] for a in (columns, -rows)])
    values, vectors = np.linalg.eigh(spread)
    assert values[1] == pytest.approx(length**2 / 12, rel=0.05, abs=0.3)
    assert values[0] < 0.3
    assert np.degrees(np.arctan2(*vectors[::-1, 1])) % 180 == pytest.approx(BLUR_ANGLE_DEG, abs=3)


def test_movement_takes_detail_and_no_light() -> None:
    picture = textured(480, 640)

    blurred = moved(picture)

    assert blurred.mean() == pytest.approx(picture.mean(), abs=1)
    assert cv2.Laplacian(blurred, cv2.CV_64F).var() < 0.6 * cv2.Laplacian(picture, cv2.CV_64F).var()


def test_the_noise_has_its_spread_and_denoising_takes_most_of_it() -> None:
    picture = np.full((120, 160, 3), 128, np.uint8)

    spoiled = noisy(picture, seed=1)

    assert (spoiled.astype(float) - 128).std() == pytest.approx(NOISE, rel=0.03)
    form = Preparation(width=160, height=120, denoise=DENOISE)
    assert (prepare(spoiled, form).astype(float) - 128).std() < 0.6 * NOISE
    assert not np.array_equal(spoiled, noisy(picture, seed=2))


def test_all_steps_bring_a_picture_closer_to_the_clean_one_than_none() -> None:
    picture = smooth(240, 320)
    plain = Preparation(width=160, height=120)
    clean = prepare(picture, plain)

    left = prepare(treated(picture, FAULTS, False, seed=0), plain)
    mended = prepare(treated(picture, FAULTS, True, seed=0), plain.model_copy(update={"denoise": DENOISE}))

    assert miss(mended, clean) < 0.6 * miss(left, clean)


def test_the_floor_sees_the_light_of_the_whole_picture_denoised_or_not() -> None:
    picture = smooth(90, 130)
    speckled = spoil(picture, ("noise",), seed=0)
    plain = Preparation(illumination="flatten", width=64, height=64)
    denoised = plain.model_copy(update={"denoise": DENOISE})

    assert np.array_equal(light_of(picture, plain), raw_light(picture))
    spread, less = light_of(speckled, plain)[1], light_of(speckled, denoised)[1]
    assert less < spread
    assert less == raw_light(cv2.medianBlur(speckled, 3))[1]
