"""`inspectbus run` as a user runs it: a process of its own, a real training, a report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.doubles.rendered import disc, encode

pytestmark = pytest.mark.slow

PATIENCE_S = 240


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "inspectbus", *arguments]


def run(state: Path, *arguments: str, expect: int = 0) -> dict[str, Any]:
    """Runs to the end and gives the report."""
    report = state.parent / f"{state.name}-report.json"
    report.unlink(missing_ok=True)
    finished = subprocess.run(
        command("run", "--state", str(state), "--report", str(report), *arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert finished.returncode == expect, finished.stdout + finished.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    found["stdout"] = finished.stdout
    return found


@contextmanager
def running(state: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command("run", "--state", str(state), *arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def wait_for_line(process: subprocess.Popen[str], ending: str) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.rstrip().endswith(ending) and not line.startswith("0 of"):
            return line
    raise AssertionError(f"no line ends with {ending!r}: {seen}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, product: Path) -> Path:
    """A state folder with a model of the rendered product, made by a first run of 24 frames."""
    state = tmp_path_factory.mktemp("trained") / "state"
    first = run(state, "--data", str(product), "--frames", "24", "--fps", "0")
    assert (first["accepted"], first["recorded"], first["lost"]) == (24, 24, 0)
    assert sum(first["verdicts"].values()) == 24
    assert first["scores"]["f1"] is not None
    assert first["model"].startswith("discs/")
    assert first["latency_ms"]["p50"] > 0
    return state


def recorded(state: Path) -> list[str]:
    with closing(sqlite3.connect(state / "inspectbus.db")) as ledger:
        return [row[0] for row in ledger.execute("SELECT frame_id FROM decisions")]


def sorted_parts(state: Path) -> tuple[set[str], int]:
    """Frames with a gate outcome, and how many outcomes said something else the second time."""
    with closing(sqlite3.connect(state / "inspectbus.db")) as ledger:
        rows = ledger.execute("SELECT frame_id, conflicts FROM outcomes").fetchall()
    return {frame_id for frame_id, _ in rows}, sum(conflicts for _, conflicts in rows)


def test_a_second_run_reuses_the_model_and_records_its_own_frames(trained: Path, product: Path) -> None:
    before = set(recorded(trained))
    second = run(trained, "--data", str(product), "--frames", "40", "--fps", "0")
    assert "nothing to train" in second["stdout"]
    assert (second["accepted"], second["recorded"], second["lost"], second["duplicates"]) == (40, 40, 0, 0)
    assert len(set(recorded(trained)) - before) == 40


def test_a_run_killed_in_mid_replay_goes_on_and_records_every_frame_once(trained: Path, product: Path) -> None:
    before = set(recorded(trained))
    arguments = ("--data", str(product), "--frames", "60", "--fps", "4")
    for _ in range(2):
        with running(trained, *arguments) as process:
            wait_for_line(process, "frames accepted")
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
    killed = set(recorded(trained)) - before
    assert 0 < len(killed) < 60

    resumed = run(trained, *arguments[:-2], "--fps", "4")

    assert (resumed["accepted"], resumed["recorded"], resumed["lost"]) == (60, 60, 0)
    after = recorded(trained)
    assert len(after) == len(set(after)), "no frame twice"
    assert len(set(after) - before) == 60
    assert killed <= set(after)
    assert sorted_parts(trained) == (set(after), 0), "each part was sorted once, those under way at a kill as well"


def test_ctrl_c_drains_and_the_same_command_finishes_the_run(trained: Path, product: Path) -> None:
    before = set(recorded(trained))
    arguments = ("--data", str(product), "--frames", "40", "--fps", "4")
    with running(trained, *arguments) as process:
        wait_for_line(process, "frames accepted")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "interrupted" in rest

    finished = run(trained, *arguments)
    assert (finished["accepted"], finished["recorded"], finished["lost"]) == (40, 40, 0)
    assert finished["duplicates"] == 0, "a drained run has nothing to send again"
    assert len(set(recorded(trained)) - before) == 40


def test_unusable_and_unreadable_images_are_held_with_their_reason_and_the_line_goes_on(
    trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    rng = np.random.default_rng(11)
    sharp = disc(rng, scratched=False)
    pictures = {
        "01-good.png": encode(sharp),
        "02-blurred.png": encode(np.asarray(cv2.GaussianBlur(sharp, (0, 0), 9), np.uint8)),
        "03-black.png": encode(np.zeros_like(sharp)),
        "04-burnt.png": encode(np.full_like(sharp, 255)),
        "05-truncated.jpg": encode(sharp, ".jpg")[:900],
        "06-text.png": b"this is no picture",
        "07-tiny.png": encode(np.full((1, 1), 128, np.uint8)),
        "08-good.png": encode(disc(rng, scratched=False)),
    }
    for name, content in pictures.items():
        (folder / name).write_bytes(content)

    found = run(trained, "--data", str(folder), "--frames", "8", "--fps", "0")

    assert (found["accepted"], found["recorded"], found["lost"]) == (8, 8, 0)
    assert found["holds"] == {"unusable_image": 3, "error": 3}
    assert found["verdicts"]["hold"] == 6
    assert "hold: unusable_image" in found["stdout"]
    assert found["scores"]["f1"] is None


def test_two_runs_cannot_share_a_state_folder(trained: Path, product: Path) -> None:
    with running(trained, "--data", str(product), "--frames", "40", "--fps", "2") as process:
        wait_for_line(process, "frames accepted")
        refused = subprocess.run(
            command("run", "--state", str(trained), "--data", str(product)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: another run uses")
        assert refused.stderr.count("\n") == 1
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_unlabelled_images_without_any_model_say_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    (folder / "one.png").write_bytes(encode(np.full((64, 64), 128, np.uint8)))
    refused = subprocess.run(
        command("run", "--state", str(tmp_path / "state"), "--data", str(folder)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    assert refused.returncode == 2
    assert "inspectbus train" in refused.stderr


def test_images_are_inspected_after_a_training_alone_and_the_recipe_that_was_made_is_told(
    trained: Path, product: Path, tmp_path: Path
) -> None:
    # given a model, and no recipe that anybody put
    state = Path(shutil.copytree(trained, tmp_path / "state"))
    with closing(sqlite3.connect(state / "inspectbus.db")) as records:
        records.execute("DELETE FROM recipes")
        records.commit()
    image = str(next(product.rglob("*.png")))
    asked = command("inspect", image, "--json", "--state", str(state))

    first, again = (
        subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE_S, check=False) for _ in range(2)
    )

    told = [json.loads(each.stdout.splitlines()[-1]) for each in (first, again)]
    assert [each["hold"] for each in told] == [None, None], first.stderr
    assert told[0]["score"] == told[1]["score"]
    assert "so one was made" in first.stderr
    assert "so one was made" not in again.stderr
