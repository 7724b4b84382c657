"""What a frame costs on its whole way, every service a process of its own: broker and database are real.

    4 stations, 300x300 PNG ─> acquisition ─> preprocessing ─> inference (a pass takes 1 ms) ─> results ─> PostgreSQL
                                   gate <──────────────────────────┘

Latency is the gate's own: from capture to its outcome, by the station's monotonic clock.

Measured once for what a cluster should set aside (k8s/base): 2,000 frames as fast as two cores that others used too
took them, the inference engine a stub. Processor time, ms a frame: acquisition 1.0, preprocessing 2.9, inference 1.2,
results 1.1, broker 1.7, database 0.4. Resident at the end, MB: acquisition 80, preprocessing 172, inference 131,
results 119.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import cv2
import grpc
import numpy as np
import psutil
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.engine import make_url

from inspectbus.api.v1.acquisition_pb2 import StartStationRequest
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.bus import Bus, Lane, Message, connect
from inspectbus.bus.topics import FRAMES
from inspectbus.stores.frames import FrameStore, original_key
from tests.doubles.line_processes import LINE, RECIPE, LineProcesses
from tests.doubles.postgres import Postgres
from tests.doubles.rabbitmq import Broker
from tests.doubles.records import Records

STATIONS = 4
PICTURES = 40
SIDE, BACKLOG_SIDE = 300, 110
"""Pixels: some 70 KB as PNG, and 10 KB."""
BATCH_MS = 1.0
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Run:
    """So many frames of stations from start to the last outcome."""

    frames: int
    wall_s: float
    cpu_s: dict[str, float]
    waited_s: list[float]
    """From capture to gate; of late ones until the gate gave up."""
    late: int
    memory_mb: dict[str, float]
    """Resident, of each process at the end."""
    backlog_first: int = 0
    backlog_last: int = 0
    backlog_done: int = 0
    """Frames in the backlog lane: when the stations began, when they had ended, and judged meanwhile."""

    def summary(self) -> dict[str, Any]:
        judged = self.frames + self.backlog_done
        told: dict[str, Any] = {
            "frames": self.frames,
            "frames_per_s": round(judged / self.wall_s, 1),
            "cpu_ms_per_frame": {name: round(cpu_s / judged * 1000, 2) for name, cpu_s in self.cpu_s.items()},
            "cpu_ms_per_frame_all": round(sum(self.cpu_s.values()) / judged * 1000, 2),
            "late": self.late,
            "memory_mb": {name: round(memory_mb) for name, memory_mb in self.memory_mb.items()},
        }
        if len(self.waited_s) > 1:
            told["gate_p50_ms"] = round(median(self.waited_s) * 1000, 1)
            told["gate_p99_ms"] = round(quantiles(self.waited_s, n=100, method="inclusive")[98] * 1000, 1)
        if self.backlog_first:
            told["backlog"] = {"first": self.backlog_first, "last": self.backlog_last, "judged": self.backlog_done}
        return told


class Bench:
    """Broker and database, for one line after another."""

    def __init__(self, folder: Path, broker: Broker, database: Postgres) -> None:
        self._folder = folder
        self._broker = broker
        self._database = database
        self._lines = 0
        write_pictures(folder / "parts")

    def run(self, stations: int, fps: float, frames: int, *, backlog: int = 0) -> Run:
        """`fps` and `frames` of all stations together; 0 is as fast as the line takes them."""
        self._lines += 1
        folder = self._folder / f"line-{self._lines}"
        bus_url, database_url = self._broker.url(self._broker.new_vhost()), self._database.new_database()
        each = frames // stations
        names = [f"station-{number}" for number in range(stations)]
        settings: list[dict[str, Any]] = [
            {
                "name": name,
                "fps": fps / stations,
                "frames": each,
                "autostart": False,
                "source": {"kind": "folder", "path": str(self._folder / "parts")},
            }
            for name in names
        ]
        store_url = (folder / "frames").as_uri()
        with (
            LineProcesses(
                folder, bus_url, database_url, settings, frame_store_url=store_url, batch_ms=BATCH_MS
            ) as line,
            connect(bus_url) as bus,
            opened(database_url) as ledger,
        ):
            if backlog:
                # It drains while it is filled.
                while (missing := backlog - waiting(bus)) > backlog // 100:
                    fill_backlog(bus, store_url, missing)
            first, decided = waiting(bus), count(ledger, "decisions")
            began_s, before_s = time.monotonic(), self._cpu_s(line)
            start(line.address("acquisition-0"), names)
            await_count(ledger, "outcomes", each * stations)
            if not backlog:
                await_count(ledger, "decisions", each * stations)
            wall_s, after_s, memory_mb = time.monotonic() - began_s, self._cpu_s(line), line.memory_mb
            done = count(ledger, "decisions") - decided - each * stations
            last = waiting(bus)
            outcomes = Records.read(database_url)
        waited_s = [outcome.waited_s for outcome in outcomes.outcomes.values()]
        cpu_s = {name: after_s[name] - before_s[name] for name in after_s}
        judged = done if backlog else 0
        return Run(each * stations, wall_s, cpu_s, waited_s, len(outcomes.late()), memory_mb, first, last, judged)

    def _cpu_s(self, line: LineProcesses) -> dict[str, float]:
        servers = psutil.Process(os.getpid()).children(recursive=True)
        postgres = [process for process in servers if process.name() == "postgres"]
        return line.cpu_s | {
            "broker": sum(psutil.Process(self._broker.pid).cpu_times()[:2]),
            "database": sum(sum(process.cpu_times()[:2]) for process in postgres),
        }


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Rate, latency, cost by number of stations, and latency beside a backlog."""
    frames, seconds, turns, backlog = (200, 4.0, 1, 2_000) if quick else (1_000, 30.0, 3, 50_000)
    with ExitStack() as house:
        broker = house.enter_context(Broker(folder / "broker"))
        bench = Bench(folder, broker, house.enter_context(Postgres()))
        fastest = bench.run(STATIONS, 0, frames)
        top_fps = fastest.frames / fastest.wall_s
        slow_fps = top_fps / 10
        slow_frames = max(int(slow_fps * seconds), 10 * STATIONS)
        calm = bench.run(STATIONS, slow_fps, slow_frames)
        # Turn by turn, and at one rate: what is compared must not differ in how full the line is.
        costs: dict[int, list[Run]] = {1: [], 4: [], 16: []}
        for _ in range(turns):
            for stations, runs in costs.items():
                runs.append(bench.run(stations, top_fps / 2, frames // 16 * 16))
        beside = bench.run(STATIONS, slow_fps, slow_frames, backlog=backlog)
    cost = {
        str(stations): round(median(sum(run.cpu_s.values()) / run.frames for run in runs) * 1000, 2)
        for stations, runs in costs.items()
    }
    told: dict[str, Any] = {
        "fastest": fastest.summary(),
        "calm": calm.summary(),
        "cpu_ms_per_frame_by_stations": cost,
        "cost_16_to_1": round(cost["16"] / cost["1"], 3),
        "beside_backlog": beside.summary(),
    }
    told["beside_backlog_to_calm"] = {
        name: round(told["beside_backlog"][name] / told["calm"][name], 2) for name in ("gate_p50_ms", "gate_p99_ms")
    }
    # A line that is busy costs less for each frame than an idle one: it is compared with a busy one.
    told["beside_backlog_to_fastest"] = {
        name: round(told["beside_backlog"][name] / told["fastest"][name], 2) for name in ("cpu_ms_per_frame_all",)
    }
    return told


def show(told: Mapping[str, Any]) -> None:
    for name, row in told.items():
        print(f"{name:<28} {row}")


def start(address: str, stations: Sequence[str]) -> None:
    with grpc.insecure_channel(address) as channel:
        acquisition = AcquisitionServiceStub(channel)
        for station in stations:
            acquisition.StartStation(StartStationRequest(line=LINE, station=station), timeout=10)


def fill_backlog(bus: Bus, store_url: str, frames: int) -> None:
    """As a spool would that has long waited: claims, on the backlog lane."""
    store = FrameStore(store_url)
    image = picture(0, BACKLOG_SIDE)
    futures = []
    for number in range(frames):
        frame = Frame(
            frame_id=str(uuid.uuid4()),
            line=LINE,
            station="spooled",
            run_id="spool",
            source_item=f"part-{number}",
            sequence=number,
            recipe=RECIPE,
        )
        frame.captured_at.GetCurrentTime()
        frame.claim.CopyFrom(store.claim(original_key(frame, image), image))
        message = Message(
            frame.SerializeToString(), (LINE, "spooled"), "acquisition/spooled", frame.frame_id, Lane.BACKLOG
        )
        futures.append(bus.publish(FRAMES, message))
    _, unconfirmed = wait(futures, PATIENCE_S)
    assert not unconfirmed


def waiting(bus: Bus) -> int:
    return bus.depth(FRAMES, "preprocessing", Lane.BACKLOG)


@contextmanager
def opened(database_url: str) -> Iterator[Engine]:
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    try:
        yield engine
    finally:
        engine.dispose()


def count(ledger: Engine, table: str) -> int:
    with ledger.connect() as connection:
        if table not in inspect(connection).get_table_names():
            return 0
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def await_count(ledger: Engine, table: str, frames: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while (found := count(ledger, table)) < frames:
        assert time.monotonic() < deadline_s, f"{found} of {frames} {table} after {PATIENCE_S:.0f} s"
        pause.wait(0.1)


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        (folder / f"part-{number:03}.png").write_bytes(picture(number, SIDE))


def picture(number: int, side: int) -> bytes:
    """A grey, grained part: PNG has as much to do with it as with a camera's picture."""
    random = np.random.default_rng(number)
    shade = np.linspace(60, 200 if number % 4 == 3 else 90, side)
    pixels = shade[None, :] + random.normal(0, 12, (side, side))
    written, data = cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))
    assert written
    return bytes(data)
