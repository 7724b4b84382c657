"""Services are killed again and again, and nothing is lost, doubled or left without its outcome."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.scenario import SIZES, Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

KILLS = 12


@SIZES
def test_every_service_killed_in_turn(frames: int, tmp_path: Path, bus_url: str, ledger_url: str) -> None:
    with Scenario("services killed", frames, tmp_path, bus_url, ledger_url) as scenario:
        names = ["inference-0", "preprocessing-0", "results-0", "acquisition-0"]
        for number in range(KILLS):
            scenario.await_recorded((number + 1) / (KILLS + 6))
            process = scenario.line[names[number % len(names)]]
            starts = process.starts
            process.kill()
            process.await_start(starts + 1)
        scenario.finish()
        assert sum(len(process.exits) for process in scenario.line.of("results", "preprocessing", "inference")) >= 9
