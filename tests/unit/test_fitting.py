"""Fitting: one loop for maps and pixels, which goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inspectbus.domain.preparation import Preparation
from inspectbus.errors import Internal
from inspectbus.networks.pretrained import Pretrained, load_pretrained
from inspectbus.training.augmentation import Augmentation
from inspectbus.training.checkpoint import Checkpoint
from inspectbus.training.features import Maps, cut_network
from inspectbus.training.fitting import METHOD, WHOLE, Epoch, Method, Source, Upper, fit
from inspectbus.training.pixels import Pixels, from_pixels
from inspectbus.training.precision import Precision
from tests.doubles.parts import TINY_BACKBONE, plate, write_tiny_weights

Depth = Literal["upper", "whole"]

PREPARATION = Preparation(width=64, height=64)
TRAIN, VALIDATION, EPOCHS = 40, 12, 4


class Killed(Exception):
    """In place of the process's end."""


class Bench:
    """Plates as maps or pixels, and a fresh network for each fitting."""

    def __init__(self, depth: Depth, folder: Path) -> None:
        self.depth = depth
        self.folder = folder
        self.weights = write_tiny_weights(folder / "tiny.safetensors")
        self.train, self.validation = self._source(TRAIN, 0), self._source(VALIDATION, TRAIN)
        self.told: list[Epoch] = []
        self.steps: list[tuple[int, int]] = []

    def fit(
        self,
        after_epoch: Callable[[Epoch], None] = lambda epoch: None,
        *,
        seed: int = 0,
        method: Method | None = None,
        precision: Precision = "fp32",
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, Tensor]:
        """Weights of the whole network, once fitted."""
        pretrained = self.pretrained()

        def told(epoch: Epoch) -> None:
            self.told.append(epoch)
            after_epoch(epoch)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fit(
                Upper(pretrained.network, self._links(pretrained)),
                self.train,
                (np.arange(TRAIN) % 2).astype(np.float64),
                self.validation,
                (np.arange(VALIDATION) + TRAIN) % 2,
                epochs=EPOCHS,
                seed=seed,
                after_epoch=told,
                after_step=lambda step, steps: self.steps.append((step, steps)),
                method=method or replace(WHOLE if self.depth == "whole" else METHOD, batch=8),
                precision=precision,
                checkpoint=checkpoint,
            )
        return {name: value.clone() for name, value in pretrained.network.state_dict().items()}

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder / "checkpoint", {"depth": self.depth})

    def pretrained(self) -> Pretrained:
        return load_pretrained(TINY_BACKBONE, self.weights)

    def _links(self, pretrained: Pretrained) -> list[tuple[str, nn.Module]]:
        if self.depth == "whole":
            return from_pixels(pretrained.network)
        return cut_network(pretrained, PREPARATION).upper

    def _source(self, count: int, first: int) -> Source:
        plates = [plate(number, scratched=bool(number % 2))[:, :, ::-1] for number in range(first, first + count)]
        if self.depth == "whole":
            pixels = Pixels(count, PREPARATION, Augmentation(noise=3.0), self.folder)
            for row, image in enumerate(plates):
                pixels.put(row, image)
            return pixels
        cut = cut_network(self.pretrained(), PREPARATION)
        maps = Maps(count, 2, cut.shape, self.folder)
        with torch.inference_mode():
            for row, image in enumerate(plates):
                for view, side in enumerate((image, image[:, ::-1])):
                    found = cut.lower(torch.from_numpy(side.copy())[None])[0]
                    maps.put(row, view, found.permute(1, 2, 0).half().numpy())
        return maps


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["upper", "whole"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(request.param, tmp_path)


@pytest.fixture
def whole(tmp_path: Path) -> Bench:
    return Bench("whole", tmp_path)


@pytest.mark.parametrize("last", [1, 3])
def test_a_fitting_that_died_after_an_epoch_goes_on_and_ends_with_the_same_weights(bench: Bench, last: int) -> None:
    # given what comes out when nothing happens
    expected = bench.fit()
    undisturbed, bench.told = bench.told, []

    # when another dies
    def die(epoch: Epoch) -> None:
        if epoch.number == last:
            raise Killed

    with pytest.raises(Killed):
        bench.fit(die, checkpoint=bench.checkpoint())
    torch.manual_seed(99)  # whatever the next process has drawn before
    bench.told, bench.steps = [], []
    found = bench.fit(checkpoint=bench.checkpoint())

    # then the rest is learnt, and nothing twice
    assert same(found, expected)
    assert bench.told == undisturbed
    assert len(bench.steps) == (EPOCHS - last) * (TRAIN // 8)


def test_a_fitting_that_died_in_the_middle_of_an_epoch_begins_that_epoch_again(whole: Bench) -> None:
    expected = whole.fit()
    checkpoint = whole.checkpoint()
    real = whole.steps

    class Dying(list[tuple[int, int]]):
        def append(self, step: tuple[int, int]) -> None:
            super().append(step)
            if len(self) == 2 * (TRAIN // 8) + 3:
                raise Killed

    whole.steps = Dying()
    with pytest.raises(Killed):
        whole.fit(checkpoint=checkpoint)
    whole.steps = []

    assert same(whole.fit(checkpoint=checkpoint), expected)
    assert len(whole.steps) == len(real) - 2 * (TRAIN // 8)


def test_a_fitting_that_was_over_is_not_begun_again(whole: Bench) -> None:
    expected = whole.fit(checkpoint=whole.checkpoint())
    whole.steps = []

    assert same(whole.fit(checkpoint=whole.checkpoint()), expected)
    assert whole.steps == []


def test_going_on_keeps_the_precision_it_began_with(whole: Bench) -> None:
    expected = whole.fit(precision="bf16")

    def die(epoch: Epoch) -> None:
        raise Killed

    with pytest.raises(Killed):
        whole.fit(die, precision="bf16", checkpoint=whole.checkpoint())

    assert same(whole.fit(precision="fp32", checkpoint=whole.checkpoint()), expected)


def test_every_layer_of_the_whole_network_learns_and_above_a_cut_only_what_lies_there(bench: Bench) -> None:
    before = bench.pretrained().network.state_dict()

    after = bench.fit()

    learnt = {name for name, value in after.items() if not torch.equal(value, before[name])}
    kernels = {name for name, value in before.items() if value.ndim == 4}
    assert "head.weight" in learnt
    assert kernels <= learnt if bench.depth == "whole" else "backbone.conv_stem.weight" not in learnt
    assert learnt - {"head.weight", "head.bias"}


def test_the_seed_decides(bench: Bench) -> None:
    first, again, other = bench.fit(), bench.fit(), bench.fit(seed=1)

    assert same(first, again)
    assert not same(first, other)


def test_a_network_that_runs_away_ends_the_fitting_in_words(whole: Bench) -> None:
    with pytest.raises(Internal, match="after epoch 1 the network gives scores that are no numbers"):
        whole.fit(method=replace(WHOLE, batch=8, rate=1e30, head_rate=1e30))


def test_each_step_is_told_within_its_epoch(bench: Bench) -> None:
    bench.fit()

    assert bench.steps == [(step, 5) for _ in range(EPOCHS) for step in range(1, 6)]


def test_lower_layers_learn_more_slowly(whole: Bench) -> None:
    before = whole.pretrained().network.state_dict()["backbone.conv_stem.weight"]
    method = replace(WHOLE, batch=8)

    moved = [
        (whole.fit(method=replace(method, decay=decay))["backbone.conv_stem.weight"] - before).norm()
        for decay in (1.0, 0.5)
    ]

    assert moved[1] < moved[0] / 4
