"""Fitting: the part of a network above a cut learns, from maps of what lies below, or whole from pixels.

batches of a Source, targets ─> epochs of AdamW, rates warmed up and falling ─> averaged weights
     ─> the best epoch by validation AP

One loop for both depths. After each epoch all that the next depends on can be kept and taken up again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from inspectbus.errors import Internal
from inspectbus.networks.classifier import Classifier
from inspectbus.training.checkpoint import Checkpoint
from inspectbus.training.precision import Precision, computing_in, fastest

log = structlog.get_logger(__name__)

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
    depthwise: bool = False
    """Whether depthwise kernels learn too. Above a cut they stay as they are: on a processor their gradient takes a
    third of the time and helps little."""


MEASURED = 16
"""Images of the batch that precision is measured on: some seconds at 300 pixels."""
METHOD = Method()
WHOLE = replace(METHOD, depthwise=True, decay=1.0, averaging=0.99)
"""From the pixels up, edges and textures are learnt by depthwise kernels as much as by any, and at the same rate: with
0.8 and 0.9 of the rate from layer to layer the validation loss on solar cells stayed higher (0.465 and 0.441 after nine
of 14 epochs, against 0.44 after seven). Averages over an epoch's steps, not half of it."""


class Source(Protocol):
    """Images in the form that the trained part takes. Two forms: maps kept in a few views, and pixels varied anew."""

    def __len__(self) -> int: ...

    def shown(self, batches: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> Generator[Tensor]:
        """A tensor for each entry of `batches`, which are rows. Variations follow from `rng`, which the caller's thread
        draws from, before the first batch. To be closed by whoever leaves early."""

    def batches(self) -> Iterator[Tensor]:
        """Every image as it is, in order."""


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
    """The trained part: the network's own modules above a cut, dropout and head, so that fitting this fits the network.

    With a cut below everything it takes pixels, and is the whole network.
    """

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
    def over(self, source: Source) -> Floats:
        """Logits of every image as it is, in evaluation mode."""
        self.eval()
        found: Floats = torch.cat([self(batch) for batch in source.batches()]).double().numpy()
        return found


def fit(
    upper: Upper,
    train: Source,
    targets: Floats,
    validation: Source,
    validation_labels: NDArray[np.int64],
    *,
    epochs: int,
    seed: int,
    after_epoch: Callable[[Epoch], None],
    after_step: Callable[[int, int], None],
    method: Method = METHOD,
    precision: Precision | Literal["auto"] = "fp32",
    checkpoint: Checkpoint | None = None,
) -> None:
    """Leaves `upper` with the averaged weights of its best epoch.

    `targets` lie in 0 to 1, one per training image; each epoch sees every image once, in one of its variations. The
    loss is the binary cross-entropy, which for soft targets is the Kullback-Leibler divergence plus a constant.

    `after_step` hears of each batch of the epoch, and how many there are; `after_epoch` of each epoch, those before the
    checkpoint included. They may raise to end it all. Draws from torch's generator, which the caller has seeded. Raises
    what `Checkpoint.load` raises, and Internal when the scores are no numbers any more.
    """
    work = _Fitting(upper, train, targets, validation, validation_labels, epochs, seed, method)
    saved = checkpoint.load() if checkpoint is not None else None
    if saved is not None:
        work.restore(*saved)
        log.info("going on from a checkpoint", epoch=len(work.told))
        for epoch in work.told:
            after_epoch(epoch)
    elif precision != "auto":
        work.precision = precision
    else:
        work.precision = fastest(upper, next(iter(train.batches()))[:MEASURED])
    while not work.over:
        epoch = work.epoch(after_step)
        if checkpoint is not None:
            checkpoint.save(epoch.number, *work.state())
        after_epoch(epoch)
    work.end()


class _Fitting:
    """The fitting between two epochs, and the way from one to the next."""

    def __init__(
        self,
        upper: Upper,
        train: Source,
        targets: Floats,
        validation: Source,
        validation_labels: NDArray[np.int64],
        epochs: int,
        seed: int,
        method: Method,
    ) -> None:
        with torch.no_grad():
            upper.head.reset_parameters()
            upper.head.weight.mul_(method.head_start)
            upper.head.bias.zero_()
        self._upper = upper
        self._train = train
        self._soft = torch.from_numpy(targets).float()
        # The rare class weighs as much as the common one.
        self._pos_weight = (1 - self._soft).sum() / self._soft.sum()
        self._validation = validation
        self._validation_labels = validation_labels
        self._epochs = epochs
        self._method = method
        self._size = min(method.batch, len(train))
        self._per_epoch = len(train) // self._size
        self.precision: Precision = "fp32"
        # From here on: what a checkpoint holds.
        self._rng = np.random.default_rng(seed)
        self._optimiser = _optimiser(upper, method)
        self._average = copy.deepcopy(upper).requires_grad_(False)
        self._best = copy.deepcopy(self._average.state_dict())
        self._best_ap, self._worse = -1.0, 0
        self.told: list[Epoch] = []
        """The epochs so far."""

    @property
    def over(self) -> bool:
        number, method = len(self.told), self._method
        return number >= self._epochs or (self._worse >= method.patience and number >= method.settled * self._epochs)

    def epoch(self, after_step: Callable[[int, int], None]) -> Epoch:
        """Learns from every training image once, and judges the average on the validation part."""
        loss_sum, factor = self._learn(after_step)
        logits = self._average.over(self._validation)
        if not np.isfinite(logits).all():
            raise Internal(
                f"after epoch {len(self.told) + 1} the network gives scores that are no numbers; train with another "
                "seed, backbone or precision"
            )
        ap = float(average_precision_score(self._validation_labels, logits))
        self._worse += 1
        if ap > self._best_ap:
            self._best, self._best_ap, self._worse = copy.deepcopy(self._average.state_dict()), ap, 0
        epoch = Epoch(
            len(self.told) + 1,
            train_loss=loss_sum / self._per_epoch,
            validation_loss=_loss(logits, self._validation_labels, float(self._pos_weight)),
            validation_ap=ap,
            rate=self._method.rate * factor,
        )
        self.told.append(epoch)
        return epoch

    def _learn(self, after_step: Callable[[int, int], None]) -> tuple[float, float]:
        """The sum of the batches' losses, and the last one's share of the peak rate."""
        self._upper.train()
        order = self._rng.permutation(len(self._train))[: self._per_epoch * self._size]
        batches = np.split(order, self._per_epoch)
        total, before = self._epochs * self._per_epoch, len(self.told) * self._per_epoch
        means, values = _averaged(self._average), _averaged(self._upper)
        loss_sum = factor = 0.0
        with closing(self._train.shown(batches, self._rng)) as shown:
            for step, (rows, batch) in enumerate(zip(batches, shown, strict=True)):
                factor = rate_factor((before + step) / total, 1 / total, self._method.warm_up)
                for group in self._optimiser.param_groups:
                    group["lr"] = group["peak"] * factor
                with computing_in(self.precision):
                    logits = self._upper(batch)
                loss = nn.functional.binary_cross_entropy_with_logits(
                    logits.float(), self._soft[rows], pos_weight=self._pos_weight
                )
                self._optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimiser.step()
                loss_sum += loss.item()
                done = before + step + 1
                _follow(means, values, min(self._method.averaging, done / (done + 10)))
                after_step(step + 1, self._per_epoch)
        return loss_sum, factor

    def end(self) -> None:
        self._upper.load_state_dict(self._best)
        self._upper.eval()

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Facts and tensors that the next epoch depends on."""
        facts = {
            "epochs": [vars(epoch) for epoch in self.told],
            "best_ap": self._best_ap,
            "worse": self._worse,
            "precision": self.precision,
            "generator": self._rng.bit_generator.state,
        }
        tensors = {"generator": torch.get_rng_state()}
        for prefix, state in self._states().items():
            tensors |= {f"{prefix}.{name}": value for name, value in state.items()}
        for number, kept in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in kept.items()}
        return facts, tensors

    def restore(self, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Everything as it was when `state` gave this."""
        self.told = [Epoch(**epoch) for epoch in facts["epochs"]]
        self._best_ap, self._worse, self.precision = facts["best_ap"], facts["worse"], facts["precision"]
        self._rng.bit_generator.state = facts["generator"]
        torch.set_rng_state(tensors["generator"])
        with torch.no_grad():
            for prefix, state in self._states().items():
                # Into the tensors there are, which lie channels-last: another order in memory may round otherwise.
                for name, value in state.items():
                    value.copy_(tensors[f"{prefix}.{name}"])
        learning = [value for group in self._optimiser.param_groups for value in group["params"]]
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, number, what = name.split(".")
                like = learning[int(number)]
                kept.setdefault(int(number), {})[what] = (
                    torch.empty_like(like).copy_(value) if value.shape == like.shape else value
                )
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": kept})

    def _states(self) -> dict[str, dict[str, Tensor]]:
        return {"now": self._upper.state_dict(), "average": self._average.state_dict(), "best": self._best}


def rate_factor(done: float, one_step: float, warm_up: float) -> float:
    """Share of the peak rate, `done` being the share of all steps that is over: rises to 1, then falls as a cosine."""
    if done < warm_up:
        return min(1.0, (done + one_step) / warm_up)
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _optimiser(upper: Upper, method: Method) -> torch.optim.AdamW:
    groups = _groups(list(upper.head.parameters()), method.head_rate, method)
    rate = method.rate
    for link in reversed(upper.links):
        values = [
            value
            for module in link.modules()
            for value in module.parameters(recurse=False)
            if method.depthwise or not _frozen(module, value)
        ]
        groups += _groups(values, rate, method)
        # A lone norm belongs to the convolution before it, and pooling to nobody.
        if any(value.ndim > 1 for value in values):
            rate *= method.decay
    # Fused: one pass over a group's values instead of a dozen over each tensor's, a twentieth of a small step's time.
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)


def _groups(values: list[nn.Parameter], rate: float, method: Method) -> list[dict[str, Any]]:
    """Kernels and matrices decay; norms and biases do not."""
    kernels, others = ([value for value in values if (value.ndim > 1) is many] for many in (True, False))
    return [
        {"params": params, "lr": rate, "peak": rate, "weight_decay": decay}
        for params, decay in ((kernels, method.weight_decay), (others, 0.0))
        if params
    ]


def _frozen(module: nn.Module, value: nn.Parameter) -> bool:
    """Freezes a depthwise kernel, and says whether it was one."""
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and value is module.weight
    if depthwise:
        value.requires_grad_(False)
    return depthwise


def _averaged(module: nn.Module) -> list[Tensor]:
    """Weights and batch-norm statistics, but not the norms' counters of steps. These are the module's own tensors."""
    return [value for value in module.state_dict().values() if value.is_floating_point()]


def _follow(average: list[Tensor], now: list[Tensor], keep: float) -> None:
    with torch.no_grad():
        for mean, value in zip(average, now, strict=True):
            mean.lerp_(value, 1 - keep)


def _loss(logits: Floats, labels: NDArray[np.int64], pos_weight: float) -> float:
    loss = nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(labels).double(), pos_weight=torch.tensor(pos_weight)
    )
    return float(loss)
