"""How far a figure could have come out otherwise: the examined images drawn anew, many times, whole groups together.

groups ─> weights (B, N), in blocks ─> measures of every model on the same draws ─> intervals, paired differences

Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993). All models meet the same draws, so
a difference of two is paired: what an easy draw gives to both cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inspectbus.training.calibration import Floats, Labels
from inspectbus.training.comparison.measures import MEASURES, measure

CONFIDENCE = 0.95
BLOCK = 4_000_000
"""Weights held at once: 32 MB, and a few times that while they are measured."""


@dataclass(frozen=True)
class Answers:
    """What one fitted model said of the examined images."""

    scores: Floats
    threshold: float


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies in 95 of 100 draws."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """Measures of every model on every draw, the mean over its seeds."""

    values: Mapping[str, Mapping[str, Floats]]
    """By model, then measure: (B,)."""
    plain: Mapping[str, Mapping[str, float]]
    """The same on the images as they are."""

    def interval(self, model: str, name: str) -> Interval:
        return _interval(self.plain[model][name], self.values[model][name])

    def difference(self, model: str, other: str, name: str) -> Interval:
        """The first's figure less the other's."""
        return _interval(
            self.plain[model][name] - self.plain[other][name], self.values[model][name] - self.values[other][name]
        )


def draw(
    labels: Labels,
    answers: Mapping[str, Sequence[Answers]],
    groups: Sequence[str | None],
    *,
    rounds: int,
    seed: int,
) -> Draws:
    """`answers` has for each model those of its seeds; `groups` the part each image shows, where known."""
    blocks: dict[str, dict[str, list[Floats]]] = {model: {name: [] for name in MEASURES} for model in answers}
    for weights in resamples(groups, rounds, seed):
        for model, seeds in answers.items():
            for name, value in _mean(labels, seeds, weights).items():
                blocks[model][name].append(value)
    ones = np.ones((1, len(labels)))
    return Draws(
        {model: {name: np.concatenate(parts) for name, parts in found.items()} for model, found in blocks.items()},
        {
            model: {name: float(value[0]) for name, value in _mean(labels, seeds, ones).items()}
            for model, seeds in answers.items()
        },
    )


def resamples(groups: Sequence[str | None], rounds: int, seed: int) -> Iterator[Floats]:
    """Blocks (b, N) of how often each image is drawn. Images of one group are drawn together, the others alone."""
    units = [group if group is not None else f"\0{row}" for row, group in enumerate(groups)]
    _, unit_of = np.unique(units, return_inverse=True)
    count = int(unit_of.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // len(groups))
    for start in range(0, rounds, block):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(block, rounds - start))
        yield drawn[:, unit_of].astype(np.float64)


def _mean(labels: Labels, seeds: Sequence[Answers], weights: Floats) -> dict[str, Floats]:
    found = [measure(labels, each.scores, each.threshold, weights) for each in seeds]
    return {name: np.mean([each[name] for each in found], axis=0) for name in MEASURES}


def _interval(plain: float, values: Floats) -> Interval:
    # Draws that left a class out say nothing of a measure that needs both.
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(plain, plain, plain)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(plain, float(low), float(high))
