"""SIGKILL at any moment: a replay goes on and skips no frame, and no frame accepted by a spool is lost."""

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
REPLAYING = Path(__file__).with_name("replaying_process.py")
SPOOLING = Path(__file__).with_name("spooling_process.py")
PATIENCE_S = 60.0
FRAMES = 300
KILLS = 3


@pytest.fixture
def replay(images: Path, tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    return lambda: process(REPLAYING, images, tmp_path / "state", tmp_path / "ledger")


def process(script: Path, *arguments: object) -> subprocess.Popen[str]:
    paths = [str(ROOT / part) for part in ("services", "clients", ".")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)


def wait_for_rows(ledger: Path, count: int, process: subprocess.Popen[str]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if ledger.exists() and ledger.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, "the process ended before it was killed"
        pause.wait(0.005)
    raise AssertionError(f"{count} rows were not written in time")


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


def test_a_killed_station_loses_no_frame_that_its_disk_or_the_bus_accepted(tmp_path: Path) -> None:
    state, accepted, ledger = (tmp_path / name for name in ("state", "accepted", "ledger"))
    dice = random.Random(20260102)

    for life in range(KILLS):
        known = accepted.read_bytes().count(b"\n") if life else 0
        with process(SPOOLING, state, accepted, ledger, "push") as station:
            wait_for_rows(accepted, known + dice.randint(50, 400), station)
            station.send_signal(signal.SIGKILL)
            station.wait(PATIENCE_S)
    spooled = sum(file.stat().st_size for file in (state / "acquisition" / "spool" / "line-1.top").glob("*.log"))
    with process(SPOOLING, state, accepted, ledger, "drain") as station:
        assert station.stdout is not None
        assert station.stdout.read().split()[-1] == "drained"
        assert station.wait(PATIENCE_S) == 0

    acknowledged, recorded = (set(file.read_text().split()) for file in (accepted, ledger))
    assert len(acknowledged) >= 50 * KILLS
    assert spooled > 0, "the disk had a part in it"
    assert acknowledged - recorded == set(), "lost"
