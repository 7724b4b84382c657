"""Parts that make whoever works them raise, die or hang are held, and cost the others a detour at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.bus.rabbitmq.topology import connected
from inspectbus.runtime.watchdog import HUNG
from tests.doubles.marked_parts import Fault, fails_inference, fails_preprocessing
from tests.faults.scenario import PUSHED, SIZES, Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

LIMIT_S = 2.0
"""For one step of work; a hanging one ends its process after it."""
POISON = [
    *(fails_preprocessing(Fault.RAISE, number) for number in range(2)),
    *(fails_inference(Fault.RAISE, number) for number in range(2)),
    *(fails_preprocessing(Fault.CRASH, number) for number in range(3)),
    *(fails_inference(Fault.CRASH, number) for number in range(2)),
    *(fails_preprocessing(Fault.HANG, number) for number in range(2)),
    *(fails_preprocessing(Fault.HANG_LOCKED, number) for number in range(1)),
    *(fails_inference(Fault.HANG, number) for number in range(1)),
    *(fails_inference(Fault.HANG_LOCKED, number) for number in range(1)),
]


@SIZES
def test_poison(frames: int, tmp_path: Path, bus_url: str, ledger_url: str) -> None:
    # A twentieth of all frames at least; what costs a process each time, as often as it must.
    poison = POISON + [fails_preprocessing(Fault.RAISE, number) for number in range(2, 2 + frames // 20 - len(POISON))]
    settings = {service: {"call_limit_s": LIMIT_S} for service in ("preprocessing", "inference")}
    with Scenario(
        "poison: raise, crash, hang", frames, tmp_path, bus_url, ledger_url, poison=poison, settings=settings
    ) as scenario:
        figures = scenario.finish(patience_s=300)
        exits = [code for process in scenario.line.of("preprocessing", "inference") for code in process.exits]
        records = scenario.records()
        held = {
            each.source_item: each.hold.detail
            for frame_id, each in records.decisions.items()
            if frame_id in records.held_ids()
        }
    assert len(poison) >= frames / 20
    assert figures.held == len(poison)
    assert set(held) == {f"poison-{number}" for number in range(len(poison))}, "no innocent part is held"
    assert all(records.decisions[frame].station == PUSHED for frame in records.held_ids())
    assert all(held.values()), "each says why"
    assert sum("SIGSEGV" in detail or "SIGABRT" in detail for detail in held.values()) >= 5
    # Its own watchdog ends a hanging child, or the ward does.
    hung = ("did not come to an end", f"exit code {HUNG}", "exit code 1")
    assert sum(any(words in detail for words in hung) for detail in held.values()) >= 5
    assert any(code in (HUNG, 1) for code in exits), "a watchdog ended a process that hung"
    assert any(code < 0 for code in exits), "a process died"
    assert dead_letters(bus_url) == records.held_ids(), "each is kept, some of them twice"


def dead_letters(bus_url: str) -> set[str]:
    """The frames behind them."""
    connection = connected(parse(bus_url))
    try:
        channel = connection.channel()
        found = set()
        while (letter := channel.basic_get("inspectbus.dead", auto_ack=True))[0] is not None:
            found.add(str((letter[1].headers or {})["cloudEvents:subject"]))
        return found
    finally:
        connection.close()
