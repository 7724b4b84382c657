"""The score that engines compute: held against the card's own arithmetic, which is numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import Calibration
from inspectbus.networks.scorer import Calibrated
from inspectbus.training.calibration import KNOTS

LOGITS = np.concatenate([np.linspace(-20, 20, 4001), [-1e4, -100, 100, 1e4]]).astype(np.float32)


def many_knots() -> tuple[tuple[float, float], ...]:
    """As many as a training makes, in steps that are flat here and steep there."""
    rises = np.random.default_rng(0).pareto(1, KNOTS - 1) + 1e-3
    becomes = np.concatenate([[0], np.cumsum(rises) / rises.sum()])
    return tuple(zip(np.linspace(0, 1, KNOTS).tolist(), (0.05 + 0.9 * becomes).tolist(), strict=True))


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration(),
        Calibration(temperature=0.7, bias=-0.3),
        Calibration(knots=((0, 0), (1, 1))),
        Calibration(temperature=2, bias=0.5, knots=((0, 0.01), (0.25, 0.1), (0.7, 0.8), (1, 0.99))),
        Calibration(temperature=3, knots=many_knots()),
    ],
    ids=["none", "line", "identity", "few knots", "many knots"],
)
def test_engines_give_the_score_of_the_cards_arithmetic(calibration: Calibration) -> None:
    found = Calibrated(calibration)(torch.from_numpy(LOGITS))

    assert (found.shape, found.dtype) == (LOGITS.shape, torch.float32)
    np.testing.assert_allclose(found.numpy(), scored(LOGITS, calibration), atol=2e-6)


def test_the_surest_part_gets_a_score_and_not_more_than_one() -> None:
    # Ten equal rises, each rounded up, add up to more than 1 in float32.
    knots = tuple((number / 10, number / 10) for number in range(11))

    found = Calibrated(Calibration(knots=knots))(torch.from_numpy(LOGITS))

    assert 0 <= found.min() <= found.max() <= 1


def test_knots_nearer_than_float32_can_tell_give_scores_all_the_same() -> None:
    calibration = Calibration(knots=((0, 0), (0.5, 0.2), (np.nextafter(0.5, 1), 0.8), (1, 1)))

    found = Calibrated(calibration)(torch.tensor([0.0, -0.1, 0.1])).numpy()

    np.testing.assert_allclose(found, scored(np.array([0.0, -0.1, 0.1]), calibration), atol=1e-6)


@pytest.mark.parametrize("knots", [(), ((0, 0.1), (1, 0.9))])
def test_a_logit_that_is_no_number_stays_none(knots: tuple[tuple[float, float], ...]) -> None:
    found = Calibrated(Calibration(knots=knots))(torch.tensor([float("nan"), 0.0]))

    assert found.isnan().tolist() == [True, False]


def test_the_knots_are_not_among_the_weights() -> None:
    assert not Calibrated(Calibration(knots=((0, 0.1), (1, 0.9)))).state_dict()
