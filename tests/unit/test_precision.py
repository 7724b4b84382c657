"""Which precision is chosen, and that choosing changes nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import accumulate, cycle

import pytest
import torch
from torch import nn

from inspectbus.training.precision import computing_in, fastest


class Small(nn.Module):
    """Logits (N,), with a norm that keeps statistics and a dropout that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen: list[torch.dtype] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(batch).squeeze(1)
        self.seen.append(logits.dtype)
        return logits


def clock_of(fp32_s: float, bf16_s: float) -> Callable[[], float]:
    """Gives the moments at which each pass begins and ends, the two precisions in turn."""
    steps = cycle((0.0, fp32_s, 0.0, bf16_s))
    return accumulate(steps).__next__


@pytest.mark.parametrize(("fp32_s", "bf16_s", "chosen"), [(1.2, 1.0, "bf16"), (1.1, 1.0, "fp32"), (0.5, 1.0, "fp32")])
def test_bf16_is_chosen_where_it_is_clearly_faster(fp32_s: float, bf16_s: float, chosen: str) -> None:
    assert fastest(Small(), torch.randn(6, 4), clock_of(fp32_s, bf16_s)) == chosen


def test_measuring_leaves_the_learner_and_the_generator_as_they_are() -> None:
    learner = Small().eval()
    before, drawn = copy.deepcopy(learner.state_dict()), torch.get_rng_state()

    fastest(learner, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))

    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(value.grad is None for value in learner.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not learner.training


def test_layers_compute_in_what_was_chosen() -> None:
    learner = Small().eval()
    for precision in ("fp32", "bf16"):
        with computing_in(precision):
            learner(torch.randn(2, 4))

    assert learner.seen == [torch.float32, torch.bfloat16]
