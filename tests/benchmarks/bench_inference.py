"""What the inference service costs, beside its engine in a tight loop and beside a server like it, Mosec.

    PYTHONPATH=services:clients:. .venv/bin/python -m tests.benchmarks.bench_inference [--quick] [--engine openvino]

The engine in a tight loop, the servers, and their callers are processes of their own and take turns, so that a ratio
compares what was measured one after the other; a figure is the median over the turns. Callers are a closed loop: each
asks again when it is answered. They share the machine with the server, so what it can reach is *corrected raw* = raw
images/s x (cores - the callers' CPU-s/s) / cores, the same formula for every server. The network is EfficientNet-Lite0
with random weights, which cost what trained ones do, at 224 px. The last line is JSON:

    {"service_over_raw": {"8": ..., "32": ..., "64": ...}, "calls_over_raw": {"8": ..., "32": ..., "64": ...},
     "over_mosec": {"throughput": {"8": ..., "32": ..., "64": ...}, "p50": {"1": ..., "8": ...}, "p99": {"1": ...}},
     "by_grpc_over_mosec": the same,
     "single_p50_over_raw": ..., "overload_goodput": ..., "figures": ...}

A caller of ours has a stream (`InferStream`) open, as one of Mosec has a connection, and as plant software has that
sends image after image: those are `service_over_raw` and `single_p50_over_raw`, and gRPC's own library is their client.
Beside them stand callers
that make a call for each image (`calls_over_raw`), of a second service that has as many threads as a plant's by
default; the overload goes there too.

Over Mosec (PyPI `mosec`): above 1 we are better, and throughput is compared by each server's share of its own corrected
raw. It has the same engine, a worker process for each stream, and the same pixels as bytes. Its callers send what was
made once, over connections that stay open, with no more Python than sending and receiving: a third of the processor
that gRPC's library takes for the same, and where callers and server share two cores, a caller of ours would wait for
that. So in `over_mosec` ours send their stream's frames just as barely; `by_grpc_over_mosec` is by gRPC's library.
It gets the settings that serve it best, which are looked for before the first turn: batches of 1, a quarter, half and
all of `--batch` with the shortest wait that it takes, 1 ms, and whole batches with its own default, 10 ms; each serves
all counts of callers for two seconds, and the largest product of images/s over p99 wins. A quick turn takes whole
batches and 1 ms unsought. Where Mosec is not installed (`inspectbus[bench]`), `over_mosec` is null.

Overload: calls that come evenly, at three times what 32 callers were answered, each with a deadline. Its goodput is
what was answered in time, over what 32 callers were answered, both by what their callers left of the machine.

Predicted before it was first run, on two cores: 0.85 of corrected raw at 8 callers and 0.9 at 32 and 64, because
Python's gRPC takes some 0.3 CPU-ms of each 150 KB message and OpenVINO in bf16 some 4 for an image; one caller waits
1.3 times a single image's pass, for two threads are woken on the way and the message is parsed. Goodput 0.8, for to
refuse two of three calls costs their parsing; a refusal in less than 10 ms at the median.

What was learnt since, each by variants that took turns:

- A message costs more than predicted, a pass less: 0.4 CPU-ms of a call where nothing else runs, 0.7 beside an engine
  that empties the caches, and 2.3 ms of an image. Half of a call's cost is gRPC's own; grpc.aio saves a tenth of it.
- A network compiled for batches of any size is planned anew whenever the size changes: 2.8 to 3.1 ms an image where
  one compiled for one image takes 2.2. So OpenVINO is given images one by one, which made raw 862/s of 744/s too.
- On a processor large batches cost more than small ones with any engine: batches are of two images there, but for
  OpenVINO, where a batch is only what is handed over at once.
- With small batches a third of two cores was idle: a stream that had ended waited for Python's lock behind the threads
  of 32 callers. One run more than is computed now waits in the engine (`runs_ahead`), and a stream is given back
  before answers are handed out.
- A stream's message costs a third of a call's: 0.33 CPU-ms of 0.74, all of the service's threads together.
- 128 handler threads at three times the capacity: every call too late, for they take Python's lock from each other and
  from the engine. 32 threads, and 48 calls that wait unread: nine of ten of the capacity in time, refusals in 2 ms.
- What takes microseconds alone takes several times as long beside the engine, so timing the parts finds nothing.
  Sampling the whole under load did: each image hashed its version's card and its preparation again, for their names.
  Worked out once, by turns with the code before: 0.08 CPU-ms less of 2.68 an image at 8 callers, and of 2.57 at 32;
  4 and 3 in a hundred images/s more.
- Pixels read where gRPC received them, not by protobuf, which copies them three times: a twenty-fifth more images/s.
- By sampling, a quarter or more of what the door takes is the kernel's, to switch threads: each request wakes gRPC's
  own two, the stream's reader and writer, a worker and the engine's. On grpc.aio, before the same batcher, 0.05 to
  0.12 ms less at 8 callers (0.82 over raw where threads had 0.80) and 0.08 at 32 (0.89, 0.86), without what a door of
  ours checks; one caller waits longer.
- The least that a door in Python can be (grpc.aio, the engine started by the loop, nothing checked, counted or named)
  against the whole service, by turns: at 8 callers 0.82 over raw for 0.79, p99 16.7 ms for 20.5; one caller p50 3.08 ms
  for 3.12. What is left there is gRPC itself, and an engine whose images take a fourteenth longer beside it.
- gRPC's older way to read connections, on the thread that waits (GRPC_EXPERIMENTS=-event_engine_listener): a wake-up
  and 0.03 CPU-ms of a message less, 2 in a hundred images/s more at 8 callers and none at 64, but one caller's p99 a
  tenth to a sixth longer. Not taken.
- Door and workers on one core: 0.08 ms less at 8 callers. Not taken: services of one machine would choose the same one.
- A server of our own (runtime/http2) and no thread that waits for the engine, by turns with gRPC's server and a worker
  for each run: at 8, 32 and 64 callers 0.87, 0.90 and 0.91 over raw for 0.83, 0.85 and 0.86. The least that such a door
  can be (frames split by hand, nothing checked) has 0.89 to 0.93 at 8; one caller waits 2.5 ms where a pass is 2.15.
- The same door upon h2, which is HTTP/2 in Python, or upon grpclib, which is upon h2: 0.78 at 8 callers where grpc.aio
  had 0.78 and frames split by hand 0.87. Of one caller's 3.3 ms h2 takes 0.35. To let it do all but DATA and windows,
  the frames that come with every image, left a call for each image as slow as gRPC's own.
- A thread of OpenVINO's that calls back is new to Python each time, and what Python makes for it is a page mapped and
  unmapped: 0.1 CPU-ms of an image's 2.6. It is made known once, and stays.
- 40 ms: small answers without TCP_NODELAY. 60 to 80 ms, every few seconds, for all callers: the garbage collector,
  while a call and its inbox referred to each other.
- At three times the capacity a refusal waited for a time slice of the engine's threads, and its caller for another:
  at the median 2 ms, p99 8 to 15. Since those threads give way (inference/priority.py) 0.6 and 6 to 7, by turns. Of
  what is answered, and how soon, it changes nothing: nice 5 and 10 at 1 to 64 callers are within two in a hundred of
  none.
- Tried without gain: threads of the doors that do not preempt those that compute (SCHED_BATCH), threads of the engine
  that do not; one arena for all threads' memory; two and four runs ahead; a tenth or a
  fifth of Python's switch interval (a little better at 8 callers, a little worse at 32); an engine that computes on
  the worker's own thread; larger reads from the socket, and reads that wait for a whole message; larger HTTP/2 frames.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

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
END_S = 10.0
STREAMS, CALLS, FRAMES = "streams", "calls", "frames"
"""How our service is asked."""
RPC_THREADS = {STREAMS: 192, CALLS: 32}
"""A stream holds a turn while it is open, and streams have three quarters of them; two forms of callers leave theirs
open. 32 is a plant's default."""
MOSEC_P50_CALLERS = (1, 8)
"""With more, p50 says what throughput says."""
MOSEC_WAIT_MS = 10
"""Its own default."""
MOSEC_SEARCH_S = 2.0
"""Of each count of callers, for each of Mosec's settings."""


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
    resident_mb: float
    """Of the service when it is over."""

    def over(self, capacity: Load) -> float:
        left, left_then = CORES - self.client_cpu, CORES - capacity.client_cpu
        return self.goodput_per_s / (capacity.images_per_s * left / left_then)


@dataclass(frozen=True)
class Turn:
    raw_images_per_s: float
    raw_single_s: float
    loads: dict[int, Load]
    """By callers, who have a stream each."""
    calls: dict[int, Load]
    """By callers, who make single calls."""
    frames: dict[int, Load]
    """By callers, who have a stream each and no more of a client than Mosec's."""
    mosec: dict[int, Load]
    """By callers; empty without Mosec."""
    overload: Overload


class MosecSettings(NamedTuple):
    batch: int
    """Images at most; of one, none waits."""
    wait_ms: int
    """For company, once an image is there; it takes 1 for the least."""


class End:
    """A process of inference_ends.py, or of another module of this room, and whatever it starts."""

    def __init__(self, *how: object, module: str = "inference_ends") -> None:
        paths = [str(ROOT / part) for part in ("services", "clients", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, how)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        self.ready = self.answer()

    @property
    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    def tell(self, *numbers: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, numbers)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        words: dict[str, Any] = json.loads(self._process.stdout.readline())
        return words

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
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


class Server(Protocol):
    form: str
    """Of its callers, as inference_ends.py spells it."""
    address: str

    def wait_ready(self) -> None: ...

    def close(self) -> None: ...


class InspectBus:
    """Our service, asked by its own contract: by a stream of each caller, or by single calls."""

    def __init__(self, engine: Engine, form: str) -> None:
        self.form = form
        how = (engine.version, engine.name, engine.streams, engine.threads, engine.batch, RPC_THREADS[form])
        self.end = End("serve", *how)
        self.address: str = self.end.ready["address"]

    def wait_ready(self) -> None:
        until_s = time.monotonic() + LOAD_S
        with grpc.insecure_channel(self.address) as channel:
            stub = InferenceServiceStub(channel)
            while not (told := stub.GetEngine(GetEngineRequest(), timeout=LOAD_S)).ready:
                assert time.monotonic() < until_s, told.detail
                time.sleep(0.1)

    def close(self) -> None:
        self.end.close()


class Mosec:
    """Its workers are as many as our streams, each with an engine of one stream."""

    form = "mosec"

    def __init__(self, engine: Engine, settings: MosecSettings) -> None:
        how = (engine.version, engine.name, engine.streams, engine.threads, settings.batch, settings.wait_ms)
        self._end = End(*how, module="mosec_end")
        self._image = bytes(3 * engine.side**2)
        self._workers = engine.streams
        self.address: str = self._end.ready["address"]

    def wait_ready(self) -> None:
        until_s, seen = time.monotonic() + LOAD_S, set[bytes]()
        while len(seen) < self._workers:
            assert time.monotonic() < until_s, f"Mosec: only {len(seen)} of {self._workers} workers answered"
            connection = http.client.HTTPConnection(self.address, timeout=LOAD_S)
            try:
                connection.request("POST", "/inference", self._image)
                response = connection.getresponse()
                answer = response.read()
            except ConnectionError:
                time.sleep(0.1)
            else:
                assert response.status == http.client.OK, f"Mosec: {answer!r}"
                seen.add(answer.split()[-1])
            finally:
                connection.close()

    def close(self) -> None:
        self._end.close()


@contextmanager
def version_of(backbone: str, side: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield tiny_version(
            Path(folder), backbone=backbone, preparation=Preparation(width=side, height=side), exported=True
        )


def measure(
    engine: Engine, callers: Sequence[int], turns: int, seconds: float, mosec: MosecSettings | None
) -> list[Turn]:
    with ExitStack() as house:
        servers = [InspectBus(engine, form) for form in (STREAMS, CALLS)]
        flooded = servers[-1]
        clients = {server.form: callers_of(server, engine.side, house) for server in servers}
        clients[FRAMES] = [opened(house, "clients", FRAMES, servers[0].address, engine.side) for _ in range(CLIENTS)]
        if mosec is not None:
            clients[Mosec.form] = callers_of(Mosec(engine, mosec), engine.side, house)
        raw = opened(house, "raw", engine.version, engine.name, engine.streams, engine.threads)
        source = opened(house, "flood", CALLS, flooded.address, engine.side)
        done = []
        for turn in range(turns):
            way = 1 if turn % 2 == 0 else -1
            whole = asked(raw, engine.batch, engine.streams, seconds)
            single = asked(raw, 1, 1, seconds)
            loads: dict[str, dict[int, Load]] = {form: {} for form in clients}
            for count in callers[::way]:
                for form in list(clients)[::way]:
                    loads[form][count] = load(clients[form], count, seconds)
            rate = OVERLOAD * loads[CALLS][CAPACITY_CALLERS].images_per_s
            overload = flood(source, rate, seconds, flooded.end)
            theirs = loads.get(Mosec.form, {})
            ours = loads[STREAMS], loads[CALLS], loads[FRAMES]
            done.append(Turn(whole["images_per_s"], single["p50_s"], *ours, theirs, overload))
    return done


def mosec_settings(engine: Engine, *, quick: bool) -> MosecSettings | None:
    if importlib.util.find_spec("mosec") is None:
        print("Mosec is not installed, so nothing is compared with it: install inspectbus[bench]", file=sys.stderr)
        return None
    return MosecSettings(engine.batch, 1) if quick else best_mosec(engine, CALLERS)


def best_mosec(engine: Engine, callers: Sequence[int]) -> MosecSettings:
    """What serves all counts of callers best: the largest product of images/s over p99."""
    sizes = sorted({1, max(1, engine.batch // 4), max(1, engine.batch // 2), engine.batch})
    tried = [*(MosecSettings(size, 1) for size in sizes), MosecSettings(engine.batch, MOSEC_WAIT_MS)]
    merits: dict[MosecSettings, float] = {}
    for settings in tried:
        with ExitStack() as house:
            clients = callers_of(Mosec(engine, settings), engine.side, house)
            loads = {count: load(clients, count, MOSEC_SEARCH_S) for count in callers}
        merits[settings] = sum(math.log(each.images_per_s / each.p99_s) for each in loads.values())
        words = ", ".join(
            f"{count}: {each.images_per_s:.0f}/s {1000 * each.p99_s:.0f} ms" for count, each in loads.items()
        )
        print(f"Mosec, {settings.batch} images, {settings.wait_ms} ms: {words}", file=sys.stderr)
    return max(tried, key=merits.__getitem__)


def opened(house: ExitStack, *how: object) -> End:
    end = End(*how)
    house.callback(end.close)
    return end


def callers_of(server: Server, side: int, house: ExitStack) -> list[End]:
    """Processes of callers, once the server is ready."""
    house.callback(server.close)
    server.wait_ready()
    return [opened(house, "clients", server.form, server.address, side) for _ in range(CLIENTS)]


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


def flood(source: End, rate: float, seconds: float, service: End) -> Overload:
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
        service.resident_mb,
    )


def over_mosec(turns: Sequence[Turn], ours: Callable[[Turn], dict[int, Load]]) -> dict[str, dict[str, float]]:
    """Above 1, we are better: by images/s, each over the same corrected raw, and by the time that calls took."""

    def ratios(counts: Sequence[int], of: Callable[[Turn, int], float]) -> dict[str, float]:
        return {str(count): round(median(of(turn, count) for turn in turns), 3) for count in counts}

    def throughput(turn: Turn, count: int) -> float:
        raw = turn.raw_images_per_s
        return ours(turn)[count].over(raw) / turn.mosec[count].over(raw)

    return {
        "throughput": ratios([count for count in CALLERS if count > 1], throughput),
        "p50": ratios(MOSEC_P50_CALLERS, lambda turn, count: turn.mosec[count].p50_s / ours(turn)[count].p50_s),
        "p99": ratios(CALLERS, lambda turn, count: turn.mosec[count].p99_s / ours(turn)[count].p99_s),
    }


def summary(engine: Engine, turns: Sequence[Turn], mosec: MosecSettings | None) -> dict[str, Any]:
    counts = sorted(turns[0].loads)
    many = [count for count in counts if count > 1]
    return {
        "service_over_raw": {
            str(count): round(median(turn.loads[count].over(turn.raw_images_per_s) for turn in turns), 3)
            for count in many
        },
        "calls_over_raw": {
            str(count): round(median(turn.calls[count].over(turn.raw_images_per_s) for turn in turns), 3)
            for count in many
        },
        "over_mosec": None if mosec is None else over_mosec(turns, lambda turn: turn.frames),
        "by_grpc_over_mosec": None if mosec is None else over_mosec(turns, lambda turn: turn.loads),
        "single_p50_over_raw": round(median(turn.loads[1].p50_s / turn.raw_single_s for turn in turns), 3),
        "overload_goodput": round(median(turn.overload.over(turn.calls[CAPACITY_CALLERS]) for turn in turns), 3),
        "figures": {
            "engine": engine.name,
            "streams": engine.streams,
            "raw_images_per_s": round(median(turn.raw_images_per_s for turn in turns), 1),
            "raw_single_ms": round(1000 * median(turn.raw_single_s for turn in turns), 2),
            "callers": columns([turn.loads for turn in turns]),
            "calls": columns([turn.calls for turn in turns]),
            "frames": columns([turn.frames for turn in turns]),
            "mosec": None
            if mosec is None
            else {
                "max_batch_size": mosec.batch,
                "max_wait_ms": mosec.wait_ms,
                "callers": columns([turn.mosec for turn in turns]),
            },
            "overload": {
                "offered_per_s": round(median(turn.overload.offered_per_s for turn in turns), 1),
                "goodput_per_s": round(median(turn.overload.goodput_per_s for turn in turns), 1),
                "late_per_s": round(median(turn.overload.late_per_s for turn in turns), 1),
                "beyond_per_s": round(median(turn.overload.beyond_per_s for turn in turns), 1),
                "client_cpu": round(median(turn.overload.client_cpu for turn in turns), 2),
                "refused_p50_ms": round(1000 * median(turn.overload.refused_p50_s for turn in turns), 2),
                "refused_p99_ms": round(1000 * median(turn.overload.refused_p99_s for turn in turns), 2),
                # After each turn's, one after the other: what grows is not flat.
                "resident_mb": [round(turn.overload.resident_mb) for turn in turns],
            },
        },
    }


def columns(turns: Sequence[dict[int, Load]]) -> dict[str, dict[str, float]]:
    """By callers."""
    return {
        str(count): {
            "images_per_s": round(median(turn[count].images_per_s for turn in turns), 1),
            "client_cpu": round(median(turn[count].client_cpu for turn in turns), 2),
            "p50_ms": round(1000 * median(turn[count].p50_s for turn in turns), 2),
            "p99_ms": round(1000 * median(turn[count].p99_s for turn in turns), 2),
        }
        for count in sorted(turns[0])
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
    print("by single calls:")
    for count, row in figures["calls"].items():
        print("".join(f"{cell:>12}" for cell in (count, *row.values(), told["calls_over_raw"].get(count, ""))))
    print("by streams of bare frames:")
    for count, row in figures["frames"].items():
        print("".join(f"{cell:>12}" for cell in (count, *row.values())))
    if figures["mosec"]:
        print("Mosec, {max_batch_size} images at most, {max_wait_ms} ms:".format(**figures["mosec"]))
        for count, row in figures["mosec"]["callers"].items():
            print("".join(f"{cell:>12}" for cell in (count, *row.values())))
        for key, by in (("over_mosec", "bare frames"), ("by_grpc_over_mosec", "gRPC's own client")):
            for measured, ratios in told[key].items():
                words = ", ".join(f"{count}: {ratio}" for count, ratio in ratios.items())
                print(f"ours, by {by}, over Mosec's {measured}: {words}")
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
    turns, seconds = (1, 1.0) if arguments.quick else (arguments.turns, 5.0)
    with version_of(arguments.backbone, arguments.side) as version:
        engine = Engine(version, arguments.side, arguments.engine, arguments.streams, 1, arguments.batch)
        mosec = mosec_settings(engine, quick=arguments.quick)
        told = summary(engine, measure(engine, CALLERS, turns, seconds, mosec), mosec)
    show(told)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
