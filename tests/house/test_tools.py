"""Every tool that checks something is there where `make test` runs, or its absence is told: under CI by a failure."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.doubles.servers import TOOLS, tool

ROOT = Path(__file__).parents[2]
TESTS = {file: file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py")}


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_that_is_absent_fails_under_ci_and_skips_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=f"{name} is not installed: {TOOLS[name]}"):
        tool(name)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=f"{name} is not installed"):
        tool(name)


@pytest.mark.parametrize("name", TOOLS)
def test_make_test_brings_what_tests_run(name: str) -> None:
    installer, _, package = TOOLS[name].rpartition(" ")
    if installer == "pip install":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        assert package in [re.split(r"[>=<\[]", entry)[0] for entry in extras["test"]]
    else:
        (servers,) = re.findall(r"^SERVERS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert package in servers.split()


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_run_by_a_test_and_looked_for_in_one_way(name: str) -> None:
    assert [file for file, text in TESTS.items() if f'tool("{name}")' in text]
    assert [file for file, text in TESTS.items() if f'which("{name}"' in text] == []
