"""SIGKILL at any moment of a replay: the run goes on, no frame is skipped, and repeats carry the same ids."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from inspectbus.domain.frame import frame_id

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("replaying_process.py")
PATIENCE_S = 60.0
FRAMES = 300
KILLS = 3


@pytest.fixture
def replay(images: Path, tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    paths = [str(ROOT / part) for part in ("services", "clients", ".")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    arguments = [sys.executable, str(SCRIPT), str(images), str(tmp_path / "state"), str(tmp_path / "ledger")]
    return lambda: subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, text=True)


def wait_for_rows(ledger: Path, count: int, process: subprocess.Popen[str]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if ledger.exists() and ledger.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, "the replay ended before it was killed"
        pause.wait(0.005)
    raise AssertionError(f"{count} frames were not recorded in time")


def test_a_killed_replay_resumes_its_run_and_skips_no_frame(
    replay: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    dice = random.Random(20260101)
    recorded = 0

    for _ in range(KILLS):
        with replay() as process:
            wait_for_rows(ledger, recorded + dice.randint(20, 120), process)
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)
        recorded = ledger.read_bytes().count(b"\n")
    with replay() as process:
        assert process.stdout is not None
        assert process.stdout.read().split()[-1] == "finished"
        assert process.wait(PATIENCE_S) == 0

    rows = [row.split() for row in ledger.read_text().splitlines()]
    assert len({run_id for run_id, *_ in rows}) == 1, "one run all along"
    run_id = rows[0][0]
    wanted = {
        (str(number), item, frame_id("line-1", "top", run_id, item, number))
        for number in range(FRAMES)
        for item in [f"part-{number % 12}.png"]
    }
    assert {tuple(row[1:]) for row in rows} == wanted
    assert FRAMES <= len(rows) < 2 * FRAMES, "a crash repeats some frames, not all"
