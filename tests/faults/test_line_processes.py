"""A line of processes around a real broker decides every frame, also when one is killed or a part kills it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from inspectbus_client import Shot
from tests.doubles.line_processes import LINE, LineProcesses
from tests.doubles.marked_parts import Fault, fails_inference, fails_preprocessing, name, picture, write_parts
from tests.doubles.rabbitmq import Broker
from tests.doubles.records import await_records

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]

FRAMES = 200
PATIENCE_S = 60.0


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


def test_a_killed_process_costs_no_frame(rabbitmq: Broker, tmp_path: Path, database_url: str) -> None:
    write_parts(tmp_path / "parts", 20)
    station = {"name": "top", "frames": FRAMES, "fps": 50, "source": {"kind": "folder", "path": tmp_path / "parts"}}
    with LineProcesses(tmp_path / "line", rabbitmq.url(rabbitmq.new_vhost()), database_url, [station]) as line:
        await_records(database_url, lambda records: len(records.decisions) >= 20, PATIENCE_S)
        line["inference-0"].kill()
        line["inference-0"].await_start(2, "model loaded")

        records = await_records(database_url, lambda records: len(records.decisions) >= FRAMES, PATIENCE_S)

        assert line["inference-0"].exits == (-signal.SIGKILL,)
        assert all(seconds > 0 for seconds in line.cpu_s.values())
    assert not records.missing("top", FRAMES)
    assert not records.twice()
    assert not records.wrong()
    assert not records.conflicts


@pytest.mark.parametrize("service", ["preprocessing", "inference"])
def test_a_part_that_kills_its_worker_is_held_and_the_others_are_judged(
    service: str, rabbitmq: Broker, tmp_path: Path, database_url: str
) -> None:
    poison = fails_preprocessing(Fault.CRASH) if service == "preprocessing" else fails_inference(Fault.CRASH)
    parts = [(name(number, number % 2 == 1), picture(number, number % 2 == 1)) for number in range(6)]
    parts.insert(3, ("poison", poison))
    station = {"name": "side", "source": {"kind": "push"}}
    bus_url = rabbitmq.url(rabbitmq.new_vhost())
    with LineProcesses(tmp_path / "line", bus_url, database_url, [station]) as line, line.client() as client:
        shots = [Shot(image, part_id=item) for item, image in parts]
        accepted = [each.shot.frame_id for each in client.publish_frames(shots, line=LINE, station="side")]

        records = await_records(database_url, lambda records: not records.lost(accepted), PATIENCE_S)

        assert -signal.SIGSEGV in line[f"{service}-0"].exits
    verdicts = {each.part_id: each for each in records.decisions.values()}
    assert "SIGSEGV" in verdicts["poison"].hold.detail
    assert sum(each.HasField("hold") for each in verdicts.values()) == 1
