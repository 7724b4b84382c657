"""The command line against a plant behind real doors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from inspectbus.cli.app import app
from inspectbus.runtime import logs
from tests.doubles.plant import Plant, open_plant

Inspectbus = Callable[..., Result]


@pytest.fixture
def plant() -> Iterator[Plant]:
    with open_plant() as plant:
        yield plant


@pytest.fixture
def inspectbus(monkeypatch: pytest.MonkeyPatch) -> Inspectbus:
    """Runs a command as the shell would: `inspectbus("models", "--json")`."""
    # Logs would go to the runner's standard error, which is closed before the plant has said its last line.
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    # Names a folder for other tests; to a command it would be a setting misspelt.
    monkeypatch.delenv("INSPECTBUS_TEST_DATA", raising=False)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])
