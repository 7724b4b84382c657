"""With how many bits a network computes while it learns: asked for, or measured on one batch.

Weights, averages and every score stay float32; only what lies between two layers is shortened, which is the most of
what a processor moves about.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Literal

import structlog
import torch
from torch import Tensor, nn

log = structlog.get_logger(__name__)

Precision = Literal["fp32", "bf16"]

WORTH = 1.15
"""bf16 must be so many times as fast: less is not worth its rounding, nor the luck of one measurement."""
_ROUNDS = 3


def fastest(learner: nn.Module, batch: Tensor, clock: Callable[[], float] = time.perf_counter) -> Precision:
    """fp32, unless forward and backward in bf16 are clearly faster here. Some seconds; the learner stays as it is.

    `learner` gives logits (N,) for the batch.
    """
    # A copy, because a forward pass moves the statistics of batch norms; dropout draws from torch's generator.
    trial = copy.deepcopy(learner).train()
    taken: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    with torch.random.fork_rng(devices=[]):
        for _ in range(1 + _ROUNDS):
            for precision, times in taken.items():
                begun = clock()
                with computing_in(precision):
                    logits = trial(batch)
                logits.float().sum().backward()
                times.append(clock() - begun)
    # The first round warms up: memory is asked for, kernels are chosen.
    gain = median(taken["fp32"][1:]) / median(taken["bf16"][1:])
    chosen: Precision = "bf16" if gain >= WORTH else "fp32"
    log.info("precision measured", chosen=chosen, bf16_times_as_fast=round(gain, 2))
    return chosen


def computing_in(precision: Precision) -> torch.autocast:
    """A context in which the layers compute so."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
