"""What README, ARCHITECTURE and CONTRIBUTING say is so: links lead somewhere, commands parse, ports are real."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import typer
import yaml

from inspectbus.channels import Access
from inspectbus.cli.app import app
from inspectbus.line import SERVICES, settings_class

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    inline = re.findall(rf"`({program} [^`<]*)`", README)
    return [line for line in [*lines, *inline] if line.startswith(f"{program} ")]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("line", commands("inspectbus"))
def test_every_inspectbus_command_of_the_readme_is_understood(line: str) -> None:
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    context = command.make_context("inspectbus", list(words), resilient_parsing=False)
    remaining = [*context._protected_args, *context.args]
    while remaining:
        group = context.command
        name, found, rest = group.resolve_command(context, remaining)  # type: ignore[attr-defined]
        if "--help" in rest:
            return
        context = found.make_context(name, list(rest), parent=context)
        if not hasattr(found, "resolve_command"):
            return
        remaining = [*context._protected_args, *context.args]


def test_how_a_plant_is_called_is_said_with_the_words_of_access() -> None:
    told = set(re.findall(r'(?:Access\(|, |`)(\w+)="[\w.-]+\.(?:pem|crt|key|token)"', README.replace("\n", " ")))

    assert told == {"ca", "certificate", "key", "token_file"}
    assert told <= {each.name for each in fields(Access)}


@pytest.mark.parametrize("line", commands("make"))
def test_every_make_command_of_the_readme_has_a_target(line: str) -> None:
    words = shlex.split(line.split("PIP_ARGS")[0])
    done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_plant_file_of_the_readme_is_accepted() -> None:
    (plant,) = (yaml.safe_load(block) for block in blocks("yaml"))
    for service, section in plant.items():
        settings_class(service).load(section)


def test_the_table_of_services_has_their_default_ports() -> None:
    rows = {row[0]: row[1:] for row in re.findall(r"^\| (\w+) \|[^|]*\| (\d+) \| (\d+) \|$", README, re.MULTILINE)}
    defaults = {name: settings_class(name).model_fields for name in SERVICES}
    assert rows == {
        name: (str(fields["port"].default), str(fields["metrics_port"].default)) for name, fields in defaults.items()
    }


def test_prometheus_scrapes_the_default_metrics_ports() -> None:
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = scrape["scrape_configs"]
    found = {each["labels"]["service"]: each["targets"] for each in job["static_configs"]}
    ports = {name: settings_class(name).model_fields["metrics_port"].default for name in SERVICES}
    assert found == {name: [f"127.0.0.1:{port}"] for name, port in ports.items()}


def test_the_python_of_the_readme_uses_what_the_client_has() -> None:
    from inspectbus_client import Client, Decision

    # The other one, for clients that are not ours, is run by the tests of inference.
    snippet, _ = blocks("python")
    compile(snippet, "README.md", "exec")
    assert all(hasattr(Client, name) for name in re.findall(r"client\.(\w+)\(", snippet))
    assert set(re.findall(r"decision\.(\w+)", snippet)) <= set(Decision.__dataclass_fields__)
