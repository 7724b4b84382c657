"""SIGKILL at any moment: each frame gets its one outcome, whatever of it was pending, given or unconfirmed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("gated_process.py")
PATIENCE_S = 60.0
FRAMES = 200

Run = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Run:
    """A process that works; its argument is what hangs."""
    paths = [str(ROOT / part) for part in ("services", "clients", ".")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    files = [str(tmp_path / name) for name in ("state", "ledger", "outcomes")]
    arguments = [sys.executable, str(SCRIPT), str(images), *files]
    return lambda hangs: subprocess.Popen([*arguments, hangs], env=environ, stdout=subprocess.PIPE, text=True)


def count(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if reached():
            return
        assert process.poll() is None, "the process ended before it was killed"
        pause.wait(0.005)
    raise AssertionError("it never came to that")


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)


def finish(run: Run) -> None:
    with run("nothing") as process:
        assert process.stdout is not None
        assert process.stdout.read().split()[-1] == "finished"
        assert process.wait(PATIENCE_S) == 0


def outcomes(tmp_path: Path) -> dict[str, set[tuple[str, str]]]:
    """By frame: reason and moment of what was delivered; a repeat says the same."""
    found = defaultdict(set)
    for row in (tmp_path / "outcomes").read_text().splitlines():
        frame_id, reason, at = row.split()
        found[frame_id].add((reason, at))
    return found


def recorded(tmp_path: Path) -> set[str]:
    return set((tmp_path / "ledger").read_text().split())


def reasons(tmp_path: Path) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for said in outcomes(tmp_path).values():
        for reason, _ in said:
            found[reason.removeprefix("GATE_REASON_")] += 1
    return dict(found)


def assert_one_each(tmp_path: Path) -> None:
    told = outcomes(tmp_path)
    assert len(recorded(tmp_path)) == FRAMES
    assert set(told) == recorded(tmp_path), "every recorded frame has an outcome, and nothing else has"
    assert [said for said in told.values() if len(said) != 1] == [], "and no frame has two"


def test_a_killed_station_gives_each_frame_one_outcome(run: Run, tmp_path: Path) -> None:
    dice = random.Random(20260202)
    for _ in range(3):
        enough = count(tmp_path / "outcomes") + dice.randint(10, 50)
        with run("nothing") as process:
            wait_until(lambda enough=enough: count(tmp_path / "outcomes") >= enough, process)  # type: ignore[misc]
            kill(process)

    finish(run)

    assert_one_each(tmp_path)
    assert set(reasons(tmp_path)) <= {"DECISION", "RESTART"}


def test_what_was_pending_at_the_kill_gets_the_fail_safe_at_the_next_start(run: Run, tmp_path: Path) -> None:
    # Frames published and none decided: each has one record, which names its line.
    journal = tmp_path / "state" / "acquisition" / "gate" / "line-1.top"

    def pending() -> int:
        return sum(path.read_bytes().count(b"line-1") for path in journal.glob("*.log"))

    with run("decisions") as process:
        wait_until(lambda: pending() >= 12, process)
        kill(process)
    left = pending()
    assert count(tmp_path / "outcomes") == 0

    finish(run)

    assert_one_each(tmp_path)
    assert reasons(tmp_path) == {"RESTART": left, "DECISION": FRAMES - left}


def test_outcomes_that_were_not_confirmed_at_the_kill_are_sent_again(run: Run, tmp_path: Path) -> None:
    with run("outcomes") as process:
        # Decided, journaled and sent; one was delivered and none confirmed.
        wait_until(lambda: count(tmp_path / "ledger") >= 50 and count(tmp_path / "outcomes") >= 1, process)
        kill(process)
    decided = recorded(tmp_path)

    finish(run)

    assert_one_each(tmp_path)
    assert decided <= set(outcomes(tmp_path))
    assert reasons(tmp_path)["DECISION"] > FRAMES / 2
