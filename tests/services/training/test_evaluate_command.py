"""`inspectbus evaluate`: a version on the part of the data that no training saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.cli.app import app
from inspectbus.runtime import logs
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.tiny_model import tiny_version
from tests.doubles.training_service import open_training_service


@pytest.mark.parametrize(
    ("lower", "upper", "counts"),
    [(0.0, 1.0, {"held_defective": 1, "held_good": 1}), (1.0, 1.0, {"false_negatives": 1, "true_negatives": 1})],
)
def test_held_parts_are_counted_apart_and_both_thresholds_told(
    folder: Path,
    training: ScriptedTraining,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lower: float,
    upper: float,
    counts: dict[str, int],
) -> None:
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    with open_training_service(folder, training) as service:
        training.give(tiny_version(tmp_path / "made", "parts", threshold=upper, qualified_below=lower))
        assert service.outcome(service.start().job_id).state == pb.JOB_STATE_SUCCEEDED
    asked = ["evaluate", str(folder / "data/parts"), "--state", str(folder / "state")]

    told, shown = (CliRunner().invoke(app, [*asked, *form]) for form in (["--json"], []))

    found = json.loads(told.stdout.splitlines()[-1])  # log lines may stand before it
    assert (found["qualified_below"], found["threshold"]) == (lower, upper)
    assert {name: count for name, count in found["confusion"].items() if count} == counts
    assert 0 <= found["expected_calibration_error"] <= 1
    assert f"held {counts.get('held_good', 0) * 2};" in shown.stdout
    assert ("qualified below 0" in shown.stdout) == (lower < upper)
