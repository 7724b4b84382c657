"""`inspectbus train` and `inspectbus evaluate`, on a rendered set of parts and a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.doubles.parts import TINY_BACKBONE, write_set, write_tiny_weights
from tests.services.cli.conftest import Inspectbus


@pytest.mark.slow
def test_an_evaluation_shows_scores_and_how_far_the_export_lies_from_them(
    inspectbus: Inspectbus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, state = write_set(tmp_path / "plates"), tmp_path / "state"
    weights = write_tiny_weights(tmp_path / f"{TINY_BACKBONE}.safetensors")
    monkeypatch.setenv("INSPECTBUS_TRAINING_WEIGHTS", str(weights))
    # By a path from the working folder, as people name folders.
    monkeypatch.chdir(tmp_path)
    train = inspectbus(
        "train", "./plates", "--backbone", TINY_BACKBONE, "--epochs", 1, "--input-size", 64, "--state", state
    )
    assert train.exit_code == 0, train.output

    shown = inspectbus("evaluate", data, "--state", state)
    told = inspectbus("evaluate", data, "--state", state, "--json")

    assert "model.onnx on the same 10 images: scores differ by at most" in shown.output
    assert "every verdict the same" in shown.output
    # Logs that no service configured go there too.
    facts = json.loads(told.stdout.splitlines()[-1])
    assert sum(facts["confusion"].values()) == 10
    assert facts["export"].items() >= {"images": 10, "differing": 0}.items()
    assert 0 <= facts["export"]["largest"] < 1e-5
