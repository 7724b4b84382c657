"""A heatmap as a person sees it, and as a program reads it back: with Pillow, which has no part in writing it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from inspectbus.imaging.overlay import FULL_LOGITS, overlaid
from inspectbus.inference.explanation import painted
from tests.doubles.pictures import textured

PICTURE = textured(96, 128)
HOT = np.array([[-3.0, 0.5, 0.0], [-1.0, -2.0, 30.1234]], np.float32)


def pixels_of(png: bytes) -> NDArray[np.int64]:
    return np.asarray(Pillow.open(io.BytesIO(png)).convert("RGB")).astype(np.int64)


def test_a_hot_place_is_painted_and_what_speaks_for_a_sound_part_stays_as_it_is() -> None:
    changed = np.abs(pixels_of(painted(PICTURE, HOT)) - PICTURE).max(axis=2)

    assert changed.shape == (96, 128)
    assert changed[72, 106] > 60, "the middle of the hot place"
    assert (changed[:24, :21] == 0).all(), "the corner of the coldest one"


def test_the_hotter_the_redder() -> None:
    grey = np.full((60, 90, 3), 100, np.uint8)

    found = pixels_of(painted(grey, np.array([[0.0, 8.0, 20.0]], np.float32)))
    cold, warm, hot = found[30, 0], found[30, 45], found[30, 89]

    assert cold.tolist() == [100, 100, 100]
    assert hot[0] > hot[1] + 50 > hot[2] + 50, "the strongest is red"
    assert warm[1] > warm[0], "and half of it is none"


def test_a_faint_map_is_painted_faintly_and_a_negative_one_not_at_all() -> None:
    faint = np.abs(pixels_of(painted(PICTURE, HOT / np.float32(30.1234) * np.float32(FULL_LOGITS / 10))) - PICTURE)
    strong = np.abs(pixels_of(painted(PICTURE, HOT)) - PICTURE)

    assert 0 < faint.max() < strong.max() / 3
    assert (pixels_of(painted(PICTURE, np.full((7, 7), -0.1, np.float32))) == PICTURE).all()


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (12, 12)])
def test_the_numbers_are_in_the_file_where_any_program_finds_them(shape: tuple[int, int]) -> None:
    heatmap = np.random.default_rng(0).normal(0, 10, shape).astype(np.float32)

    image = Pillow.open(io.BytesIO(painted(PICTURE, heatmap)))
    image.load()
    told = json.loads(image.text["heatmap"])  # type: ignore[attr-defined] # of PNG images

    assert image.size == (128, 96)
    assert told["unit"] == "logit"
    assert np.array(told["rows"]) == pytest.approx(heatmap, abs=1e-4)


def test_the_png_holds_the_overlay_pixel_for_pixel() -> None:
    assert (pixels_of(painted(PICTURE, HOT)) == overlaid(PICTURE, HOT)).all()
