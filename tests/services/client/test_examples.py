"""The examples run, as their docstrings say, against a plant behind real doors."""

from __future__ import annotations

import random
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.doubles.plant import PNG, Plant

EXAMPLES = Path(__file__).parents[3] / "clients" / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_a_folder_is_sorted_by_verdict(plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good.png", "scratched.png", "dark.png"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "notes.txt").write_text("a shopping list")

    code = example("inspect_folder.py")["main"]([str(tmp_path), "--acquisition", plant.addresses["acquisition"]])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[:2] == ["DEFECTIVE: 1", "  scratched.png"]
    assert "  dark.png" in lines
    assert any(line.startswith("  notes.txt (") and "not a PNG" in line for line in lines)


def test_a_camera_pushes_and_a_watcher_sees_every_frame_once_over_two_sittings(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push = ["--acquisition", plant.addresses["acquisition"], "--frames", "6", "--fps", "0", "--scratched", "0.5"]
    assert example("push_camera.py")["main"](push) == 0
    assert "6 of 6 frames accepted" in capsys.readouterr().out
    assert {record.truth for record in plant.records} == {1, 2}

    cursor = tmp_path / "seen.txt"
    cursor.write_text("0")
    watch = ["--results", plant.addresses["results"], "--line", "line-1", "--cursor-file", str(cursor), "--limit", "3"]
    for _ in range(2):
        assert example("watch_line.py")["main"](watch) == 0

    seen = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert seen == ["#1", "#2", "#3", "#4", "#5", "#6"]


def test_a_rendered_part_is_an_image_and_a_scratch_is_on_it() -> None:
    render = example("push_camera.py")["render"]

    def pixels(scratched: bool) -> NDArray[np.uint8]:
        decoded: Any = cv2.imdecode(np.frombuffer(render(random.Random(1), scratched), np.uint8), cv2.IMREAD_GRAYSCALE)
        return np.asarray(decoded, np.uint8)

    good, bad = pixels(False), pixels(True)

    assert good.shape == (128, 128)
    disc = np.hypot(*(np.indices(good.shape) - 64)) < 45
    assert good[disc].min() > 150
    assert bad[disc].min() < 70


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_explains_itself_when_asked(name: str) -> None:
    roots = [str(EXAMPLES.parent), str(EXAMPLES.parents[1] / "services")]
    answer = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--help"],
        env={"PYTHONPATH": ":".join(roots)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"python clients/examples/{name}" in answer.stdout
