"""`train`, `evaluate` and `run` with services of their own: a real line, and a training that costs no time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import typer.core

from inspectbus.cli.app import app
from inspectbus.cli.state import DEFAULT_STATE
from inspectbus.domain.model_version import ModelCard
from inspectbus.runtime import logs
from inspectbus.stores.datasets import Dataset
from inspectbus.stores.models import read_card
from inspectbus.training import trainer
from inspectbus.training.plan import Plan
from tests.doubles.tiny_model import BRIGHT, DARK, flat_image, tiny_version

Command = Callable[..., object]
EACH = 8


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

    assert set(folders) == {"run", "train", "evaluate", "inspect"}
    assert set(folders.values()) == {"INSPECTBUS_STATE_DIR"}
