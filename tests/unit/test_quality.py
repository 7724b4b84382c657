"""Do the measures follow their definitions, and are unusable pictures held while usable ones pass?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from inspectbus.api.v1.decision_pb2 import HOLD_REASON_UNUSABLE_IMAGE
from inspectbus.api.v1.prepared_frame_pb2 import QualityReport
from inspectbus.domain.recipe import QualityLimits
from inspectbus.imaging import Image
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.quality import limits_from, measure, violation
from tests.doubles.pictures import textured


def test_a_flat_picture_has_neither_sharpness_nor_noise_nor_glare() -> None:
    report = measure(np.full((100, 150, 3), 100, np.uint8))

    assert (report.sharpness, report.brightness, report.glare, report.noise) == (0, 100, 0, 0)


def test_sharpness_is_the_variance_of_the_laplacian_at_256_pixels() -> None:
    picture = textured(256, 200)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(float)
    edged = np.pad(grey, 1, mode="reflect")
    laplacian = edged[:-2, 1:-1] + edged[2:, 1:-1] + edged[1:-1, :-2] + edged[1:-1, 2:] - 4 * grey

    assert measure(picture).sharpness == pytest.approx(laplacian.var(), rel=1e-6)


def test_sharpness_hardly_depends_on_the_cameras_resolution() -> None:
    small = cv2.resize(textured(64, 64), (256, 256), interpolation=cv2.INTER_CUBIC)
    large = cv2.resize(small, (1024, 1024), interpolation=cv2.INTER_CUBIC)

    assert measure(large).sharpness == pytest.approx(measure(small).sharpness, rel=0.25)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 12.0])
def test_noise_is_its_standard_deviation(sigma: float) -> None:
    clean = np.broadcast_to(np.linspace(80, 170, 300)[None, :, None], (300, 300, 1))
    noise = np.random.default_rng(1).normal(0, sigma, (300, 300, 1))
    picture = np.repeat(np.rint(clean + noise).astype(np.uint8), 3, axis=2)

    assert measure(picture).noise == pytest.approx(sigma, rel=0.1)


def test_noise_is_immerkaers_estimate_over_the_inner_pixels() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (7, 9), dtype=np.uint8)
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    answers = [abs((grey[y : y + 3, x : x + 3] * mask).sum()) for y in range(5) for x in range(7)]

    noise = measure(np.repeat(grey[:, :, None], 3, axis=2)).noise

    assert noise == pytest.approx(np.sqrt(np.pi / 2) * sum(answers) / (6 * 7 * 5))


def test_glare_is_the_share_of_burnt_out_pixels() -> None:
    picture = np.full((100, 100, 3), 249, np.uint8)
    picture[:25] = 250

    assert measure(picture).glare == 0.25


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (2, 2, 3), (16, 16000, 3)])
def test_even_the_oddest_crop_can_be_measured(shape: tuple[int, int, int]) -> None:
    report = measure(np.full(shape, 9, np.uint8))

    assert report.brightness == 9
    assert report.noise == 0


@pytest.mark.parametrize(
    ("report", "measure_name", "limit", "word"),
    [
        (QualityReport(sharpness=0.1, brightness=5), "brightness", 10, "dark"),
        (QualityReport(sharpness=0.1, brightness=250, glare=1), "brightness", 240, "bright"),
        (QualityReport(sharpness=9, brightness=200, glare=0.6), "glare", 0.5, "burnt"),
        (QualityReport(sharpness=9, brightness=100, noise=8), "noise", 7, "nois"),
        (QualityReport(sharpness=2, brightness=100), "sharpness", 3, "blurred"),
    ],
)
def test_a_broken_limit_is_told_with_measure_value_and_limit(
    report: QualityReport, measure_name: str, limit: float, word: str
) -> None:
    limits = QualityLimits(min_sharpness=3, min_brightness=10, max_brightness=240, max_glare=0.5, max_noise=7)

    hold = violation(report, limits)

    assert hold is not None
    assert hold.reason == HOLD_REASON_UNUSABLE_IMAGE
    assert (hold.measure, hold.value, hold.limit) == (measure_name, getattr(report, measure_name), limit)
    assert word in hold.detail


def test_a_value_at_its_limit_and_a_limit_that_is_none_hold_nothing() -> None:
    limits = QualityLimits(min_sharpness=3, min_brightness=10, max_brightness=10, max_glare=0.5, max_noise=None)

    assert violation(QualityReport(sharpness=3, brightness=10, glare=0.5, noise=99), limits) is None


def test_limits_from_no_pictures_are_the_defaults() -> None:
    assert limits_from([]) == QualityLimits()


def test_limits_of_a_product_without_any_detail_leave_sharpness_alone() -> None:
    plain = [QualityReport(sharpness=1.0 + n / 100, brightness=120, noise=0.4) for n in range(50)]

    limits = limits_from(plain)

    assert limits.min_sharpness is None
    assert (limits.min_brightness, limits.max_brightness, limits.max_glare) == (60, 187.5, 0.5)
    assert all(violation(report, limits) is None for report in plain)


def test_limits_from_a_sharp_product_hold_its_lightly_blurred_pictures() -> None:
    pictures = [textured(200, 200, seed) for seed in range(20)]
    limits = limits_from(map(measure, pictures[:15]))

    for picture in pictures[15:]:
        assert violation(measure(picture), limits) is None
        hold = violation(measure(_blurred(picture, 2)), limits)
        assert hold is not None
        assert hold.measure == "sharpness"


@dataclass(frozen=True)
class Cells:
    """Reports of every ELPV photograph, and of some of them spoilt in three ways."""

    plain: list[QualityReport]
    blurred: list[QualityReport]
    black: list[QualityReport]
    burnt: list[QualityReport]


@pytest.fixture(scope="module")
def cells() -> Cells:
    package = pytest.importorskip("elpv_dataset", reason="the demo images are not installed")
    files = sorted((Path(package.__file__).parent / "data" / "images").glob("*.png"))
    assert len(files) == 2624
    reports = Cells([], [], [], [])
    for number, file in enumerate(files):
        picture = decode(file.read_bytes())
        reports.plain.append(measure(picture))
        if number % 10 == 0:
            reports.blurred.append(measure(_blurred(picture, 6)))
            reports.black.append(measure(_blackened(picture)))
            reports.burnt.append(measure(_burnt(picture)))
    return reports


def test_solar_cells_pass_the_default_limits_and_spoilt_ones_do_not(cells: Cells) -> None:
    _check(cells, QualityLimits())


def test_solar_cells_pass_limits_made_from_three_quarters_of_them_and_spoilt_ones_do_not(cells: Cells) -> None:
    order = np.random.default_rng(7).permutation(len(cells.plain))

    _check(cells, limits_from(cells.plain[position] for position in order[: 3 * len(order) // 4]))


def _check(cells: Cells, limits: QualityLimits) -> None:
    def held_for(reports: list[QualityReport]) -> list[str]:
        return [hold.measure for report in reports if (hold := violation(report, limits))]

    assert len(held_for(cells.plain)) <= 0.002 * len(cells.plain)
    assert held_for(cells.blurred) == ["sharpness"] * len(cells.blurred)
    assert held_for(cells.black) == ["brightness"] * len(cells.black)
    burnt = held_for(cells.burnt)
    assert set(burnt) <= {"brightness", "glare"}
    assert len(burnt) >= 0.99 * len(cells.burnt)


@pytest.mark.parametrize("name", ["casting_impeller", "commutator", "ball_screw"])
def test_other_products_pass_the_default_limits_and_spoilt_ones_do_not(name: str) -> None:
    pictures = [decode(file.read_bytes()) for file in _some_files(name)]

    for picture in pictures:
        scale = max(picture.shape) / 300
        assert violation(measure(picture), QualityLimits()) is None
        for spoilt in (_blurred(picture, 6 * scale), _blackened(picture), _burnt(picture)):
            assert violation(measure(spoilt), QualityLimits()) is not None


def _some_files(name: str) -> Iterator[Path]:
    data = os.environ.get("INSPECTBUS_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data"
    folder = Path(data) / name
    if not folder.is_dir():
        pytest.skip(f"no images at {folder}; INSPECTBUS_TEST_DATA names their folder")
    files = sorted(file for file in folder.glob("t*/**/*") if file.suffix in (".png", ".jpg", ".jpeg"))
    return iter(files[:: max(1, len(files) // 12)])


def _blurred(picture: Image, sigma: float) -> Image:
    blurred: Image = cv2.GaussianBlur(picture, (0, 0), sigma)
    return blurred


def _blackened(picture: Image) -> Image:
    return (picture * 0.03).astype(np.uint8)


def _burnt(picture: Image) -> Image:
    return np.clip(picture.astype(np.int32) * 4 + 120, 0, 255).astype(np.uint8)
