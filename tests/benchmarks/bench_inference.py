"""What the inference service costs: its throughput over its engine's, and one caller's wait over an image's pass.

    PYTHONPATH=services:clients:. .venv/bin/python -m tests.benchmarks.bench_inference [--quick] [--engine openvino]

The engine in a tight loop, the service, and its callers are a process each and take turns, so that a ratio compares
what was measured one after the other; a figure is the median over the turns. Callers are a closed loop: each asks again
when it is answered. They share the machine with the service, so what it can reach is *corrected raw* = raw images/s x
(cores - the callers' CPU-s/s) / cores, the same formula for every server. The network is EfficientNet-Lite0 with random
weights, which cost what trained ones do, at 224 px. The last line is JSON:

    {"service_over_raw": {"8": ..., "32": ..., "64": ...}, "single_p50_over_raw": ..., "overload_goodput": ..., ...}

Overload: calls that come evenly, at three times what 32 callers were answered, each with a deadline. Its goodput is
what was answered in time, over what 32 callers were answered, both by what their callers left of the machine.

Predicted before it was first run, on two cores: 0.85 of corrected raw at 8 callers and 0.9 at 32 and 64, because
Python's gRPC takes some 0.3 CPU-ms of each 150 KB message and OpenVINO in bf16 some 4 for an image; one caller waits
1.3 times a single image's pass, for two threads are woken on the way and the message is parsed. Goodput 0.8, for to
refuse two of three calls costs their parsing; a refusal in less than 10 ms at the median.

Found by one quick turn (1.5 s each) on two cores that others used too, with a margin of 1.25 in admission: 0.60, 0.73
and 0.73 of corrected raw at 8, 32 and 64 callers (raw 732 images/s); one caller waited 1.64 times a single image's pass
(4.3 over 2.6 ms); goodput 0.3, as many answers again came too late, and a refusal took 74 ms. So a message costs Python
about 1 CPU-ms and not 0.3, and that is where to look next: copying and parsing are 8 us of it. The margin is 2 since
then, so that answers let in by a hair are no longer late on their way; that was not measured yet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np

from inspectbus.api.v1.inference_pb2 import GetEngineRequest
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.domain.preparation import Preparation
from tests.doubles.tiny_model import tiny_version

ROOT = Path(__file__).parents[2]
CALLERS = (1, 8, 32, 64)
CAPACITY_CALLERS = 32
OVERLOAD = 3
OVERLOAD_PATIENCE_MS = 300
"""Some ten batches: enough for a queue, and as a line would have it."""
CLIENTS = 2
"""Processes of callers: one alone would be the limit before the service is."""
CORES = len(os.sched_getaffinity(0))
LOAD_S = 120.0
"""For a service to load its model on a machine that does other things."""


@dataclass(frozen=True)
class Load:
    """So many callers on one server, for a while."""

    images_per_s: float
    client_cpu: float
    """CPU seconds that the callers took in a second."""
    p50_s: float
    p99_s: float

    def over(self, raw_images_per_s: float) -> float:
        """Its throughput by what the machine could have done beside the callers."""
        return self.images_per_s / (raw_images_per_s * (CORES - self.client_cpu) / CORES)


@dataclass(frozen=True)
class Overload:
    """Calls that come whether or not others are answered."""

    offered_per_s: float
    goodput_per_s: float
    late_per_s: float
    beyond_per_s: float
    """More than a connection may have open."""
    client_cpu: float
    refused_p50_s: float
    refused_p99_s: float

    def over(self, capacity: Load) -> float:
        left, left_then = CORES - self.client_cpu, CORES - capacity.client_cpu
        return self.goodput_per_s / (capacity.images_per_s * left / left_then)


@dataclass(frozen=True)
class Turn:
    raw_images_per_s: float
    raw_single_s: float
    loads: dict[int, Load]
    """By callers."""
    overload: Overload


class End:
    """A process of inference_ends.py."""

    def __init__(self, role: str, *how: object) -> None:
        paths = [str(ROOT / part) for part in ("services", "clients", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.inference_ends", role, *map(str, how)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self.ready = self.answer()

    def tell(self, *numbers: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, numbers)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        words: dict[str, Any] = json.loads(self._process.stdout.readline())
        return words

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Engine:
    """Which network runs how: the same for every server."""

    version: Path
    side: int
    name: str
    streams: int
    threads: int
    batch: int


class InspectBus:
    """Our service, asked by its own contract. Another server beside it would be another such class."""

    form = "inspectbus"
    """Of its callers, as inference_ends.py spells it."""

    def __init__(self, engine: Engine) -> None:
        self._end = End("serve", engine.version, engine.name, engine.streams, engine.threads, engine.batch)
        self.address: str = self._end.ready["address"]

    def wait_ready(self) -> None:
        until_s = time.monotonic() + LOAD_S
        with grpc.insecure_channel(self.address) as channel:
            stub = InferenceServiceStub(channel)
            while not (told := stub.GetEngine(GetEngineRequest(), timeout=LOAD_S)).ready:
                assert time.monotonic() < until_s, told.detail
                time.sleep(0.1)

    def close(self) -> None:
        self._end.close()


@contextmanager
def version_of(backbone: str, side: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield tiny_version(
            Path(folder), backbone=backbone, preparation=Preparation(width=side, height=side), exported=True
        )


def measure(engine: Engine, callers: Sequence[int], turns: int, seconds: float) -> list[Turn]:
    with ExitStack() as house:

        def opened(role: str, *how: object) -> End:
            end = End(role, *how)
            house.callback(end.close)
            return end

        server = InspectBus(engine)
        house.callback(server.close)
        raw = opened("raw", engine.version, engine.name, engine.streams, engine.threads)
        clients = [opened("clients", server.form, server.address, engine.side) for _ in range(CLIENTS)]
        source = opened("flood", server.form, server.address, engine.side)
        server.wait_ready()
        done = []
        for turn in range(turns):
            order = callers if turn % 2 == 0 else callers[::-1]
            whole = asked(raw, engine.batch, engine.streams, seconds)
            single = asked(raw, 1, 1, seconds)
            loads = {count: load(clients, count, seconds) for count in order}
            rate = OVERLOAD * loads[CAPACITY_CALLERS].images_per_s
            done.append(Turn(whole["images_per_s"], single["p50_s"], loads, flood(source, rate, seconds)))
    return done


def asked(end: End, *numbers: float) -> dict[str, Any]:
    end.tell(*numbers)
    return end.answer()


def load(clients: Sequence[End], callers: int, seconds: float) -> Load:
    shares = [len(range(number, callers, len(clients))) for number in range(len(clients))]
    busy = [(client, share) for client, share in zip(clients, shares, strict=True) if share]
    for client, share in busy:
        client.tell(share, seconds)
    told = [client.answer() for client, _ in busy]
    took_s = np.concatenate([each["answers"] for each in told])
    return Load(
        sum(len(each["answers"]) / each["wall_s"] for each in told),
        sum(each["cpu_s"] / each["wall_s"] for each in told),
        float(np.percentile(took_s, 50)),
        float(np.percentile(took_s, 99)),
    )


def flood(source: End, rate: float, seconds: float) -> Overload:
    told = asked(source, round(rate), OVERLOAD_PATIENCE_MS, seconds)
    counts = {outcome: len(told[outcome]) / told["wall_s"] for outcome in ("answers", "refused", "late", "beyond")}
    refused_s = told["refused"] or [0.0]  # a machine that got faster meanwhile refuses nobody
    return Overload(
        sum(counts.values()),
        counts["answers"],
        counts["late"],
        counts["beyond"],
        told["cpu_s"] / told["wall_s"],
        float(np.percentile(refused_s, 50)),
        float(np.percentile(refused_s, 99)),
    )


def summary(engine: Engine, turns: Sequence[Turn]) -> dict[str, Any]:
    counts = sorted(turns[0].loads)
    many = [count for count in counts if count > 1]
    return {
        "service_over_raw": {
            str(count): round(median(turn.loads[count].over(turn.raw_images_per_s) for turn in turns), 3)
            for count in many
        },
        "single_p50_over_raw": round(median(turn.loads[1].p50_s / turn.raw_single_s for turn in turns), 3),
        "overload_goodput": round(median(turn.overload.over(turn.loads[CAPACITY_CALLERS]) for turn in turns), 3),
        "figures": {
            "engine": engine.name,
            "streams": engine.streams,
            "raw_images_per_s": round(median(turn.raw_images_per_s for turn in turns), 1),
            "raw_single_ms": round(1000 * median(turn.raw_single_s for turn in turns), 2),
            "callers": {
                str(count): {
                    "images_per_s": round(median(turn.loads[count].images_per_s for turn in turns), 1),
                    "client_cpu": round(median(turn.loads[count].client_cpu for turn in turns), 2),
                    "p50_ms": round(1000 * median(turn.loads[count].p50_s for turn in turns), 2),
                    "p99_ms": round(1000 * median(turn.loads[count].p99_s for turn in turns), 2),
                }
                for count in counts
            },
            "overload": {
                "offered_per_s": round(median(turn.overload.offered_per_s for turn in turns), 1),
                "goodput_per_s": round(median(turn.overload.goodput_per_s for turn in turns), 1),
                "late_per_s": round(median(turn.overload.late_per_s for turn in turns), 1),
                "beyond_per_s": round(median(turn.overload.beyond_per_s for turn in turns), 1),
                "client_cpu": round(median(turn.overload.client_cpu for turn in turns), 2),
                "refused_p50_ms": round(1000 * median(turn.overload.refused_p50_s for turn in turns), 2),
                "refused_p99_ms": round(1000 * median(turn.overload.refused_p99_s for turn in turns), 2),
            },
        },
    }


def show(told: dict[str, Any]) -> None:
    figures = told["figures"]
    print(
        f"{figures['engine']}, {figures['streams']} streams: raw {figures['raw_images_per_s']} images/s, "
        f"a single one in {figures['raw_single_ms']} ms"
    )
    print("".join(f"{column:>12}" for column in ("callers", "images/s", "their CPU", "p50 ms", "p99 ms", "over raw")))
    for count, row in figures["callers"].items():
        cells = (count, *row.values(), told["service_over_raw"].get(count, ""))
        print("".join(f"{cell:>12}" for cell in cells))
    print("overload: " + ", ".join(f"{name} {value}" for name, value in figures["overload"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one short turn, to see that it works: within a minute")
    parser.add_argument("--engine", default="openvino-bf16", help="as the setting `engine` spells it")
    parser.add_argument("--streams", type=int, default=CORES)
    parser.add_argument("--batch", type=int, default=8, help="images of the largest batch")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    arguments = parser.parse_args()
    turns, seconds = (1, 1.5) if arguments.quick else (arguments.turns, 5.0)
    with version_of(arguments.backbone, arguments.side) as version:
        engine = Engine(version, arguments.side, arguments.engine, arguments.streams, 1, arguments.batch)
        told = summary(engine, measure(engine, CALLERS, turns, seconds))
    show(told)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
