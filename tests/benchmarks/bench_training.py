"""What an epoch costs above bare forward and backward of the same network, at both depths.

    PYTHONPATH=services:clients:. .venv/bin/python -m tests.benchmarks.bench_training [--quick] [--only upper|whole]

The epoch is the trainer's own, between two checkpoints: images varied, rates set, steps taken, weights averaged, the
validation part judged (a quarter as many images again), the checkpoint on the disk. Bare is forward and backward over
the same batches, waiting ready in memory, by a copy of the network with the same frozen kernels. The two take turns in
one process, and a ratio is that of medians. `learning` is the epoch without judging and checkpoint. Weights are fresh
and images noise: neither matters to the time. A checkpoint takes the same time whatever the epoch: the
solar cells have four times as many images as are taken here. The last line is JSON.

Predicted, before anything was measured, for EfficientNet-Lite0 at 224 pixels, batches of 32, on two cores: whole 1.12
(judging .08, optimiser and average .02, flips and turns .02); upper 1.17 (judging .07, optimiser and average .08,
maps from the file .02), because steps there are a fourth as long and the optimiser's work is nearly the same.

What was learnt, alone on the two cores, three turns:

- Whole: 9.90 s to 8.89 s bare for 384 images, 1.113. Learning is 1.024 of it: the thread that varies images costs next
  to nothing. A checkpoint (68 MB to the disk) takes 0.25 s whatever the epoch: .028 here, .007 of the solar cells'.
- Judging 32 images at a time and not 8: 182 to 163 images/s. Norms folded into convolutions would give 234; not taken,
  a copy of the network for each epoch to gain .015.
- Upper: 5.93 s to 4.98 s bare for 768 images, 1.193, more than predicted: learning 1.083, checkpoint .043. Of a step of
  207 ms the optimiser took 10 and the average 3, one small tensor after another. Rates in one group for each layer and
  not for each tensor: 6.8; fused: 3.0; tensors of the average listed once an epoch: 1.2. So mended, and alone again:
  5.95 s to 5.23 s, 1.137, learning 1.027; for twice as many images, as many as the solar cells', 1.139. Whole: 1.112.
- In company (load 5) the upper depth gave 1.237: a ratio means nothing where others compute, turns or no turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

# As the program does before it loads torch: threads that wait for each other sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor, nn

from inspectbus.domain.model_version import Architecture, Normalisation
from inspectbus.domain.preparation import Preparation
from inspectbus.networks.classifier import build
from inspectbus.networks.pretrained import Pretrained
from inspectbus.training.allocator import freed_memory_kept
from inspectbus.training.augmentation import Augmentation
from inspectbus.training.checkpoint import Checkpoint
from inspectbus.training.features import Maps, cut_network
from inspectbus.training.fitting import METHOD, WHOLE, Epoch, Source, Upper, fit
from inspectbus.training.pixels import Pixels, from_pixels
from inspectbus.training.plan import BATCH, Depth
from inspectbus.training.precision import Precision, computing_in

EVERYTHING = Augmentation(light=0.1, blur=1.0, noise=3.0, perspective=0.03)
NORMALISATION = Normalisation(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


@dataclass(frozen=True)
class Case:
    """What is measured."""

    depth: Depth
    backbone: str
    side: int
    images: int
    turns: int
    augmentation: Augmentation
    precision: Precision


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Seconds and ratios."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    upper, train, validation = _sources(case, rng, folder)
    method = WHOLE if case.depth == "whole" else METHOD
    batches = list(train.shown(np.split(np.arange(case.images), case.images // BATCH[case.depth]), rng))
    targets = rng.integers(0, 2, case.images).astype(np.float64)
    labels = rng.integers(0, 2, len(validation))
    bare: list[float] = []
    whole: list[float] = []
    learning: list[float] = []
    began = stepped = 0.0
    passes = _Bare(upper, batches, case.precision)
    checkpoint = _Timed(folder / f"checkpoint-{case.depth}", {"of": "a benchmark"})

    def after_step(step: int, steps: int) -> None:
        nonlocal stepped
        if step == steps:
            stepped = time.perf_counter()

    def after_epoch(epoch: Epoch) -> None:
        nonlocal began
        ended = time.perf_counter()
        taken = passes.once()
        # The first of each warms up.
        if epoch.number > 1:
            whole.append(ended - began)
            learning.append(stepped - began)
            bare.append(taken)
        began = time.perf_counter()

    fit(
        upper,
        train,
        targets,
        validation,
        labels,
        epochs=case.turns + 1,
        seed=0,
        after_epoch=after_epoch,
        after_step=after_step,
        method=replace(method, batch=BATCH[case.depth], patience=case.turns + 1),
        precision=case.precision,
        checkpoint=checkpoint,
    )
    return {
        "bare_s": round(median(bare), 3),
        "epoch_s": round(median(whole), 3),
        "ratio": round(median(whole) / median(bare), 3),
        "learning_ratio": round(median(learning) / median(bare), 3),
        "checkpoint_s": round(median(checkpoint.taken), 3),
        "bare_images_per_s": round(case.images / median(bare), 1),
    }


class _Timed(Checkpoint):
    """Remembers how long each saving took, in seconds."""

    def __init__(self, folder: Path, belongs_to: Mapping[str, str]) -> None:
        super().__init__(folder, belongs_to)
        self.taken: list[float] = []

    def save(self, epoch: int, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        begun = time.perf_counter()
        super().save(epoch, facts, tensors)
        self.taken.append(time.perf_counter() - begun)


class _Bare:
    """Forward and backward, and nothing else."""

    def __init__(self, upper: Upper, batches: Sequence[Tensor], precision: Precision) -> None:
        self._upper = upper
        self._batches = batches
        self._precision = precision

    def once(self) -> float:
        """Seconds."""
        # A copy in every turn, so that it has the kernels frozen that fitting froze, and disturbs no statistics.
        network = copy.deepcopy(self._upper).train()
        begun = time.perf_counter()
        for batch in self._batches:
            network.zero_grad()
            with computing_in(self._precision):
                logits = network(batch)
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), torch.zeros(len(batch)))
            loss.backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - begun


def _sources(case: Case, rng: np.random.Generator, folder: Path) -> tuple[Upper, Source, Source]:
    architecture = Architecture(backbone=case.backbone)
    network = build(architecture, NORMALISATION).eval()
    preparation = Preparation(width=case.side, height=case.side)
    counts = (case.images, case.images // 4)
    if case.depth == "whole":
        pixels = [Pixels(count, preparation, case.augmentation, folder) for count in counts]
        for source in pixels:
            for row in range(len(source)):
                source.put(row, rng.integers(0, 256, (case.side, case.side, 3), dtype=np.uint8))
        return Upper(network, from_pixels(network)), pixels[0], pixels[1]
    cut = cut_network(Pretrained(network, architecture, NORMALISATION, "", ""), preparation)
    maps = [Maps(count, 1, cut.shape, folder) for count in counts]
    for kept in maps:
        for row in range(len(kept)):
            kept.put(row, 0, rng.standard_normal((*cut.shape[1:], cut.shape[0]), dtype=np.float32).astype(np.float16))
    return Upper(network, cut.upper), maps[0], maps[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tiny network, to see that it works")
    parser.add_argument("--only", choices=("upper", "whole"))
    parser.add_argument("--side", type=int, default=224, help="of the input, pixels")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--images", type=int, default=384, help="of an epoch at depth whole; upper takes twice as many")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--everything", action="store_true", help="blur, noise, light and perspective too")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    backbone, side, turns, images = arguments.backbone, arguments.side, arguments.turns, arguments.images
    if arguments.quick:
        backbone, side, turns, images = "test_efficientnet", 64, 1, 64
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, freed_memory_kept():
        for depth in ("upper", "whole") if arguments.only is None else (arguments.only,):
            case = Case(
                depth=depth,
                backbone=backbone,
                side=side,
                images=images * (2 if depth == "upper" else 1),
                turns=turns,
                augmentation=EVERYTHING if arguments.everything else Augmentation(),
                precision=arguments.precision,
            )
            told[depth] = measure(case, Path(folder))
            print(f"{depth:<8}" + "  ".join(f"{name} {value}" for name, value in told[depth].items()))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
