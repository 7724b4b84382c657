"""Minutes of a line whose processes and broker are killed again and again: every frame is decided, each once.

SOAK_S seconds of frames (120 unless told), one death every few of them.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.doubles.line_processes import LineProcesses
from tests.doubles.marked_parts import write_parts
from tests.doubles.rabbitmq import Broker
from tests.doubles.records import Records, await_records

SOAK_S = float(os.environ.get("SOAK_S", "120"))
FPS = 40
DEATHS_EVERY_S = 4.0
STATIONS = ("top", "side")
PATIENCE_S = 120.0

pytestmark = [pytest.mark.soak, pytest.mark.rabbitmq, pytest.mark.timeout(SOAK_S * 3 + 300)]


def test_a_line_that_keeps_dying_decides_every_frame_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = int(SOAK_S * FPS / len(STATIONS))
    write_parts(tmp_path / "parts", 100)
    database_url = f"sqlite:///{tmp_path / 'ledger.db'}"
    stations = [
        {
            "name": name,
            "frames": frames,
            "fps": FPS / len(STATIONS),
            "source": {"kind": "folder", "path": tmp_path / "parts"},
        }
        for name in STATIONS
    ]
    dice = random.Random(20260101)
    pause = threading.Event()
    replicas = {"preprocessing": 2, "inference": 2}
    with (
        Broker(tmp_path / "broker") as broker,
        LineProcesses(tmp_path / "line", broker.url(), database_url, stations, replicas=replicas) as line,
    ):
        broker.settle()
        victims = [*(process.name for process in line.of("results", "preprocessing", "inference", "acquisition"))]
        deaths: list[str] = []
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < SOAK_S * 0.8:
            pause.wait(dice.uniform(0.5, 1.5) * DEATHS_EVERY_S)
            victim = dice.choice([*victims, "broker"])
            deaths.append(victim)
            if victim == "broker":
                broker.kill()
                broker.start()
            else:
                line[victim].kill()

        def complete(records: Records) -> bool:
            return len(records.decisions) >= frames * len(STATIONS)

        records = await_records(database_url, complete, SOAK_S + PATIENCE_S)
        wall_s = time.monotonic() - begun_s
        cpu_s = line.cpu_s

    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(records.decisions)} frames in {wall_s:.0f} s, {records.duplicates} repeats counted; deaths: "
            f"{', '.join(deaths)}; CPU seconds: {', '.join(f'{name} {each:.1f}' for name, each in cpu_s.items())}\n"
        )
    for station in STATIONS:
        assert not records.missing(station, frames)
    assert not records.twice()
    assert not records.wrong()
    assert not records.conflicts
