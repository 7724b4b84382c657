"""What callers notice while the version that judges is replaced again and again.

    PYTHONPATH=services:clients:. .venv/bin/python -m tests.benchmarks.bench_swaps [--quick] [--engine openvino]

The inference service is a process of its own with EfficientNet-Lite0 at 224 px, in versions with other random
weights; the owner of its aliases is this process. Calls come evenly, half as many as the service can answer, from a
process of their own. In each turn they are answered for a while by one version, and then alias after alias is pointed
elsewhere, each as soon as the one before is followed. A figure is the median over the turns. No call may fail, and each
must name an alias and a version that was live at some time between its call and its answer. The last line is JSON:

    {"p99_over_before": ..., "swaps": ..., "calls": ..., "failed": 0, "misnamed": 0,
     "before": {"p50_ms": ..., "p99_ms": ..., "longest_ms": ...}, "during": {...},
     "swap_s": {"median": ..., "longest": ...}, "engine": ..., "calls_per_s": ...}

What was learnt, with OpenVINO in bf16 on two cores that others used too, so that no ratio of theirs says anything yet:

- A swap takes 0.15 s of CPU, all of it on threads that give way: 17 ms to fetch and verify, 16 for the card, 90 to
  compile, the rest to pass the gate. By the clock 0.3 s on an idle machine, and up to 3.5 s beside a load of 7.
- No step holds the interpreter's lock: another thread that sleeps for half a millisecond came back within 5 to 10, as
  beside nothing. Full garbage collections (0.2 to 0.3 s where torch is loaded) fell into the start, none into a swap.
- The first batch of each size cost 8 ms more than the next (one image 12 and not 4), at the usual priority: after each
  swap some twentieth of the calls. Since then a version has met eight sizes before it judges.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np

from inspectbus.api.v1.inference_pb2 import GetEngineRequest
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.domain.model_version import PRODUCTION, ModelCard
from inspectbus.domain.preparation import Preparation
from tests.benchmarks.bench_inference import CORES, LOAD_S, End, load, opened
from tests.benchmarks.swap_ends import Call
from tests.doubles.production import Production, production
from tests.doubles.tiny_model import tiny_version

CAPACITY_CALLERS = 16
SHARE = 0.5
"""Of what it can answer."""
LOOK_S = 0.05
"""Between two looks at which version judges: seldom enough to be no load."""


@dataclass
class Reigns:
    """Which version could judge when: from the moment the alias named it, until the next one was seen to judge."""

    known: list[tuple[str, float]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)

    def named(self, call: Call) -> bool:
        """Whether what it was answered could be."""
        ends = [*self.seen[1:], float("inf")]
        return call.alias == PRODUCTION and any(
            version == call.version and from_s <= call.ended_s and call.begun_s <= until_s
            for (version, from_s), until_s in zip(self.known, ends, strict=True)
        )

    @property
    def swaps_s(self) -> list[float]:
        """From naming it until it was seen to judge; without the first."""
        return [seen - from_s for (_, from_s), seen in zip(self.known, self.seen, strict=True)][1:]


class Line:
    """The service, and the alias that it follows."""

    def __init__(self, owner: Production, cards: Sequence[ModelCard], arguments: argparse.Namespace) -> None:
        self._owner, self._cards = owner, cards
        self._number = 0
        how = (owner.address, owner.url, cards[0].name, arguments.engine, arguments.streams, arguments.batch)
        self.reigns = Reigns()
        owner.name(cards[0])
        named_s = time.monotonic()
        self._end = End("serve", *how, module="swap_ends")
        self.address: str = self._end.ready["address"]
        self._channel = grpc.insecure_channel(self.address)
        self._stub = InferenceServiceStub(self._channel)
        self._follow(cards[0], named_s)

    def swap(self) -> None:
        """To the next version, and until it judges."""
        self._number += 1
        card = self._cards[self._number % len(self._cards)]
        self._owner.name(card)
        named_s = time.monotonic()
        self._end.tell(self._number)
        self._end.answer()
        self._follow(card, named_s)

    def close(self) -> None:
        self._channel.close()
        self._end.close()

    def _follow(self, card: ModelCard, named_s: float) -> None:
        until_s, pause = named_s + LOAD_S, threading.Event()
        while (told := self._stub.GetEngine(GetEngineRequest(), timeout=LOAD_S)).model_version != card.version:
            assert time.monotonic() < until_s, told.detail
            pause.wait(LOOK_S)
        self.reigns.known.append((card.version, named_s))
        self.reigns.seen.append(time.monotonic())


@dataclass(frozen=True)
class Turn:
    before: list[Call]
    during: list[Call]


def measure(line: Line, callers: End, rate: float, turns: int, swaps: int, seconds: float) -> list[Turn]:
    """`swaps` in all, about as many in each turn."""
    done = []
    for turn in range(turns):
        callers.tell(rate)
        threading.Event().wait(seconds)
        before = ended(callers)
        callers.tell(rate)
        for _ in range(turn * swaps // turns, (turn + 1) * swaps // turns):
            line.swap()
        done.append(Turn(before, ended(callers)))
    return done


def ended(callers: End) -> list[Call]:
    callers.tell(0)
    return [Call(*each) for each in callers.answer()["calls"]]


def summary(turns: Sequence[Turn], reigns: Reigns, engine: str, rate: float) -> dict[str, Any]:
    calls = [call for turn in turns for call in (*turn.before, *turn.during)]
    failures = [call.failure for call in calls if call.failure]
    misnamed = [call for call in calls if not call.failure and not reigns.named(call)]
    for words in (*failures[:3], *misnamed[:3]):
        print(words, file=sys.stderr)
    ratios = [percentile_ms(turn.during, 99) / percentile_ms(turn.before, 99) for turn in turns]
    return {
        "p99_over_before": round(median(ratios), 2),
        "swaps": len(reigns.swaps_s),
        "calls": len(calls),
        "failed": len(failures),
        "misnamed": len(misnamed),
        "before": figures([turn.before for turn in turns]),
        "during": figures([turn.during for turn in turns]),
        "swap_s": {"median": round(median(reigns.swaps_s), 2), "longest": round(max(reigns.swaps_s), 2)},
        "engine": engine,
        "calls_per_s": round(rate, 1),
    }


def figures(turns: Sequence[Sequence[Call]]) -> dict[str, float]:
    return {
        f"{name}_ms": round(median(percentile_ms(calls, share) for calls in turns), 2)
        for name, share in (("p50", 50), ("p99", 99), ("longest", 100))
    }


def percentile_ms(calls: Sequence[Call], share: float) -> float:
    return float(1000 * np.percentile([call.ended_s - call.begun_s for call in calls], share))


@contextmanager
def versions(count: int, backbone: str, side: int, folder: Path) -> Iterator[tuple[Production, list[ModelCard]]]:
    """All in the store."""
    how: dict[str, Any] = {"backbone": backbone, "preparation": Preparation(width=side, height=side), "exported": True}
    with production(folder / "store") as owner:
        yield owner, [owner.put(tiny_version(folder / "made", seed=seed, **how)) for seed in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="four swaps, to see that it works: within a minute")
    parser.add_argument("--engine", default="openvino-bf16", help="as the setting `engine` spells it")
    parser.add_argument("--streams", type=int, default=CORES)
    parser.add_argument("--batch", type=int, default=8, help="images of the largest batch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    arguments = parser.parse_args()
    count, turns, swaps, seconds = (2, 1, 4, 2.0) if arguments.quick else (3, arguments.turns, arguments.swaps, 10.0)
    with ExitStack() as house:
        folder = Path(house.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        owner, cards = house.enter_context(versions(count, arguments.backbone, arguments.side, folder))
        line = Line(owner, cards, arguments)
        house.callback(line.close)
        crowd = opened(house, "clients", "calls", line.address, arguments.side)
        rate = SHARE * load([crowd], CAPACITY_CALLERS, seconds / 2).images_per_s
        end = End("call", line.address, arguments.side, module="swap_ends")
        house.callback(end.close)
        told = summary(measure(line, end, rate, turns, swaps, seconds), line.reigns, arguments.engine, rate)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
