"""Does a corrected picture show what a straight camera would have seen?"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from inspectbus.domain.recipe import Crop, Geometry, Lens, Perspective
from inspectbus.errors import BadField
from inspectbus.imaging import Image, geometry
from inspectbus.imaging.geometry import correct
from tests.doubles.pictures import textured

LENS = Lens(
    camera_matrix=((300.0, 0.0, 199.5), (0.0, 310.0, 149.5), (0.0, 0.0, 1.0)),
    distortion=(-0.28, 0.09, 0.001, -0.0015, 0.0),
)


def test_without_any_step_the_picture_is_the_same() -> None:
    picture = textured()

    assert np.array_equal(correct(picture, Geometry()), picture)


def test_a_distorted_grid_of_dots_stands_on_straight_lines_again() -> None:
    # given dots on a plane, drawn where OpenCV's own camera model says the lens shows them
    matrix = np.array(LENS.camera_matrix)
    plane = np.array([(x, y, 1.0) for y in np.linspace(-0.36, 0.36, 7) for x in np.linspace(-0.5, 0.5, 9)])
    none = np.zeros(3)
    seen, _ = cv2.projectPoints(plane, none, none, matrix, np.array(LENS.distortion))
    straight, _ = cv2.projectPoints(plane, none, none, matrix, None)
    assert np.abs(seen - straight).max() > 8, "the lens must bend enough to test anything"

    corrected = correct(_dots(seen.reshape(-1, 2), 400, 300), Geometry(lens=LENS))

    np.testing.assert_allclose(_centres(corrected, straight.reshape(-1, 2)), straight.reshape(-1, 2), atol=0.25)


def test_a_lens_without_distortion_changes_nothing() -> None:
    picture = textured(300, 400)
    plain = LENS.model_copy(update={"distortion": (0.0, 0.0, 0.0, 0.0)})

    assert np.array_equal(correct(picture, Geometry(lens=plain)), picture)


def test_a_lens_calibrated_at_another_size_is_refused() -> None:
    lens = LENS.model_copy(update={"size": (400, 300)})

    assert correct(textured(300, 400), Geometry(lens=lens)).shape == (300, 400, 3)
    with pytest.raises(BadField, match="calibrated for 400x300") as refused:
        correct(textured(600, 800), Geometry(lens=lens))
    assert refused.value.field == "geometry.lens"


def test_a_tilted_square_is_square_again() -> None:
    # given a picture of four coloured quarters, seen at a slant
    square = np.zeros((200, 200, 3), np.uint8)
    colours = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 30)]
    for quarter, colour in zip(((0, 0), (0, 1), (1, 1), (1, 0)), colours, strict=True):
        square[quarter[0] * 100 :, quarter[1] * 100 :][:100, :100] = colour
    corners = ((83.0, 42.0), (310.0, 71.0), (287.0, 262.0), (51.0, 225.0))
    ideal = np.array([(0, 0), (199, 0), (199, 199), (0, 199)], np.float32)
    slant = cv2.getPerspectiveTransform(ideal, np.array(corners, np.float32))
    scene: Image = cv2.warpPerspective(square, slant, (400, 300), flags=cv2.INTER_LINEAR)

    flat = correct(scene, Geometry(perspective=Perspective(corners=corners, width=200, height=200)))

    assert flat.shape == (200, 200, 3)
    difference = np.abs(flat.astype(int) - square)
    inside = np.ones((200, 200), bool)
    inside[95:105] = inside[:, 95:105] = False
    inside[[0, 1, -2, -1]] = inside[:, [0, 1, -2, -1]] = False
    assert difference[inside].max() <= 2
    np.testing.assert_allclose(flat[1, 1], colours[0], atol=60)


def test_the_whole_picture_as_quadrilateral_changes_nothing() -> None:
    picture = textured(120, 160)
    whole = Perspective(corners=((0, 0), (159, 0), (159, 119), (0, 119)), width=160, height=120)

    assert np.array_equal(correct(picture, Geometry(perspective=whole)), picture)


def test_a_corner_outside_the_picture_is_refused() -> None:
    outside = Perspective(corners=((0, 0), (161, 0), (159, 119), (0, 119)), width=160, height=120)

    with pytest.raises(BadField, match="161") as refused:
        correct(textured(120, 160), Geometry(perspective=outside))
    assert refused.value.field == "geometry.perspective"


def test_a_crop_keeps_exactly_its_part() -> None:
    picture = textured(120, 160)

    cropped = correct(picture, Geometry(crop=Crop(x=10, y=20, width=150, height=100)))

    np.testing.assert_array_equal(cropped, picture[20:120, 10:160])
    assert cropped.flags.c_contiguous


@pytest.mark.parametrize("crop", [Crop(x=11, y=0, width=150, height=10), Crop(x=0, y=120, width=1, height=1)])
def test_a_crop_outside_the_picture_is_refused(crop: Crop) -> None:
    with pytest.raises(BadField, match="160x120") as refused:
        correct(textured(120, 160), Geometry(crop=crop))
    assert refused.value.field == "geometry.crop"


def test_the_crop_is_cut_from_the_straightened_picture() -> None:
    picture = textured(120, 160)
    half = Perspective(corners=((0, 0), (159, 0), (159, 119), (0, 119)), width=80, height=60)

    with pytest.raises(BadField, match="80x60"):
        correct(picture, Geometry(perspective=half, crop=Crop(x=0, y=0, width=100, height=50)))


def test_pictures_too_long_to_warp_are_refused_with_the_entry() -> None:
    long = np.zeros((16, 40_000, 3), np.uint8)

    with pytest.raises(BadField) as refused:
        correct(long, Geometry(lens=LENS))
    assert refused.value.field == "geometry.lens"


def test_undistortion_maps_are_made_once_and_kept_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = geometry._Maps(max_bytes=100 * 100 * 6 * 2)
    monkeypatch.setattr(geometry, "_maps", maps)
    picture = textured(100, 100)
    lenses = [LENS.model_copy(update={"distortion": (-0.1 * n, 0.0, 0.0, 0.0)}) for n in range(1, 4)]

    correct(picture, Geometry(lens=lenses[0]))
    first = maps.of(lenses[0], 100, 100)
    assert maps.of(lenses[0], 100, 100) is first

    for lens in lenses:
        correct(picture, Geometry(lens=lens))
    assert maps.bytes == 100 * 100 * 6 * 2
    assert maps.of(lenses[0], 100, 100) is not first


def _dots(points: np.ndarray[tuple[int, ...], np.dtype[np.float64]], width: int, height: int) -> Image:
    """White dots with soft edges, centred to a fraction of a pixel."""
    y, x = np.mgrid[0:height, 0:width]
    canvas = np.zeros((height, width))
    for px, py in points:
        canvas = np.maximum(canvas, 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.8**2)))
    return np.repeat(canvas.astype(np.uint8)[:, :, None], 3, axis=2)


def _centres(picture: Image, near: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[tuple[float, float]]:
    """The centre of mass of each dot within 6 pixels of where it should be."""
    centres = []
    for px, py in near:
        x, y = round(px), round(py)
        window = picture[y - 6 : y + 7, x - 6 : x + 7, 0].astype(float)
        rows, columns = np.mgrid[y - 6 : y + 7, x - 6 : x + 7]
        centres.append(((columns * window).sum() / window.sum(), (rows * window).sum() / window.sum()))
    return centres
