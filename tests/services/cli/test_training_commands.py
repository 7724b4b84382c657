"""Commands with services of their own: a real line, and a training that costs no time."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import pytest
import typer.core

from inspectbus.acquisition.service import open_service
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.bus import connect
from inspectbus.cli.app import app
from inspectbus.cli.state import DEFAULT_STATE
from inspectbus.domain.model_version import ModelCard
from inspectbus.domain.recipe import QualityLimits, Recipe
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.quality import limits_from, measure
from inspectbus.line import ENGINE_PATIENCE_S, open_line
from inspectbus.runtime import logs
from inspectbus.stores.datasets import Dataset, open_dataset, split
from inspectbus.stores.models import read_card
from inspectbus.training import trainer
from inspectbus.training.plan import Plan
from inspectbus_client import Client
from tests.doubles.tiny_model import BRIGHT, DARK, flat_image, tiny_version

Command = Callable[..., object]
EACH = 8
LOOPBACK: dict[str, Any] = {"port": 0, "metrics_port": 0, "bus_url": "embedded://alone"}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command to its end and gives its exit code. In this process, whose standard error the watchdog needs."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)

    def run(*arguments: object) -> object:
        with pytest.raises(SystemExit) as end:
            app([str(argument) for argument in arguments])
        return end.value.code

    return run


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of dark good parts and bright defective ones, as a tiny version judges them."""
    folder = tmp_path / "parts"
    for label, level in (("good", DARK), ("defective", BRIGHT)):
        (folder / label).mkdir(parents=True)
        for number in range(EACH):
            assert cv2.imwrite(str(folder / label / f"{number}.png"), flat_image(level + number, 64, 64))
    return folder


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of the trainings, each of which makes a tiny version at once."""
    plans: list[Plan] = []

    def learn(plan: Plan, images: Dataset, out_dir: Path, **_: Any) -> ModelCard:
        assert images.items
        plans.append(plan)
        made = tiny_version(out_dir.parent / f"made-{len(plans)}", plan.model)
        shutil.copytree(made, out_dir, dirs_exist_ok=True)
        return read_card(out_dir)

    monkeypatch.setattr(trainer, "train", learn)
    return plans


def test_a_relative_path_means_the_folder_seen_from_where_the_command_is_given(
    command: Command,
    parts: Path,
    learnt: list[Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    state, report = ("--state", "../state"), tmp_path / "report.json"

    trained = command("train", "../parts", *state)
    capfd.readouterr()
    evaluated = command("evaluate", "../parts", "--json", *state)
    scores = json.loads(capfd.readouterr().out.splitlines()[-1])
    run = command("run", "--data", "../parts", "--frames", "4", "--fps", "0", "--report", report, *state)

    assert (trained, evaluated, run) == (0, 0, 0)
    assert learnt[0].data == str(parts)
    assert scores["f1"] == 1.0
    assert json.loads(report.read_text())["recorded"] == 4


def test_limits_are_measured_for_a_recipe_that_inspect_made_and_kept_where_somebody_put_one(
    command: Command, parts: Path, learnt: list[Plan], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state, report = ("--state", tmp_path / "state"), tmp_path / "report.json"
    run = ("run", "--data", parts, "--frames", "4", "--fps", "0", "--report", report, *state)
    measured = limits_from(measure(decode(image.read_bytes())) for image in training_part(parts))
    assert measured != QualityLimits()

    # given a recipe of which `inspect` could only guess the limits: it takes an even surface for a blurred image
    assert command("train", parts, *state) == 0
    assert command("inspect", parts / "good" / "0.png", *state) == 2
    assert "too blurred" in capfd.readouterr().out

    # when the images are known, then the limits are theirs
    assert command(*run) == 0
    assert json.loads(report.read_text())["verdicts"]["hold"] == 0
    assert [recipe.quality for recipe in recipes_in(tmp_path / "state")] == [QualityLimits(), measured]

    # and what somebody put stays, whatever the images say
    with (
        open_line(["preprocessing"], state_dir=tmp_path / "state", **LOOPBACK) as doors,
        Client(preprocessing=doors["preprocessing"].address) as client,
    ):
        client.put_recipe(Recipe(name="default", model="parts", description="mine").to_yaml())
    assert command(*run) == 0
    assert [recipe.description for recipe in recipes_in(tmp_path / "state")][2:] == ["mine"]


def test_unlabelled_images_are_judged_after_a_training_alone(
    command: Command, parts: Path, learnt: list[Plan], tmp_path: Path
) -> None:
    state, report = ("--state", tmp_path / "state"), tmp_path / "report.json"
    assert command("train", parts, *state) == 0

    code = command("run", "--data", parts / "good", "--frames", "4", "--fps", "0", "--report", report, *state)

    assert code == 0
    assert json.loads(report.read_text())["holds"] == {"unusable_image": 4}, (
        "looked at, and not refused for want of a recipe"
    )
    assert [recipe.model for recipe in recipes_in(tmp_path / "state")] == ["parts"]


def training_part(folder: Path) -> list[Path]:
    return [item.path for item in split(open_dataset(str(folder))).train.items]


def recipes_in(state: Path) -> list[Recipe]:
    """Every version, the oldest first."""
    with closing(sqlite3.connect(state / "inspectbus.db")) as records:
        rows = records.execute("SELECT yaml FROM recipes ORDER BY version").fetchall()
    return [Recipe.from_yaml(yaml) for (yaml,) in rows]


def test_the_environment_that_names_a_plants_folder_names_it_for_commands_too(
    command: Command, parts: Path, learnt: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSPECTBUS_STATE_DIR", str(tmp_path / "plant"))
    monkeypatch.setenv("INSPECTBUS_TRAINING_MODEL_STORE_URL", f"file://{tmp_path}/store")

    assert command("train", parts) == 0
    assert command("evaluate", parts) == 0

    assert (tmp_path / "plant" / "inspectbus.db").exists()
    assert [version.parent.name for version in tmp_path.glob("store/*/*")] == ["parts"]
    assert not (tmp_path / DEFAULT_STATE).exists()


def test_every_command_with_a_folder_of_its_own_takes_it_from_the_environment() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    folders = {
        name: parameter.envvar
        for name, command in group.commands.items()
        for parameter in command.params
        if parameter.name == "state"
    }

    assert set(folders) == {"run", "train", "evaluate", "compare", "inspect"}
    assert set(folders.values()) == {"INSPECTBUS_STATE_DIR"}


def test_a_model_whose_files_are_gone_is_named_when_the_patience_is_over(
    command: Command,
    parts: Path,
    learnt: list[Plan],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    state = tmp_path / "state"
    assert command("train", parts, "--state", state) == 0
    shutil.rmtree(state / "models")
    capfd.readouterr()
    begun_s = time.monotonic()

    code = command("inspect", parts / "good", "--state", state, "--timeout", "1")

    assert time.monotonic() - begun_s < ENGINE_PATIENCE_S / 2
    (told,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
    assert "inference did not load its model in 1 s" in told
    assert "model.json is not in the model store" in told
    assert code == 2


def test_a_folder_that_an_acquisition_uses_is_told_with_the_way_to_ask_that_one(
    command: Command,
    parts: Path,
    learnt: list[Plan],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = AcquisitionSettings(state_dir=tmp_path / "state", port=0, metrics_port=0)
    assert command("train", parts, "--state", settings.state_dir) == 0
    capfd.readouterr()

    with connect("embedded://plant") as bus, open_service(settings, bus):
        code = command("inspect", parts / "good" / "0.png", "--state", settings.state_dir)

    (told,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
    assert "another process has" in told
    assert "inspectbus inspect --address HOST:PORT" in told
    assert code == 2
