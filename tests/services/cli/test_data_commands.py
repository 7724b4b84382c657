"""`inspectbus data check` as a shell sees it: what is printed where, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.doubles.pictures import encoded, textured

Inspectbus = Callable[..., Result]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for place, folder in enumerate(("train/good", "train/defective", "test/good", "test/defective")):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(4):
            (tmp_path / folder / f"{number}.png").write_bytes(encoded(textured(60, 80, 10 * place + number)))
    return tmp_path


def test_a_clean_set_ends_with_0(inspectbus: Inspectbus, parts: Path) -> None:
    result = inspectbus("data", "check", parts)

    assert result.exit_code == 0, result.output
    assert "nothing to be mended" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["split:", "held", "out", "4", "4"] in rows
    assert ["size", "80x60", "8", "8"] in rows
    assert "reading" in result.stderr
    assert "reading" not in result.stdout


def test_findings_end_with_1_and_are_listed(inspectbus: Inspectbus, parts: Path) -> None:
    (parts / "train/good/9.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (parts / "test/good/again.jpg").write_bytes(encoded(textured(60, 80, 12), ".jpg"))

    shown = inspectbus("data", "check", parts)
    told = inspectbus("data", "check", parts, "--json")

    assert (shown.exit_code, told.exit_code) == (1, 1)
    assert "train/good/9.png: the PNG is cut short" in shown.stdout
    assert "near duplicates on both sides of the split" in shown.stdout
    report = json.loads(told.stdout)
    assert {finding["about"]: finding["files"] for finding in report["findings"]} == {
        "unreadable": ["train/good/9.png"],
        "likeness": ["test/good/again.jpg", "train/defective/2.png"],
    }
    assert report["unreadable"].keys() == {"train/good/9.png"}
    assert report["alike"][0]["labels"] == ["good", "defective"]


@pytest.mark.parametrize(
    ("folder", "told"),
    [("train/defectiv", "train/defectiv names no class: was 'defective' meant?"), (None, "neither a folder nor")],
)
def test_what_is_no_data_set_ends_with_2_and_one_line(
    inspectbus: Inspectbus, parts: Path, folder: str | None, told: str
) -> None:
    if folder:
        (parts / "train/defective").rename(parts / folder)

    result = inspectbus("data", "check", parts if folder else parts / "nowhere")

    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""


def test_help_shows_examples(inspectbus: Inspectbus) -> None:
    result = inspectbus("data", "check", "--help")

    assert result.exit_code == 0
    assert "inspectbus data check elpv" in result.stdout
    assert "Exit code 0" in result.stdout
