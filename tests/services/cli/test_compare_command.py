"""`inspectbus compare`, whole, on rendered parts with a tiny network; and its refusals, one line each."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.errors import BadField
from tests.doubles.parts import TINY_BACKBONE, write_set, write_tiny_weights
from tests.doubles.plant import Plant
from tests.services.cli.conftest import Inspectbus


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv(
        "INSPECTBUS_TRAINING_WEIGHTS", str(write_tiny_weights(tmp_path / f"{TINY_BACKBONE}.safetensors"))
    )
    monkeypatch.chdir(tmp_path)
    return write_set(tmp_path / "plates", good=40, defective=24)


TINY = ("--backbone", TINY_BACKBONE, "--input-size", "64", "--quick")


def test_a_quick_comparison_writes_the_report_and_shows_the_scores(
    inspectbus: Inspectbus, parts: Path, tmp_path: Path
) -> None:
    result = inspectbus("compare", parts, "--out", tmp_path / "report", "--models", "cnn,svm", *TINY)

    assert result.exit_code == 0, result.stderr
    assert {"report.html", "report.json"} <= {file.name for file in (tmp_path / "report").iterdir()}
    rows = [line.split()[:2] for line in result.stdout.splitlines()]
    assert ["cnn", "the"] in rows
    assert rows.count(["svm", "frozen"]) == rows.count(["svm", "raw"]) == 1
    assert any(row[:2] == ["all", "defective"] for row in rows)
    assert "report.html" in result.stdout
    assert "the CNN has hardly begun to learn" in result.stdout
    assert "A quick comparison, to see that everything works" in (tmp_path / "report/report.html").read_text()


def test_the_figures_as_json_are_those_of_the_report(inspectbus: Inspectbus, parts: Path, tmp_path: Path) -> None:
    result = inspectbus("compare", parts, "--out", tmp_path / "report", "--models", "knn", *TINY, "--json")

    record = json.loads(result.stdout)
    assert record == json.loads((tmp_path / "report/report.json").read_text())
    assert set(record["models"]) == {"knn", "floor"}
    page = (tmp_path / "report/report.html").read_text()
    assert "Who is first here says nothing" in page
    assert "hardly begun to learn" not in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--models", "cnn,resnet"), "no model is called 'resnet'"),
        (("--input-size", "5"), "--input-size"),
        (("--backbone", "efficientnet_of_my_dreams"), "no timm or torchvision backbone"),
        (("--images", "4"), "images"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line_and_exit_code_2(
    inspectbus: Inspectbus, parts: Path, tmp_path: Path, options: tuple[str, str], words: str
) -> None:
    result = inspectbus("compare", parts, "--out", tmp_path / "report", *TINY, *options)

    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "report/report.json").exists()


def test_a_report_is_never_written_over_another(inspectbus: Inspectbus, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.html").write_text("an older one")

    result = inspectbus("compare", parts, "--out", tmp_path / "report", *TINY)

    assert result.exit_code == 2
    assert "is not empty" in result.stderr
    assert (tmp_path / "report/report.html").read_text() == "an older one"


def test_data_that_is_none_is_named(inspectbus: Inspectbus, tmp_path: Path) -> None:
    result = inspectbus("compare", tmp_path / "nowhere", "--out", tmp_path / "report")

    assert result.exit_code == 2
    assert "nowhere" in result.stderr


def test_a_comparison_elsewhere_is_followed_and_its_report_comes_here(
    inspectbus: Inspectbus, plant: Plant, tmp_path: Path
) -> None:
    record = {"data": {"name": "parts"}, "models": {}}
    plant.report = _packed({"report.html": "<p>A page.</p>", "report.json": json.dumps(record)})
    out = tmp_path / "report"

    asked = ("--seeds", 2, "--models", "cnn,svm", "--quick", "--images", 90, "--no-turns", "--epochs", 3)
    result = inspectbus("compare", "parts", "--out", out, "--address", plant.addresses["training"], *asked, "--json")

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == record
    assert "cnn, seed 0: training" in result.stderr
    assert (out / "report.html").read_text() == "<p>A page.</p>"
    (states,) = plant.jobs.values()
    assert states[-1].comparison == pb.ComparisonPlan(
        data="parts", models=["cnn", "svm"], seeds=2, quick=True, images=90, epochs=3, turns=False
    )


def test_a_comparison_that_fails_elsewhere_says_why(inspectbus: Inspectbus, plant: Plant, tmp_path: Path) -> None:
    plant.failed = "parts has one class only"

    result = inspectbus("compare", "parts", "--out", tmp_path / "report", "--address", plant.addresses["training"])

    assert result.exit_code == 2
    assert "the comparison failed: parts has one class only" in result.stderr


def test_a_wish_refused_elsewhere_is_told_in_the_services_words(
    inspectbus: Inspectbus, plant: Plant, tmp_path: Path
) -> None:
    plant.refuse("CompareModels", BadField("no model is called 'resnet'", field="plan.models"))

    result = inspectbus("compare", "parts", "--out", tmp_path / "report", "--address", plant.addresses["training"])

    assert result.exit_code == 2
    assert "no model is called 'resnet'" in result.stderr


def _packed(files: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as report:
        for name, content in files.items():
            report.writestr(name, content)
    return file.getvalue()
