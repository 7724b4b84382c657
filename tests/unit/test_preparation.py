"""Are prepared pixels what the preparation's words say, and always the same?"""

from __future__ import annotations

from itertools import product
from typing import get_args

import cv2
import numpy as np
import pytest

from inspectbus.api.v1.prepared_frame_pb2 import Pixels
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField
from inspectbus.imaging import Image
from inspectbus.imaging.pixels import from_pixels, to_pixels
from inspectbus.imaging.preparation import prepare
from inspectbus.imaging.quality import measure
from tests.doubles.pictures import textured

DENOISE = get_args(Preparation.model_fields["denoise"].annotation)
ILLUMINATION = get_args(Preparation.model_fields["illumination"].annotation)


@pytest.mark.parametrize(("denoise", "illumination", "colour"), list(product(DENOISE, ILLUMINATION, ("rgb", "grey"))))
def test_every_preparation_gives_the_same_pixels_twice_and_leaves_its_input(
    denoise: str, illumination: str, colour: str
) -> None:
    preparation = Preparation.model_validate(
        {"denoise": denoise, "illumination": illumination, "colour": colour, "width": 64, "height": 48}
    )
    picture = textured(90, 130)
    before = picture.copy()

    first, second = prepare(picture, preparation), prepare(picture.copy(), preparation)

    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_threads_changes_no_pixel(threads: int) -> None:
    preparation = Preparation(denoise="non-local-means", illumination="flatten", width=100, height=100)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        expected = prepare(textured(300, 400), preparation)
        cv2.setNumThreads(threads)
        np.testing.assert_array_equal(prepare(textured(300, 400), preparation), expected)
    finally:
        cv2.setNumThreads(before)


def test_a_picture_of_the_right_size_passes_untouched() -> None:
    picture = textured(64, 96)

    np.testing.assert_array_equal(prepare(picture, Preparation(width=96, height=64)), picture)


def test_shrinking_averages_and_does_not_alias() -> None:
    # given every fourth column white: sampling would find or miss them all; averaging gives a quarter of white
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::4] = 255

    shrunk = prepare(stripes, Preparation(width=64, height=64))

    assert np.unique(shrunk).tolist() == [64]


def test_a_picture_that_shrinks_one_way_and_grows_the_other_does_not_alias_either() -> None:
    stripes = np.zeros((40, 256, 3), np.uint8)
    stripes[:, ::4] = 255

    resized = prepare(stripes, Preparation(width=64, height=64))

    assert resized.shape == (64, 64, 3)
    assert np.unique(resized).tolist() == [64]


def test_grey_is_luminance_in_three_channels() -> None:
    green = np.zeros((64, 64, 3), np.uint8)
    green[:, :, 1] = 200

    prepared = prepare(green, Preparation(colour="grey", width=64, height=64))

    assert prepared[3, 3].tolist() == [117, 117, 117]  # 0.587 of 200


@pytest.mark.parametrize("denoise", ["median", "bilateral", "non-local-means"])
def test_denoising_lowers_the_noise_and_keeps_an_edge(denoise: str) -> None:
    clean = np.full((96, 96, 3), 90, np.uint8)
    clean[:, 48:] = 170
    noisy = _with_noise(clean, 5)
    size = {"width": 96, "height": 96}

    denoised = prepare(noisy, Preparation.model_validate({"denoise": denoise, **size}))

    assert measure(denoised).noise < 0.75 * measure(noisy).noise
    assert abs(denoised[:, :40].mean() - 90) < 2
    assert abs(denoised[:, 56:].mean() - 170) < 2
    assert denoised[48, 44].mean() + 40 < denoised[48, 52].mean()


def test_flattening_evens_a_lamp_from_one_side_and_keeps_the_mean() -> None:
    lamp = np.linspace(60, 200, 300)[None, :, None]
    uneven = np.broadcast_to(lamp, (200, 300, 3)).astype(np.uint8)

    flat = prepare(uneven, Preparation(illumination="flatten", width=300, height=200)).astype(float)

    # the blur sees less of the ramp near the edges, so these keep some of it
    middle = flat[:, 60:240].mean(axis=(0, 2))
    assert np.ptp(middle) < 0.25 * np.ptp(uneven[:, 60:240].astype(float))
    assert abs(flat.mean() - uneven.mean()) < 2


def test_flattening_keeps_colours() -> None:
    red = np.full((100, 100, 3), (180, 60, 30), np.uint8)

    flat = prepare(red, Preparation(illumination="flatten", width=100, height=100))

    np.testing.assert_allclose(flat[50, 50], (180, 60, 30), atol=1)


def test_flattening_a_black_picture_gives_a_black_picture() -> None:
    assert not prepare(np.zeros((64, 64, 3), np.uint8), Preparation(illumination="flatten")).any()


def test_clahe_spreads_a_flat_contrast() -> None:
    dull = (textured(128, 128) // 8 + 100).astype(np.uint8)

    spread = prepare(dull, Preparation(illumination="clahe", width=128, height=128))

    assert spread.std() > 1.5 * dull.std()


def test_pixels_go_to_a_message_and_back() -> None:
    picture = textured(48, 64)

    message = to_pixels(picture)

    assert (message.height, message.width, message.channels) == (48, 64, 3)
    np.testing.assert_array_equal(from_pixels(message), picture)


def test_a_view_that_is_not_contiguous_is_sent_in_reading_order() -> None:
    mirrored = textured(48, 64)[:, ::-1]

    np.testing.assert_array_equal(from_pixels(to_pixels(mirrored)), mirrored)


@pytest.mark.parametrize(
    ("pixels", "field"),
    [
        (Pixels(height=2, width=2, channels=1, data=bytes(4)), "pixels.channels"),
        (Pixels(height=0, width=2, channels=3), "pixels.height"),
        (Pixels(height=2, width=0, channels=3), "pixels.width"),
        (Pixels(height=2, width=2, channels=3, data=bytes(11)), "pixels.data"),
        (Pixels(height=2**32 - 1, width=2**32 - 1, channels=3, data=bytes(12)), "pixels.data"),
    ],
)
def test_pixels_whose_sizes_disagree_are_refused(pixels: Pixels, field: str) -> None:
    with pytest.raises(BadField) as refused:
        from_pixels(pixels)
    assert refused.value.field == field


def _with_noise(picture: Image, sigma: float) -> Image:
    noise = np.random.default_rng(0).normal(0, sigma, picture.shape[:2])[:, :, None]
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)
