"""`inspectbus advise`: thresholds for a recipe, as words, as JSON and as a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

from inspectbus.domain.recipe import Recipe
from tests.doubles.plant import Plant
from tests.services.cli.conftest import Inspectbus


def test_the_advice_is_a_sentence_lines_for_a_recipe_and_what_other_limits_give(
    inspectbus: Inspectbus, plant: Plant
) -> None:
    found = inspectbus(
        "advise", "elpv", "--escape-ppm", 20000, "--held", 0.05, "--address", plant.addresses["training"]
    )

    lines = found.stdout.splitlines()
    assert lines[0] == (
        "elpv/1b2c1b2c1b2c1b2c: at most 20,000 ppm escape gives at most 3.00% overkill with at most 5.00% held, "
        "at 95% confidence, from 300 defective and 900 good images"
    )
    recipe = Recipe.from_yaml("\n".join(["name: cells", "model: elpv", *lines[1:3]]))
    assert (recipe.qualified_below, recipe.threshold) == (0.25, 0.3)
    assert [line.split()[0] for line in lines[-3:]] == ["10000", "20000", "40000"]
    assert lines[-2].split() == ["20000", "10000", "3.000", "2.000", "5.000", "2.500", "1.250", "0.250000", "0.300000"]


def test_without_a_held_limit_there_is_one_threshold_and_no_band(inspectbus: Inspectbus, plant: Plant) -> None:
    door = ("--address", plant.addresses["training"])

    shown = inspectbus("advise", "elpv", "--escape-ppm", 20000, *door).stdout
    said = json.loads(inspectbus("advise", "elpv", "--escape-ppm", 20000, "--json", *door).stdout)

    assert "threshold: 0.250000\n" in shown
    assert "qualified_below:" not in shown
    assert said["advice"]["qualified_below"] == said["advice"]["threshold"] == 0.25
    assert (said["good"], said["defective"], said["confidence"]) == (900, 300, 0.95)
    assert [each["escape"]["at_most"] for each in said["curve"]] == [0.01, 0.02, 0.04]


@pytest.mark.parametrize("held", [0.0, 0.05])
def test_the_plot_is_a_picture(inspectbus: Inspectbus, plant: Plant, tmp_path: Path, held: float) -> None:
    file = tmp_path / "trade-off"

    done = inspectbus(
        *("advise", "elpv", "--escape-ppm", 20000, "--held", held, "--plot", file),
        *("--version", "0f3a0f3a0f3a0f3a", "--address", plant.addresses["training"]),
    )

    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("elpv/0f3a0f3a0f3a0f3a")
    assert file.read_bytes().startswith(b"\x89PNG")
    picture = cv2.imread(str(file))
    assert picture is not None
    assert picture.std() > 10


def test_what_cannot_be_advised_is_an_error_with_the_services_words(inspectbus: Inspectbus, plant: Plant) -> None:
    door = ("--address", plant.addresses["training"])

    refused = inspectbus("advise", "elpv", "--escape-ppm", 500, *door)

    assert refused.exit_code == 2
    assert "with 300 defective images no threshold can show that" in refused.stderr
    assert refused.stdout == ""


def test_a_plot_that_cannot_be_written_is_an_error(
    inspectbus: Inspectbus, plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("advise", "elpv", "--escape-ppm", 20000, "--address", plant.addresses["training"], "--plot")

    nowhere = inspectbus(*asked, tmp_path / "no" / "such" / "folder.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    not_installed = inspectbus(*asked, tmp_path / "a.png")

    assert (nowhere.exit_code, not_installed.exit_code) == (2, 2)
    assert "No such file" in nowhere.stderr
    assert "pip install 'inspectbus[training]'" in not_installed.stderr
