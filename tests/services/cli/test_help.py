"""What --help says of defaults and choices is what services do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import typer.main

from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.cli.app import app
from inspectbus.domain.model_version import Views
from inspectbus.line import ADDRESS_FIELDS, SERVICES, settings_class
from inspectbus.runtime.roles import Role
from inspectbus.training.augmentation import Augmentation
from inspectbus.training.comparison.terms import MODELS, QUICK_EPOCHS, QUICK_IMAGES, compared_plan
from inspectbus.training.plan import BATCH, Depth, Plan
from inspectbus.training.settings import TrainingSettings
from tests.services.cli.conftest import Inspectbus

SETTINGS = {name: field.default for name, field in TrainingSettings.model_fields.items()}
COMPARED = compared_plan(data="parts", backbone="any")


def parameters(command: Any = None, *path: str) -> Iterator[tuple[str, Any]]:
    """Every parameter of every command, as "models set-alias --force"."""
    command = command or typer.main.get_command(app)
    for name, sub in getattr(command, "commands", {}).items():
        yield from parameters(sub, *path, name)
    for parameter in command.params:
        yield " ".join((*path, parameter.opts[0])), parameter


OPTIONS = dict(parameters())


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("train --backbone", SETTINGS["backbone"]),
        ("train --epochs", f"{SETTINGS['epochs']}, or {SETTINGS['whole_epochs']} with --depth whole"),
        ("train --seed", f"{SETTINGS['seed']}"),
        ("train --input-size", f"{SETTINGS['input_size']}"),
        ("train --depth", SETTINGS["depth"]),
        ("train --batch", f"{BATCH['upper']}, or {BATCH['whole']} with --depth whole"),
        ("run --epochs", f"{SETTINGS['epochs']}"),
        ("run --seed", f"{SETTINGS['seed']}"),
        ("compare --backbone", SETTINGS["backbone"]),
        ("compare --epochs", f"{COMPARED.epochs}"),
        ("compare --input-size", f"{COMPARED.input_size}"),
        ("compare --depth", COMPARED.depth),
        ("compare --images", f"all, or {QUICK_IMAGES} with --quick"),
        ("inspect --recipe", AcquisitionSettings.model_fields["inspect_recipe"].default),
    ],
)
def test_a_default_that_is_the_services_is_shown_as_it_is_there(option: str, default: str) -> None:
    assert OPTIONS[option].show_default == default


def test_a_shorter_comparison_has_the_epochs_that_help_says() -> None:
    assert f"at most {QUICK_EPOCHS}." in OPTIONS["compare --epochs"].help


@pytest.mark.parametrize("name", ["precision", "views", "dropout"])
def test_a_default_of_every_plan_is_that_of_the_command(name: str) -> None:
    assert OPTIONS[f"train --{name}"].default == Plan.model_fields[name].default


@pytest.mark.parametrize("name", sorted(Augmentation.model_fields))
def test_images_are_varied_by_default_as_the_service_does(name: str) -> None:
    assert OPTIONS[f"train --{name}"].default == Augmentation.model_fields[name].default


def test_the_address_shown_is_the_services_port() -> None:
    addresses = {name: option for name, option in OPTIONS.items() if name.endswith("--address")}
    shown = {
        re.sub(r"The (\w+) service\.", r"\1", each.help): each.show_default
        for each in addresses.values()
        if each.show_default
        if isinstance(each.show_default, str)
    }

    assert set(shown) == {"acquisition", "preprocessing", *ADDRESS_FIELDS.values()}
    assert shown == {name: f"127.0.0.1:{settings_class(name).model_fields['port'].default}" for name in shown}


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("train", get_args(Depth)),
        ("train", ("auto", "fp32", "bf16")),
        ("train", tuple(map(str, get_args(Views)))),
        ("compare", get_args(Depth)),
        ("tokens make", tuple(role for role in Role if role is not Role.ANYBODY)),
        ("decisions list", ("qualified", "defective", "hold")),
    ],
)
def test_what_can_be_chosen_is_shown(
    inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch, command: str, choices: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    assert "|".join(choices) in inspectbus(*command.split(), "--help").stdout


def test_services_and_compared_models_are_named_as_they_are_called() -> None:
    assert OPTIONS["compare --models"].metavar == ",".join(MODELS)
    assert ", ".join(SERVICES) in OPTIONS["serve services"].help
    assert ", ".join(SERVICES) in OPTIONS["doctor services"].help


def test_no_number_stands_for_a_default() -> None:
    told = [name for name, each in OPTIONS.items() if "is the default" in (each.help or "")]

    assert told == []


def test_a_word_that_is_no_choice_is_refused_with_the_choices(inspectbus: Inspectbus) -> None:
    refused = inspectbus("train", "parts", "--depth", "deep")

    assert refused.exit_code == 2
    assert re.search(r"upper.*whole", refused.stderr, re.DOTALL)
