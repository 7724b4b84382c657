"""Does an engine that blocks, put on threads, call back for each pass, whatever becomes of it?"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from queue import Queue

import numpy as np
import pytest

from inspectbus.inference.blocking import OnThreads
from inspectbus.inference.engine import Output
from tests.doubles.engines import PATIENCE_S, BrightnessEngine


@pytest.fixture
def engine() -> Iterator[BrightnessEngine]:
    engine = BrightnessEngine(streams=2)
    yield engine
    engine.release()


@pytest.fixture
def on_threads(engine: BrightnessEngine) -> Iterator[OnThreads]:
    with ExitStack() as house:
        on_threads = OnThreads(engine, 2)
        on_threads.open()
        house.callback(lambda: on_threads.close(time.monotonic() + PATIENCE_S))
        house.callback(engine.release)
        yield on_threads


def images(*levels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels])


def test_whoever_starts_goes_on_and_as_many_are_computed_at_once_as_there_are_threads(
    engine: BrightnessEngine, on_threads: OnThreads
) -> None:
    engine.hold()
    told: Queue[Output | Exception] = Queue()
    for level in range(3):
        on_threads.start(images(level), told.put)
    engine.wait_entered()
    engine.wait_entered()
    assert told.empty()
    engine.release()
    answers = [told.get(timeout=PATIENCE_S) for _ in range(3)]
    assert sorted(round(float(answer.scores[0]) * 255) for answer in answers if isinstance(answer, Output)) == [0, 1, 2]
    assert engine.at_once == 2


def test_what_the_engine_raises_is_told_and_the_next_is_computed(
    engine: BrightnessEngine, on_threads: OnThreads
) -> None:
    engine.poison = {13}
    told: Queue[Output | Exception] = Queue()
    on_threads.start(images(13), told.put)
    assert "cannot be computed" in str(told.get(timeout=PATIENCE_S))
    on_threads.start(images(1), told.put)
    assert isinstance(told.get(timeout=PATIENCE_S), Output)


def test_its_threads_end_when_it_is_closed_after_what_was_started(engine: BrightnessEngine) -> None:
    on_threads = OnThreads(engine, 2)
    on_threads.open()
    told: Queue[Output | Exception] = Queue()
    for level in range(5):
        on_threads.start(images(level), told.put)
    on_threads.close(time.monotonic() + PATIENCE_S)
    assert told.qsize() == 5
    assert not any(thread.name.startswith("inference-engine") for thread in threading.enumerate())


def test_closing_behind_an_engine_that_hangs_ends_in_time(engine: BrightnessEngine, on_threads: OnThreads) -> None:
    engine.hold()
    told: Queue[Output | Exception] = Queue()
    on_threads.start(images(1), told.put)
    engine.wait_entered()
    begun_s = time.monotonic()
    on_threads.close(begun_s + 0.1)
    assert time.monotonic() - begun_s < PATIENCE_S / 2
    engine.release()
    assert isinstance(told.get(timeout=PATIENCE_S), Output)


def test_a_thread_that_waits_keeps_no_images(on_threads: OnThreads) -> None:
    told: Queue[None] = Queue()
    given = images(1)
    seen = weakref.ref(given)
    gc.disable()
    try:
        on_threads.start(given, lambda answer: told.put(None))
        del given
        told.get(timeout=PATIENCE_S)
        until_s = time.monotonic() + PATIENCE_S
        while seen() is not None:
            assert time.monotonic() < until_s
    finally:
        gc.enable()
