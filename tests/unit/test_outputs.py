"""Outputs hear what the gate does, in order; one that is slow or fails harms nobody else."""

from __future__ import annotations

import json
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import Counter
from structlog.testing import capture_logs

from inspectbus.acquisition import gate_watch, outputs
from inspectbus.acquisition.gate_watch import Watchers
from inspectbus.acquisition.outputs import Feeder, FileOutput, LogOutput, Output
from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE
from inspectbus.api.v1.gate_pb2 import (
    GATE_ACTION_DIVERT,
    GATE_ACTION_REJECT,
    GATE_REASON_DECISION,
    GATE_REASON_RESTART,
    GateOutcome,
)
from inspectbus.errors import BusClosed, QueueFull

PATIENCE_S = 10.0


def outcome(name: str) -> GateOutcome:
    return GateOutcome(frame_id=name, line="line-1", station="top", action=GATE_ACTION_DIVERT)


class Sorter:
    """An output that fails while told to, and stands still while told to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.beats = 0
        self.breakage = ""
        self.may_act = threading.Event()
        self.may_act.set()
        self.began = threading.Event()

    def act(self, outcome: GateOutcome) -> None:
        self.began.set()
        assert self.may_act.wait(PATIENCE_S)
        if self.breakage:
            raise OSError(self.breakage)
        self.seen.append(outcome.frame_id)

    def heartbeat(self) -> None:
        self.beats += 1


@pytest.fixture
def failures() -> Counter:
    return Counter("failures", "For a test.", registry=None)


@pytest.fixture
def feeder_of(failures: Counter) -> Iterator[Callable[[Output], Feeder]]:
    feeders: list[Feeder] = []

    def made(output: Output) -> Feeder:
        feeders.append(Feeder("sorter", output, failures))
        feeders[-1].start()
        return feeders[-1]

    yield made
    for feeder in feeders:
        feeder.close()


def counted(failures: Counter) -> float:
    samples = (sample for metric in failures.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


def test_an_output_hears_everything_in_order_even_what_waits_at_the_end(
    feeder_of: Callable[[Output], Feeder], failures: Counter
) -> None:
    sorter = Sorter()
    feeder = feeder_of(sorter)
    for name in "abc":
        feeder.act(outcome(name))
    feeder.heartbeat()

    feeder.close()

    assert (sorter.seen, sorter.beats) == (["a", "b", "c"], 1)
    assert (feeder.trouble, counted(failures)) == ("", 0)


def test_a_failure_is_counted_and_told_and_the_next_outcome_is_tried(
    feeder_of: Callable[[Output], Feeder], failures: Counter
) -> None:
    sorter = Sorter()
    feeder = feeder_of(sorter)
    sorter.breakage = "no air pressure"
    sorter.may_act.clear()
    feeder.act(outcome("a"))
    assert sorter.began.wait(PATIENCE_S)
    feeder.act(outcome("b"))
    feeder.act(outcome("c"))
    sorter.may_act.set()

    feeder.close()

    assert sorter.seen == []
    assert counted(failures) == 3
    assert feeder.trouble == "output sorter: 3 outcomes missed, the last for: no air pressure"


def test_an_output_that_stands_still_costs_nobody_time_and_only_its_own_outcomes(
    feeder_of: Callable[[Output], Feeder], failures: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "FEEDER_LIMIT", 2)
    sorter = Sorter()
    sorter.may_act.clear()
    feeder = feeder_of(sorter)
    feeder.act(outcome("in hand"))
    assert sorter.began.wait(PATIENCE_S)

    for name in ("waits", "waits too", "too much"):
        feeder.act(outcome(name))
        feeder.heartbeat()

    assert sorter.beats == 0, "its heartbeats stop with it"
    assert counted(failures) == 1
    assert "2 outcomes wait for it already" in feeder.trouble
    sorter.may_act.set()
    feeder.close()
    assert sorter.seen == ["in hand", "waits", "waits too"]


def test_a_file_output_writes_json_lines_and_turns_over(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gate.jsonl"
    output = FileOutput(path, max_bytes=4096)
    said = outcome("a")
    said.action, said.reason, said.verdict = GATE_ACTION_REJECT, GATE_REASON_DECISION, VERDICT_DEFECTIVE
    said.part_id, said.waited_s = "4711", 0.25
    said.at.FromSeconds(1_700_000_000)

    output.act(said)

    assert json.loads(path.read_text()) == {
        "frame_id": "a",
        "line": "line-1",
        "station": "top",
        "action": "REJECT",
        "reason": "DECISION",
        "at": "2023-11-14T22:13:20Z",
        "waited_s": 0.25,
        "verdict": "DEFECTIVE",
        "part_id": "4711",
    }
    for number in range(100):
        output.act(outcome(str(number)))
    sizes = [file.stat().st_size for file in (path, path.with_name("gate.jsonl.1"))]
    assert max(sizes) <= 4096
    assert json.loads(path.read_text().splitlines()[-1])["frame_id"] == "99"
    output.heartbeat()
    assert float((tmp_path / "new" / "gate.jsonl.heartbeat").read_text()) > 1_700_000_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_disk_that_is_full_takes_no_outcome_and_no_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "gate.jsonl"
    path.symlink_to("/dev/full")
    (tmp_path / "gate.jsonl.heartbeat.part").symlink_to("/dev/full")
    output = FileOutput(path, max_bytes=4096)
    with pytest.raises(OSError, match="No space left"):
        output.act(outcome("a"))
    with pytest.raises(OSError, match="No space left"):
        output.heartbeat()
    assert not (tmp_path / "gate.jsonl.heartbeat").exists()


def test_half_a_row_is_taken_back_so_that_the_next_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "gate.jsonl"
    output = FileOutput(path, max_bytes=4096)
    output.act(outcome("a"))
    room = path.stat().st_size + 10
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        with pytest.raises(OSError, match=r"No space left|too large"):
            output.act(outcome("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    output.act(outcome("c"))
    assert [json.loads(row)["frame_id"] for row in path.read_text().splitlines()] == ["a", "c"]


def test_the_log_says_what_a_restart_left() -> None:
    said = outcome("a")
    said.reason = GATE_REASON_RESTART

    with capture_logs() as entries:
        LogOutput().act(said)
        LogOutput().heartbeat()

    [entry] = entries
    assert (entry["action"], entry["reason"]) == ("DIVERT", "RESTART")
    assert "waited_s" not in entry


def test_a_watcher_that_falls_behind_is_told_and_others_are_not_harmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_watch, "WATCHER_LIMIT", 3)
    watchers = Watchers(heartbeat_s=1)
    with watchers.watch() as slow, watchers.watch() as quick:
        for name in "abcd":
            watchers.act(outcome(name))
            event = quick.next(PATIENCE_S)
            assert event is not None
            assert event.outcome.frame_id == name

        with pytest.raises(QueueFull, match="outcomes were missed"):
            slow.next(PATIENCE_S)
        watchers.heartbeat()
        event = quick.next(PATIENCE_S)
        assert event is not None
        assert event.HasField("heartbeat")
        watchers.close()
        with pytest.raises(BusClosed):
            quick.next(PATIENCE_S)
