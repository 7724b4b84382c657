"""What the bus costs: against pika in a tight loop, against aio-pika, as a claim check, and in the whole line.

    PYTHONPATH=services:clients:. .venv/bin/python -m tests.benchmarks.bench_bus [--quick] [--only pipe|line]

The pipe: publisher, consumer and broker are a process each; quorum queues as `inspectbus bus declare` makes them;
persistent messages, 32 unconfirmed, 64 unacknowledged. The forms take turns, and a ratio is the median over the turns:
on a machine that others use too, nothing else can be compared. The line: see whole_line.py. The last line is JSON.

What was learnt, on two cores that others used too (CPU of one process; three runs each where not said otherwise):

- Reading 128 KiB at a time instead of pika's 4: consumer 1.59 -> 0.75 CPU-s per GB at 150 KB. So `pika` here is pika
  as it comes, and `pika-reads` pika with what link.py sets: the one shows what a user gains, the other what our own
  code costs.
- Waking threads is what our own code costs most: a message of 150 KB took the consumer 270 us; acknowledged on the
  loop's thread and not handed over at all, 140. Predicted from that: one waking of the handler for each burst, 260 ->
  190 us. Kept: in seven interleaved turns 1.67 -> 1.19 CPU-s per GB at 150 KB, 0.97 -> 0.87 at 1 MB, and at 10 KB
  6.9 -> 6.3.
- Not kept: acknowledging only when a quarter of the prefetch or 10 ms are full. On top of the bursts, in the same
  turns, it made 1.21 of 1.19, 0.79 of 0.87 and 6.1 of 6.3: nothing that paid for a timer and a delay.
- Ours to pika as it comes, from these turns: 0.96 at 150 KB, 1.35 at 1 MB; at 10 KB, where nothing was aimed at, 0.81.
  In seven more, the machine overloaded: to pika 1.11 and 1.38, to pika-reads 1.02 and 1.42, to aio-pika 1.19 and 1.49.
- Predicted wrongly: that the handler called on the loop's thread would cost hardly more than pika. It cost 256 us of
  276, because each settling still woke the idle subscription's thread.
- Not kept: a bare lock as the handler's bell in place of the condition (alone within noise; not tried on top of the
  bursts); another switch interval (two runs: 0.5 ms some 12 % more, 50 ms no less); malloc without trimming (one run:
  ten page faults a message fewer, no time gained that could be told from noise).
- On a faster machine (a pipe of 300 MB/s) turns of 90 MB last 0.3 s and tell nothing: ours to aio-pika 0.90, in turns
  of 240 MB 0.99 to 1.05 in four runs. The window of 32 and the broker are the limit there, at 1.5 of two cores.
- Not kept: waking senders once for each burst of confirms, as the consumer wakes its handler. Predicted from that:
  1.2 -> 1.0 CPU-s per GB; found in two pairs of nine turns: none. Half of what the publisher computes is pika's copy
  of the body.
- Not kept for its speed: the live lane first in preprocessing's own queue too. Predicted: 1.9 -> 1.4 times the calm
  latency beside a backlog; found: none. Both cores are full then, and each hop waits for its turn on them.
- Not tried, because a stop-watch spoke against it: headers encoded in advance. They take 4 us to encode and 6 to
  decode, of 90 and 75 for a message of 1 KB.
- A claim check with its digest, five turns: at 150 KB 0.69 of the frames/s of bytes on the bus (publisher 3 times the
  CPU, broker 0.6), at 1 MB 1.5 times the frames/s. Where between the two it begins to pay was not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from tests.benchmarks import whole_line
from tests.benchmarks.pipe import ROUTES
from tests.doubles.rabbitmq import Broker

ROOT = Path(__file__).parents[2]
SIZES = (150_000, 1_000_000)
FORMS = tuple(ROUTES)
PROCESSES = ("publisher", "consumer", "broker")


@dataclass(frozen=True)
class Turn:
    """One form's messages of one size through the pipe, once."""

    count: int
    size: int
    wall_s: float
    cpu_s: dict[str, float]
    """By process."""

    @property
    def mb_per_s(self) -> float:
        return self.count * self.size / self.wall_s / 1e6

    def cpu_s_per_gb(self, process: str) -> float:
        return self.cpu_s[process] / (self.count * self.size / 1e9)


class End:
    """A publisher's or consumer's process."""

    def __init__(self, side: str, form: str, url: str, store_url: str) -> None:
        paths = [str(ROOT / part) for part in ("services", "clients", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.pipe", side, form, url, store_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self.answer()

    def tell(self, count: int, size: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count} {size}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        words: dict[str, float] = json.loads(self._process.stdout.readline())
        return words

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Pipe:
    """Publisher, queue and consumer of one form."""

    def __init__(self, form: str, url: str, store: Path, broker: psutil.Process) -> None:
        self.form = form
        self._broker = broker
        self._store = store / form
        self._consumer = End("consume", form, url, self._store.as_uri())
        self._publisher = End("publish", form, url, self._store.as_uri())

    def run(self, count: int, size: int) -> Turn:
        before_s = cpu_s(self._broker)
        self._consumer.tell(count, size)
        self._consumer.answer()
        self._publisher.tell(count, size)
        sent, taken = self._publisher.answer(), self._consumer.answer()
        broker_s = cpu_s(self._broker) - before_s
        shutil.rmtree(self._store, ignore_errors=True)
        return Turn(
            count,
            size,
            taken["ended_s"] - sent["began_s"],
            dict(zip(PROCESSES, (sent["cpu_s"], taken["cpu_s"], broker_s), strict=True)),
        )

    def close(self) -> None:
        self._consumer.close()
        self._publisher.close()


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def pipes(forms: Sequence[str]) -> Iterator[list[Pipe]]:
    with ExitStack() as house:
        folder = Path(house.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        broker = house.enter_context(Broker(folder / "broker"))
        url = broker.url(broker.new_vhost())
        topology.declare(parse(url))
        opened = []
        for form in forms:
            pipe = Pipe(form, url, folder, psutil.Process(broker.pid))
            house.callback(pipe.close)
            opened.append(pipe)
        yield opened


def measure(forms: Sequence[str], sizes: Sequence[int], turns: int, megabytes: int) -> dict[int, dict[str, list[Turn]]]:
    """By size and form; every form once in each turn, in changing order."""
    done: dict[int, dict[str, list[Turn]]] = defaultdict(lambda: defaultdict(list))
    with pipes(forms) as opened:
        for pipe in opened:
            pipe.run(50, sizes[0])  # everything is loaded and connected
        for turn in range(turns):
            for size in sizes:
                first = turn % len(opened)
                for pipe in opened[first:] + opened[:first]:
                    done[size][pipe.form].append(pipe.run(megabytes * 1_000_000 // size, size))
    return done


def summary(done: dict[int, dict[str, list[Turn]]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for size, by_form in done.items():
        told[str(size)] = {
            form: {
                "mb_per_s": round(median(turn.mb_per_s for turn in turns), 1),
                "frames_per_s": round(median(turn.count / turn.wall_s for turn in turns), 1),
                "cpu_s_per_gb": {
                    process: round(median(turn.cpu_s_per_gb(process) for turn in turns), 2)
                    for process in turns[0].cpu_s
                },
            }
            for form, turns in by_form.items()
        }
        told[str(size)]["ours_to"] = {
            form: round(median(a.mb_per_s / b.mb_per_s for a, b in zip(by_form["ours"], turns, strict=True)), 3)
            for form, turns in by_form.items()
            if form != "ours"
        }
    return told


def show(told: dict[str, Any]) -> None:
    for size, by_form in told.items():
        ratios = by_form["ours_to"]
        columns = ("MB/s", "frames/s", "publisher", "consumer", "broker", "ours to it")
        print(f"{int(size) // 1000:>5} KB" + "".join(f"{column:>12}" for column in columns))
        for form in (form for form in by_form if form != "ours_to"):
            row = by_form[form]
            cells = (row["mb_per_s"], row["frames_per_s"], *row["cpu_s_per_gb"].values(), ratios.get(form, ""))
            print(f"{form:<8}" + "".join(f"{cell:>12}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few messages, to see that it works")
    parser.add_argument("--only", choices=("pipe", "line"))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="of the pipe")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="bytes of a body in the pipe")
    parser.add_argument("--turns", type=int, default=7, help="of the pipe")
    arguments = parser.parse_args()
    told: dict[str, Any] = {}
    if arguments.only != "line":
        turns, megabytes = (1, 15) if arguments.quick else (arguments.turns, 240)
        told["pipe"] = summary(measure(arguments.forms, arguments.sizes, turns, megabytes))
        show(told["pipe"])
    if arguments.only != "pipe":
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            told["line"] = whole_line.measure(Path(folder), quick=arguments.quick)
        whole_line.show(told["line"])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
