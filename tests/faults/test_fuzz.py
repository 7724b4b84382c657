"""Twenty thousand random and broken requests, at every method: no fault, no crash, memory flat."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest

from tests.doubles.fuzzing import Fuzzer, methods
from tests.doubles.whole_line import HOSTS, whole_line

CALLS = 20_000
ROUNDS = 4
"""The first warms caches, allocators and hypothesis itself; memory is compared from its end on."""
GROWTH_BYTES = 64 * 1024 * 1024


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_thousand_requests_cause_no_fault_and_cost_no_memory(tmp_path: Path) -> None:
    asked = list(methods())
    examples = CALLS // (2 * ROUNDS * len(asked)) + 1
    codes: Counter[grpc.StatusCode] = Counter()
    sizes: list[int] = []
    with ExitStack() as house:
        doors = house.enter_context(whole_line(tmp_path))
        channels = {name: house.enter_context(grpc.insecure_channel(door.address)) for name, door in doors.items()}
        # hypothesis stops early where there is little to vary, so rounds go on until there were enough.
        while len(sizes) < ROUNDS or codes.total() < CALLS:
            for method in asked:
                fuzzer = Fuzzer(channels[HOSTS[method.containing_service.name]], codes)
                fuzzer.attack(method, examples)
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)
    told = {code.name: count for code, count in codes.most_common()}
    sys.stdout.write(f"\n{codes.total()} calls: {told}\nMB after each round: {[size >> 20 for size in sizes]}\n")
    assert sizes[-1] - sizes[0] < GROWTH_BYTES
