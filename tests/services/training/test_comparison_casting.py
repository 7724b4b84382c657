"""A quick comparison on a slice of real photographs, where they lie beside the repository."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inspectbus.stores.datasets import Label, open_dataset
from inspectbus.training.comparison.conductor import compare
from inspectbus.training.comparison.record import as_record
from inspectbus.training.comparison.terms import Terms
from inspectbus.training.plan import Plan
from tests.doubles.parts import TINY_BACKBONE, write_tiny_weights

DATA = Path(os.environ.get("INSPECTBUS_TEST_DATA", Path(__file__).parents[4] / "shared" / "data")) / "casting_impeller"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there: real photographs are not part of the project")
def test_real_castings_are_compared_with_no_part_on_both_sides(tmp_path: Path) -> None:
    # given a few photographs of each class and half
    torch.set_num_threads(1)
    data = open_dataset(str(DATA))
    items = [
        item
        for half in ("train", "test")
        for label in Label
        for item in [each for each in data.items if each.half == half and each.label is label][::6][:16]
    ]
    plan = Plan(data="castings", model="castings", backbone=TINY_BACKBONE, epochs=1, seed=0, input_size=64)
    terms = Terms.full(plan, models=("svm", "knn"), candidates=2, rounds=200, widths=(1, 4), repeats=1, spoiled=10)

    # when
    found = compare(
        terms,
        replace(data, items=tuple(items)),
        on_progress=lambda progress: None,
        cancel=threading.Event(),
        cache_dir=tmp_path / "cache",
        trainings_dir=tmp_path / "trainings",
        weights=write_tiny_weights(tmp_path / f"{TINY_BACKBONE}.safetensors"),
    )

    # then
    groups = [{item.group for item in images.items} for images in (found.train, found.exam)]
    assert not groups[0] & groups[1]
    record = as_record(found)
    assert record["split"]["held_out"] == 32
    assert record["models"]["svm"]["f1"]["low"] <= record["models"]["svm"]["f1"]["mean"]
    assert record["suspects"] is not None
