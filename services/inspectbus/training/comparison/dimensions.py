"""Accuracy and run time over the number of features, as in the literature's figures.

frozen features ─┬─> first d principal components ─> SVM, KNN, BPN, MLP, with the settings their searches chose
                 └─> a layer of d units ─> dropout ─> linear: the CNN's head, narrowed

Learners first, with the train side alone; the examined images come afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from inspectbus.training.calibration import Floats, Labels
from inspectbus.training.comparison.contenders import Contender
from inspectbus.training.comparison.inputs import Components
from inspectbus.training.comparison.learning import Entrant, Inputs, Judge, Learning, Part, Settings
from inspectbus.training.comparison.measures import figures
from inspectbus.training.comparison.searches import entered

EPOCHS = 30
BATCH = 64
RATE = 1e-3
WEIGHT_DECAY = 0.02
DROPOUT = 0.5
TIMED = 5
"""Predictions timed, of which the median counts."""


@dataclass(frozen=True)
class Narrowed:
    """A model on d features."""

    model: str
    width: int
    entrant: Entrant


@dataclass(frozen=True)
class Point:
    """One point of both figures."""

    model: str
    dimension: int
    accuracy: float
    f1: float
    average_precision: float
    fit_s: float
    """Median of repeated fits, the projection's included."""
    predict_ms: float
    """Per image, from features at hand; median of repeated predictions over all examined images."""


def narrow_all(
    learning: Learning,
    contenders: Sequence[tuple[Contender, Settings]],
    widths: Sequence[int],
    *,
    cnn: bool,
    repeats: int,
    seed: int,
    tell: Callable[[int], None],
) -> list[Narrowed]:
    """Every model on every width that the train part (N, F) has. `tell` hears of each, and may raise."""
    most = min(learning.train.inputs.shape)
    made = []
    for width in (width for width in widths if width <= most):
        for contender, settings in contenders:
            fit = _projected(contender, settings, width, seed)
            made.append(Narrowed(contender.name, width, _timed(fit, learning, settings, repeats, seed)))
            tell(1)
        if cnn:
            fit = _bottleneck(width, learning.validation, seed)
            made.append(Narrowed("cnn", width, _timed(fit, learning, {"width": width}, repeats, seed)))
            tell(1)
    return made


def examine(narrowed: Sequence[Narrowed], features: Inputs, labels: Labels) -> list[Point]:
    points = []
    for each in narrowed:
        times = []
        for _ in range(TIMED):
            began = time.perf_counter()
            scores = each.entrant.scores(features)
            times.append(time.perf_counter() - began)
        found = figures(labels, scores, each.entrant.threshold)
        points.append(
            Point(
                each.model,
                each.width,
                accuracy=found["accuracy"],
                f1=found["f1"],
                average_precision=found["average_precision"],
                fit_s=each.entrant.fit_s,
                predict_ms=1000 * median(times) / len(labels),
            )
        )
    return points


def _timed(
    fit: Callable[[Part], Judge], learning: Learning, settings: Mapping[str, float | int | str], repeats: int, seed: int
) -> Entrant:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        judge = fit(learning.train)
        times.append(time.perf_counter() - began)
    return entered(judge, learning, settings, tried=1, fit_s=median(times), seed=seed)


def _projected(contender: Contender, settings: Settings, width: int, seed: int) -> Callable[[Part], Judge]:
    def fit(train: Part) -> Judge:
        project = Components.of(train.inputs, width, seed).project
        judge = contender.fit(settings, project(train.inputs), train.labels, seed)
        return lambda inputs: judge(project(inputs))

    return fit


def _bottleneck(width: int, validation: Part, seed: int) -> Callable[[Part], Judge]:
    """Fits the narrowed head by AdamW, and keeps the epoch with the best validation AP, as trainings do."""

    def fit(train: Part) -> Judge:
        scaler = StandardScaler().fit(train.inputs)

        def scaled(inputs: Inputs) -> torch.Tensor:
            return torch.from_numpy(np.asarray(scaler.transform(inputs), np.float32))

        inputs, watched = scaled(train.inputs), scaled(validation.inputs)
        targets = torch.from_numpy(train.labels).float()
        pos_weight = (1 - targets).sum() / targets.sum()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = nn.Sequential(nn.Linear(inputs.shape[1], width), nn.Dropout(DROPOUT), nn.Linear(width, 1))
            optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
            best_ap, best = -1.0, {name: value.clone() for name, value in head.state_dict().items()}
            for _ in range(EPOCHS):
                head.train()
                order = torch.randperm(len(inputs))
                for start in range(0, len(order), BATCH):
                    rows = order[start : start + BATCH]
                    loss = nn.functional.binary_cross_entropy_with_logits(
                        head(inputs[rows]).squeeze(1), targets[rows], pos_weight=pos_weight
                    )
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                ap = float(average_precision_score(validation.labels, _logits(head, watched)))
                if ap > best_ap:
                    best_ap, best = ap, {name: value.clone() for name, value in head.state_dict().items()}
        head.load_state_dict(best)
        return lambda unseen: _logits(head, scaled(unseen))

    return fit


def _logits(head: nn.Module, inputs: torch.Tensor) -> Floats:
    head.eval()
    with torch.inference_mode():
        found: Floats = head(inputs).squeeze(1).double().numpy()
    return found
