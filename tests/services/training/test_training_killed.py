"""kill -9 in the middle of a training: started again, it goes on from its last epoch and ends with the same weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inspectbus.training.plan import Plan
from tests.doubles.children import start_child
from tests.doubles.parts import TINY_BACKBONE, write_set, write_tiny_weights

TRAINING = Path(__file__).with_name("checkpointed_process.py")
PATIENCE_S = 120.0
EPOCHS = 4
NEVER = -1

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(params=["upper", "whole"])
def plan(request: pytest.FixtureRequest) -> Plan:
    settled = {"data": "plates", "model": "plates", "backbone": TINY_BACKBONE, "seed": 3, "input_size": 32}
    return Plan.model_validate(
        {**settled, "epochs": EPOCHS, "batch": 8, "depth": request.param, "precision": "fp32", "views": 2}
    )


@pytest.fixture
def start(plan: Plan, tmp_path: Path) -> Start:
    write_set(tmp_path / "plates", good=20, defective=16)
    write_tiny_weights(tmp_path / "weights" / f"{TINY_BACKBONE}.safetensors")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def begin(version: str, epoch: int = NEVER, step: int = NEVER) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(TRAINING), plan.model_dump_json(), str(tmp_path), version]
        return start_child([*command, str(epoch), str(step)], None, environ)

    return begin


def steps_told(child: subprocess.Popen[bytes], until: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """(epochs before, step) of each step it tells; to its end, or to that step."""
    assert child.stdout is not None
    told: list[tuple[int, int]] = []
    for line in child.stdout:
        words = line.split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            told.append((int(words[0]), int(words[1])))
            if told[-1] == until:
                return told
    assert until is None, f"it ended before step {until}"
    return told


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(start: Start, tmp_path: Path) -> None:
    # given a training that nothing happens to
    with start("quiet") as child:
        all_steps = steps_told(child)
        assert child.wait(PATIENCE_S) == 0
    per_epoch = len(all_steps) // EPOCHS

    # when another is killed in the middle of its third epoch
    with start("killed", epoch=2, step=2) as child:
        steps_told(child, until=(2, 2))
        child.kill()
        assert child.wait(PATIENCE_S) < 0
    assert not (tmp_path / "killed/model.json").exists()
    with start("killed") as child:
        rest = steps_told(child)
        assert child.wait(PATIENCE_S) == 0

    # then it began that epoch again, and only that one
    assert rest == all_steps[2 * per_epoch :]
    quiet, killed = (json.loads((tmp_path / name / "model.json").read_text()) for name in ("quiet", "killed"))
    assert quiet["files"] == killed["files"]
    assert {**quiet, "created_at": ""} == {**killed, "created_at": ""}


def test_going_on_with_other_images_is_refused(start: Start, tmp_path: Path) -> None:
    with start("killed", epoch=1, step=1) as child:
        steps_told(child, until=(1, 1))
        child.kill()
        child.wait(PATIENCE_S)
    shutil.copy(tmp_path / "plates/good/000.png", tmp_path / "plates/defective/one-more.png")

    with start("killed") as child:
        assert child.stdout is not None
        told = child.stdout.read().decode()
        assert child.wait(PATIENCE_S) == 1

    assert "is another training's: data is " in told
    assert not (tmp_path / "killed/model.json").exists()
