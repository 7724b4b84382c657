"""Two of results and of acquisition: watchers of either see every decision once, inspections go through either."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspectbus_client import Client, Verdict
from tests.faults.scenario import CAMERAS, PUSHED, SIZES, Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

PATIENCE_S = 60.0


class Watcher:
    """Writes down the frames of all decisions one replica tells."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seen: list[str] = []

    @contextmanager
    def watching(self, address: str) -> Iterator[Watcher]:
        with Client.connect({"results": address}) as client, client.watch_decisions(after=0) as watch:

            def read() -> None:
                for record in watch:
                    with self._changed:
                        self._seen.append(record.decision.frame_id)
                        self._changed.notify_all()

            thread = threading.Thread(target=read, name=f"watcher of {address}", daemon=True)
            thread.start()
            yield self
        thread.join(PATIENCE_S)

    def seen(self, count: int) -> Counter[str]:
        """How often each frame was told, once so many have been."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._seen) >= count, PATIENCE_S), f"only {len(self._seen)} seen"
            return Counter(self._seen)


@SIZES
def test_replicas_tell_every_decision_once(frames: int, tmp_path: Path, bus_url: str, ledger_url: str) -> None:
    replicas = {"results": 2, "acquisition": 2}
    with Scenario("two replicas, one killed", frames, tmp_path, bus_url, ledger_url, replicas=replicas) as scenario:
        line, killed = scenario.line, scenario.line["results-1"]
        owned = [{station.station for station in scenario.stations_of(number)} for number in range(2)]
        assert [stations & {*CAMERAS, PUSHED} for stations in owned] == [{CAMERAS[0], PUSHED}, {CAMERAS[1]}]
        with (
            Watcher().watching(line.address("results-0")) as first,
            Watcher().watching(line.address("results-1")) as second,
        ):
            for share in (0.2, 0.4, 0.6):
                scenario.await_recorded(share)
                assert [scenario.inspect(number).verdict for number in range(2)] == [Verdict.DEFECTIVE] * 2
                starts = killed.starts
                killed.kill()
                assert [scenario.inspect(number).verdict for number in range(2)] == [Verdict.DEFECTIVE] * 2
                killed.await_start(starts + 1)
            figures = scenario.finish()
            decided = Counter(scenario.records().decisions.keys())
            assert first.seen(figures.recorded) == decided
            assert second.seen(figures.recorded) == decided
        assert killed.exits == (-signal.SIGKILL,) * 3
        assert not line["results-0"].exits
