"""What another inference worker brings: frames per second of 1 to 8 worker processes on a real RabbitMQ.

    PYTHONPATH=services:clients:. .venv/bin/python -m tests.benchmarks.bench_scaling [--quick] [--workers 1 2 4 8]

    here: prepared frames ─> broker ─> worker processes, each `inspectbus serve inference` ─> broker ─> here: decisions

The workers are the real service but for their engine, which sleeps as long for every batch, as a processor waits for a
GPU. So they need hardly any processor, and what they do not bring is the doing of bus and batcher, or of a broker or
cores that are full: each step says how busy both were, from /proc. Frames are kept waiting at the broker, two batches
for each worker beyond what workers have in hand, so none is idle for want of them.

At the end all workers but one are told to stop (SIGTERM) while frames arrive, and every frame must still be decided.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil

from inspectbus.api.v1.decision_pb2 import Decision
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus import Bus, Delivery, Lane, connect
from inspectbus.bus.messages import prepared_message
from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.bus.topics import DECISIONS, PREPARED
from inspectbus.domain.model_version import ModelCard
from inspectbus.imaging.pixels import to_pixels
from tests.doubles.marked_parts import DARK
from tests.doubles.rabbitmq import Broker
from tests.doubles.service_process import ServiceProcess
from tests.doubles.stub_model import stub_version

ROOT = Path(__file__).parents[2]
WORKERS = (1, 2, 4, 8)
BATCH, BATCH_MS = 4, 200.0
"""20 frames a second of each worker: eight of them, and the broker, are far from filling two cores."""
PREFETCH = 4 * BATCH
"""While one batch is computed the next ones lie in the worker."""
SPARE = 8 + 2 * BATCH
"""Of each worker, more frames than it may judge: what its bus fetches beyond, and two batches at the broker."""
WARM_BATCHES = 2
"""Of each worker, before a step is measured."""
FULL = 0.9
"""Of the cores; busier than that they are the limit."""
LINEAR = 0.9
"""Of as many times what one worker does."""
CORES = os.cpu_count() or 1
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Step:
    """So many workers for some seconds."""

    workers: int
    seconds: float
    frames: int
    busy: float
    """Of all cores, whoever computed."""
    cores: dict[str, float]
    """Processor seconds for each second: of the broker, of all workers, of this process."""

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds

    def linear(self, one: Step) -> float:
        """Share of what as many times one worker would do."""
        return self.frames_per_s * one.workers / (one.frames_per_s * self.workers)

    def limit(self, one: Step) -> str:
        """What keeps it from being linear; empty when it is."""
        if self.linear(one) >= LINEAR:
            return ""
        if self.busy >= FULL:
            return "cores"
        # A queue is one Erlang process: it can fill one core and no more.
        return "broker" if self.cores["broker"] >= FULL else "unexplained"


class Feed:
    """Keeps frames waiting for workers, and writes down what comes of them. Use as a context; leaving feeds no more."""

    def __init__(self, bus: Bus, card: ModelCard) -> None:
        self._bus = bus
        self._changed = threading.Condition()
        self._ahead = 0
        self._sent = 0
        self._decided: Counter[str] = Counter()
        self._over = False
        side = card.preparation.width
        self._pixels = to_pixels(np.full((side, side, 3), DARK, np.uint8))
        self._card = card
        self._feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)

    def __enter__(self) -> Self:
        self._results = self._bus.subscribe(DECISIONS, "results", self._take, prefetch=256)
        self._feeder.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()
        self._results.close()

    def keep(self, workers: int) -> None:
        """Undecided frames for so many workers."""
        with self._changed:
            self._ahead = workers * (PREFETCH + SPARE)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._feeder.join(PATIENCE_S)

    @property
    def decided(self) -> int:
        """Frames, not counting repeats."""
        with self._changed:
            return len(self._decided)

    @property
    def repeats(self) -> int:
        with self._changed:
            return self._decided.total() - len(self._decided)

    def await_decided(self, count: int) -> None:
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self._decided) >= count, PATIENCE_S)
            assert enough, f"{len(self._decided)} of {count} frames are decided"

    def lost(self) -> int:
        """Sent and never decided, once nothing has come for a while. None is to be sent any more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._decided) >= self._sent, PATIENCE_S)
            return self._sent - len(self._decided)

    def _feed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._sent - len(self._decided) < self._ahead)
                if self._over:
                    return
                self._sent += 1
                number = self._sent
            # Blocks while the bus's window is full. What is not confirmed in the end would count as lost.
            self._bus.publish(PREPARED, prepared_message(self._frame(number), "bench", Lane.LIVE))

    def _frame(self, number: int) -> PreparedFrame:
        frame = Frame(frame_id=str(uuid.uuid4()), line="line-1", station="top", run_id="bench", sequence=number)
        prepared = PreparedFrame(
            frame=frame,
            pixels=self._pixels,
            recipe="default",
            recipe_version=1,
            model=self._card.name,
            model_alias="production",
            preparation_hash=self._card.preparation.hash,
        )
        prepared.frame.captured_at.GetCurrentTime()
        return prepared

    def _take(self, delivery: Delivery) -> None:
        decision = Decision.FromString(delivery.message.body)
        assert not decision.HasField("hold"), decision.hold.detail
        with self._changed:
            self._decided[decision.frame_id] += 1
            self._changed.notify_all()
        delivery.done()


class Fleet:
    """The broker, and worker processes that judge what it has."""

    def __init__(self, folder: Path, house: ExitStack) -> None:
        self.broker = house.enter_context(Broker(folder / "broker"))
        self.url = self.broker.url(self.broker.new_vhost())
        topology.declare(parse(self.url))
        self._folder, self._house = folder, house
        self._version, self.card = stub_version(folder / "model")
        self.workers: list[ServiceProcess] = []

    def grow(self, count: int) -> None:
        """Until so many have loaded their model."""
        fresh = [self._worker(number) for number in range(len(self.workers), count)]
        for worker in fresh:
            self.workers.append(self._house.enter_context(worker))
        for worker in fresh:
            worker.await_event("model loaded", PATIENCE_S)

    def shrink(self, count: int) -> list[int]:
        """All but so many are told to stop at once; how they ended."""
        leaving = self.workers[count:]
        del self.workers[count:]
        for worker in leaving:
            worker.retire()
        return [worker.await_exit(1, PATIENCE_S) for worker in leaving]

    def cpu_s(self) -> dict[str, float]:
        return {
            "broker": sum(psutil.Process(self.broker.pid).cpu_times()[:4]),
            "workers": sum(worker.cpu_s for worker in self.workers),
            "this": sum(psutil.Process().cpu_times()[:2]),
        }

    def _worker(self, number: int) -> ServiceProcess:
        name = f"inference-{number}"
        config = self._folder / f"{name}.yaml"
        settings = {
            "port": 0,
            "metrics_port": 0,
            "engine": "torch",  # in whose place the stub stands
            "model": self.card.name,
            "model_dir": str(self._version),
            "max_batch_size": BATCH,
            "prefetch": PREFETCH,
        }
        config.write_text(json.dumps({"inference": settings}))
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("INSPECTBUS_")},
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("services", "clients", ".")),
            "PYTHONUNBUFFERED": "1",
            "STUB_BATCH_MS": str(BATCH_MS),
            "INSPECTBUS_LOG_FORMAT": "json",
            "INSPECTBUS_BUS_URL": self.url,
            "INSPECTBUS_STATE_DIR": str(self._folder / name),
        }
        command = [sys.executable, "-m", "tests.faults.serve", "serve", "inference", "--config", str(config)]
        return ServiceProcess(name, command, environ, self._folder / f"{name}.log")


@contextmanager
def opened() -> Iterator[tuple[Fleet, Feed]]:
    with ExitStack() as house:
        folder = Path(house.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        fleet = Fleet(folder, house)
        bus = house.enter_context(connect(fleet.url, "bench"))
        yield fleet, house.enter_context(Feed(bus, fleet.card))


def measure(fleet: Fleet, feed: Feed, seconds: float) -> Step:
    """All workers of the fleet, when they have begun."""
    workers = len(fleet.workers)
    feed.keep(workers)
    feed.await_decided(feed.decided + workers * WARM_BATCHES * BATCH)
    decided, cpu_s, busy_s, began_s = feed.decided, fleet.cpu_s(), busy_cpu_s(), time.monotonic()
    # A whole number of batches, so that no worker's last one is counted for it or not by chance.
    feed.await_decided(decided + round(workers * seconds / (BATCH_MS / 1000)) * BATCH)
    lasted_s = time.monotonic() - began_s
    cores = {name: (end_s - cpu_s[name]) / lasted_s for name, end_s in fleet.cpu_s().items()}
    busy = (busy_cpu_s() - busy_s) / lasted_s / CORES
    return Step(workers, lasted_s, feed.decided - decided, busy, cores)


def busy_cpu_s() -> float:
    """Of all cores, since the machine's start."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def shown(step: Step, one: Step) -> dict[str, Any]:
    return {
        "workers": step.workers,
        "frames_per_s": round(step.frames_per_s, 1),
        "of_linear": round(step.linear(one), 3),
        "of_engines": round(step.frames_per_s * BATCH_MS / 1000 / BATCH / step.workers, 3),
        "busy": round(step.busy, 2),
        "cores": {name: round(cores, 2) for name, cores in step.cores.items()},
        "limit": step.limit(one),
    }


def run(counts: Sequence[int], seconds: float) -> dict[str, Any]:
    """Ever more workers, and then one."""
    told: dict[str, Any] = {"batch": BATCH, "batch_ms": BATCH_MS, "cores": CORES, "steps": []}
    with opened() as (fleet, feed):
        steps: list[Step] = []
        for count in counts:
            fleet.grow(count)
            steps.append(measure(fleet, feed, seconds))
            told["steps"].append(shown(steps[-1], steps[0]))
            print(told["steps"][-1], flush=True)
        exits = fleet.shrink(1)
        # The one that is left takes up what the others gave back, and what came meanwhile.
        feed.await_decided(feed.decided + PREFETCH)
        feed.end()
        told["scaled_down"] = {
            "from": counts[-1],
            "to": 1,
            "exits": exits,
            "lost": feed.lost(),
            "frames": feed.decided,
            "repeats": feed.repeats,
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one and two workers for a moment, to see that it works")
    parser.add_argument("--workers", nargs="+", type=int, default=list(WORKERS), help="in rising order")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each step")
    arguments = parser.parse_args()
    told = run((1, 2), 3.0) if arguments.quick else run(arguments.workers, arguments.seconds)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
