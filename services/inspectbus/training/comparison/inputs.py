"""Forms: the ways in which a learner takes an image. What a form learns, it learns from the train part.

64x64 grey ────────> principal components ─> one scale            the way of the papers
backbone's features ─> each to mean 0 and spread 1                what a pretrained network already sees
mean grey, spread ───> each to mean 0 and spread 1                the floor
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from inspectbus.domain.preparation import Preparation
from inspectbus.training.comparison.images import Images
from inspectbus.training.comparison.learning import Inputs
from inspectbus.training.features import Cut, FeatureCache, extract

Form = Literal["raw", "frozen", "light"]
Projection = Callable[[Inputs], Inputs]
COMPONENTS = 64
"""Of the 4096 pixels; nine tenths of what differs between photographs of one product lie in fewer."""


def fitted_projection(form: Form, train: Inputs, seed: int) -> Projection:
    """What brings inputs of the form, (N, D), to those a contender is given; it has seen `train` and nothing else."""
    if form == "raw":
        return Components.of(train, COMPONENTS, seed).project
    scaler = StandardScaler().fit(train)
    return lambda inputs: np.asarray(scaler.transform(inputs), np.float32)


@dataclass(frozen=True)
class Components:
    """The first principal components of standardised inputs, brought to unit size by one common scale.

    One scale, because whitening would make the last component, mostly noise, as loud as the first.
    """

    scaler: StandardScaler
    components: PCA
    size: float

    @classmethod
    def of(cls, train: Inputs, count: int, seed: int) -> Self:
        """Of inputs (N, D); fewer than `count` where images or inputs are fewer."""
        scaler = StandardScaler().fit(train)
        components = PCA(min(count, *train.shape), random_state=seed).fit(scaler.transform(train))
        return cls(scaler, components, max(float(np.sqrt(components.explained_variance_.mean())), 1e-6))

    def project(self, inputs: Inputs) -> Inputs:
        """(N, count)."""
        return np.asarray(self.components.transform(self.scaler.transform(inputs)) / self.size, np.float32)


def frozen_features(
    images: Images, cut: Cut, preparation: Preparation, cache: FeatureCache, tell: Callable[[int], None]
) -> Inputs:
    """(N, F): what the whole pretrained backbone says of each image, pooled; found again by content hash."""
    maps = extract(images.named, 1, cut, preparation, cache, tell)
    return np.concatenate([batch.numpy() for batch in maps.batches()]).astype(np.float32)
