"""Whether heatmaps fall on the defect, on masks drawn here, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap

from inspectbus.errors import BadField
from inspectbus.training.pointing import agreement

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


def spot(row: int, column: int) -> Map:
    """7x7, hot at one place."""
    heatmap = np.full((7, 7), -1.0, np.float32)
    heatmap[row, column] = 5.0
    return heatmap


def mask_of(row: int, column: int, height: int = 112, width: int = 224) -> Mask:
    """True where the 7x7 map's place lies: 1/49 of the image."""
    mask = np.zeros((height, width), np.bool_)
    tall, wide = height // 7, width // 7
    mask[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = True
    return mask


def test_a_map_that_is_hot_on_the_defect_hits_and_one_elsewhere_misses() -> None:
    there = agreement([(spot(2, 3), mask_of(2, 3))])
    elsewhere = agreement([(spot(5, 0), mask_of(2, 3))])

    assert there.hits.mean == 1
    assert there.heat.mean > 0.75
    assert (elsewhere.hits.mean, elsewhere.heat.mean) == (0, 0)
    assert there.heat_by_chance == pytest.approx(1 / 49)
    assert 1 / 49 < there.hits_by_chance < 4 / 49


def test_heat_at_the_masks_own_size_is_shared_out_exactly() -> None:
    heatmap = np.array([[3.0, 1.0], [-7.0, 4.0]], np.float32)
    mask = np.array([[True, False], [True, False]])

    found = agreement([(heatmap, mask)], tolerance=0)

    assert found.heat.mean == pytest.approx(3 / 8)
    assert (found.hits.mean, found.hits_by_chance, found.heat_by_chance) == (0, 0.5, 0.5)


def test_a_hottest_place_beside_the_mask_hits_within_the_tolerance_only() -> None:
    heatmap, mask = np.zeros((100, 100), np.float32), np.zeros((100, 100), np.bool_)
    mask[40:60, 40:60] = True
    heatmap[50, 62] = 1.0

    assert agreement([(heatmap, mask)]).hits.mean == 1
    assert agreement([(heatmap, mask)], tolerance=0.02).hits.mean == 0


def test_maps_that_know_nothing_of_the_defect_get_what_chance_gets() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0, 1, (7, 7)).astype(np.float32), mask_of(*rng.integers(0, 7, 2))) for _ in range(400)]

    found = agreement(pairs, tolerance=0)

    assert found.hits.low <= found.hits_by_chance <= found.hits.high
    assert found.heat.low <= found.heat_by_chance <= found.heat.high


def test_a_flat_map_points_nowhere_more_than_chance_and_a_cold_one_has_no_heat_inside() -> None:
    flat, cold = np.full((7, 7), 2.0, np.float32), np.full((7, 7), -2.0, np.float32)

    assert agreement([(flat, mask_of(1, 1))], tolerance=0).hits.mean == pytest.approx(1 / 49)
    assert agreement([(flat, mask_of(1, 1))]).heat.mean == pytest.approx(1 / 49)
    assert agreement([(cold, mask_of(1, 1))]).heat.mean == 0


def test_the_interval_is_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(0, 1, (7, 7)).astype(np.float32), mask_of(*rng.integers(0, 7, 2))) for _ in range(60)]
    values = [agreement([pair]).heat.mean for pair in pairs]

    found = agreement(pairs).heat

    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=2).confidence_interval
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1 * (found.high - found.low))
    assert agreement(pairs).heat == found, "the same seed gave another interval"


@pytest.mark.parametrize(
    ("heatmap", "mask", "words"),
    [
        (np.zeros((7, 7, 1), np.float32), mask_of(0, 0), "two dimensions"),
        (spot(0, 0), mask_of(0, 0).astype(np.uint8), "a mask is bool"),
        (spot(0, 0), np.zeros((8, 8), np.bool_), "marks nothing"),
        (np.full((7, 7), np.nan, np.float32), mask_of(0, 0), "no numbers"),
    ],
)
def test_what_is_no_heatmap_and_mask_is_refused_by_its_place(heatmap: Map, mask: Mask, words: str) -> None:
    with pytest.raises(BadField, match=words) as refused:
        agreement([(spot(0, 0), mask_of(0, 0)), (heatmap, mask)])
    assert refused.value.field == "pairs[1]"


def test_no_masks_at_all_are_told() -> None:
    with pytest.raises(BadField, match="no defective images with a mask"):
        agreement([])
