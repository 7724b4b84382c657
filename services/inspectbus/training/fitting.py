"""Fitting: the upper part of a network learns from the lower part's maps.

maps, targets ─> epochs of AdamW, rates warmed up and falling ─> averaged weights ─> the best epoch by validation AP
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from inspectbus.networks.classifier import Classifier
from inspectbus.training.features import Maps

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """The numbers of the method, found on solar cells (validation parts only) and meant for any part."""

    batch: int = 32
    rate: float = 5e-4
    """Learning rate of the topmost trained layer at its peak; each layer below has `decay` times the one above."""
    decay: float = 0.8
    head_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up: float = 0.1
    """Share of all steps in which rates rise; in the rest they fall as a cosine."""
    averaging: float = 0.98
    """Weights are judged as a running average with this memory: single steps jump about."""
    label_weight: float = 0.5
    """Target = this share of the label + the rest of the labellers' own probability, where they gave one."""
    head_start: float = 0.1
    """Scale of the head's first weights: it begins near 0.5 everywhere, and no image begins with a large loss."""
    patience: int = 3
    """Epochs without a better validation AP before stopping early."""
    settled: float = 0.7
    """Share of the epochs before which nothing is stopped: the rates are still high, and scores still jump."""


METHOD = Method()


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave."""

    number: int
    """From 1."""
    train_loss: float
    validation_loss: float
    validation_ap: float
    rate: float


class Upper(nn.Module):
    """The trained part: the network's own upper modules, dropout and head, so that fitting this fits the network."""

    def __init__(self, network: Classifier, links: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.links = nn.ModuleList(module for _, module in links)
        self.dropout = network.dropout
        self.head = network.head

    def forward(self, maps: Tensor) -> Tensor:
        """Logits (N,)."""
        for link in self.links:
            maps = link(maps)
        logits: Tensor = self.head(self.dropout(maps)).squeeze(1)
        return logits

    @torch.inference_mode()
    def over(self, maps: Maps) -> Floats:
        """Logits of every image's first view, in evaluation mode."""
        self.eval()
        found: Floats = torch.cat([self(batch) for batch in maps.batches()]).double().numpy()
        return found


def fit(
    upper: Upper,
    train: Maps,
    targets: Floats,
    validation: Maps,
    validation_labels: NDArray[np.int64],
    *,
    epochs: int,
    seed: int,
    after_epoch: Callable[[Epoch], None],
    after_step: Callable[[], None],
    method: Method = METHOD,
) -> None:
    """Leaves `upper` with the averaged weights of its best epoch. The callbacks may raise to end it all.

    `targets` lie in 0 to 1, one per training image; each epoch sees every image once, in one of its views. The loss
    is the binary cross-entropy, which for soft targets is the Kullback-Leibler divergence plus a constant.
    """
    with torch.no_grad():
        upper.head.reset_parameters()
        upper.head.weight.mul_(method.head_start)
        upper.head.bias.zero_()
    rng = np.random.default_rng(seed)
    soft = torch.from_numpy(targets).float()
    # The rare class weighs as much as the common one.
    pos_weight = (1 - soft).sum() / soft.sum()
    optimiser = _optimiser(upper, method)
    average = copy.deepcopy(upper).requires_grad_(False)
    best = copy.deepcopy(average.state_dict())
    best_ap, worse = -1.0, 0
    size = min(method.batch, len(train))
    per_epoch = len(train) // size
    total, step = epochs * per_epoch, 0
    for number in range(1, epochs + 1):
        upper.train()
        order, views = rng.permutation(len(train)), rng.integers(0, train.views, len(train))
        loss_sum = 0.0
        for start in range(0, per_epoch * size, size):
            rows = order[start : start + size]
            factor = rate_factor(step / total, 1 / total, method.warm_up)
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            logits = upper(train.batch(rows, views[rows]))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, soft[rows], pos_weight=pos_weight)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step, loss_sum = step + 1, loss_sum + loss.item()
            _follow(average, upper, min(method.averaging, step / (step + 10)))
            after_step()
        logits_seen = average.over(validation)
        ap = float(average_precision_score(validation_labels, logits_seen))
        after_epoch(
            Epoch(
                number,
                train_loss=loss_sum / per_epoch,
                validation_loss=_loss(logits_seen, validation_labels, float(pos_weight)),
                validation_ap=ap,
                rate=method.rate * factor,
            )
        )
        worse += 1
        if ap > best_ap:
            best, best_ap, worse = copy.deepcopy(average.state_dict()), ap, 0
        elif worse >= method.patience and number >= method.settled * epochs:
            break
    upper.load_state_dict(best)
    upper.eval()


def rate_factor(done: float, one_step: float, warm_up: float) -> float:
    """Share of the peak rate, `done` being the share of all steps that is over: rises to 1, then falls as a cosine."""
    if done < warm_up:
        return min(1.0, (done + one_step) / warm_up)
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _optimiser(upper: Upper, method: Method) -> torch.optim.AdamW:
    groups = [_group(value, method.head_rate, method) for value in upper.head.parameters()]
    rate = method.rate
    for link in reversed(upper.links):
        values = [
            value
            for module in link.modules()
            for value in module.parameters(recurse=False)
            if not _depthwise(module, value)
        ]
        groups += [_group(value, rate, method) for value in values]
        # A lone norm belongs to the convolution before it, and pooling to nobody.
        if any(value.ndim > 1 for value in values):
            rate *= method.decay
    return torch.optim.AdamW(groups, betas=(0.9, 0.99))


def _group(value: nn.Parameter, rate: float, method: Method) -> dict[str, object]:
    return {
        "params": [value],
        "lr": rate,
        "peak": rate,
        "weight_decay": method.weight_decay if value.ndim > 1 else 0.0,
    }


def _depthwise(module: nn.Module, value: nn.Parameter) -> bool:
    """Depthwise kernels stay as they are: on a processor their gradient takes a third of the time and helps little."""
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and value is module.weight
    if depthwise:
        value.requires_grad_(False)
    return depthwise


def _follow(average: Upper, now: Upper, keep: float) -> None:
    """Weights and batch-norm statistics, but not the norms' counters of steps."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), now.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)


def _loss(logits: Floats, labels: NDArray[np.int64], pos_weight: float) -> float:
    loss = nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(labels).double(), pos_weight=torch.tensor(pos_weight)
    )
    return float(loss)
