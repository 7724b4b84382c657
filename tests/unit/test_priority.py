"""Who computes gives way to those who answer, and who loads beside others to those who compute."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import pytest

from inspectbus.inference import priority
from inspectbus.inference.priority import COMPUTES, LOADS, LOWEST, computes, loading

T = TypeVar("T")
PATIENCE_S = 10.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")


def niceness(thread: int | None = None) -> int:
    """Of the calling thread, or another."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id() if thread is None else thread)


def level(step: int) -> int:
    return min(LOWEST, niceness(os.getpid()) + step)


@contextmanager
def idle_thread() -> Iterator[int]:
    """Its native id."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(PATIENCE_S,), daemon=True)
    thread.start()
    assert thread.native_id is not None
    try:
        yield thread.native_id
    finally:
        end.set()
        thread.join(PATIENCE_S)


def on_a_thread(does: Callable[[], T]) -> T:
    """A thread that may stay lowered."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(does).result(PATIENCE_S)


@pytest.fixture
def undone() -> None:
    if not priority._can_be_undone():
        pytest.skip("this process may not raise a thread's priority")


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = os.setpriority

    def refuse_to_raise(which: int, who: int, wanted: int) -> None:
        if wanted < niceness(who):
            raise PermissionError
        lower(which, who, wanted)

    monkeypatch.setattr(os, "setpriority", refuse_to_raise)


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize(("beside", "meanwhile"), [(False, COMPUTES), (True, LOADS)])
def test_what_a_load_starts_computes_from_then_on_and_beside_others_is_behind_them_meanwhile(
    beside: bool, meanwhile: int
) -> None:
    usual, lowered, computing = niceness(), level(meanwhile), level(COMPUTES)
    with ExitStack() as house:
        other = house.enter_context(idle_thread())
        with loading(beside=beside):
            started = house.enter_context(idle_thread())
            assert [niceness(each) for each in (None, started, other)] == [lowered, lowered, usual]
        assert [niceness(each) for each in (None, started, other)] == [usual, computing, usual]


@pytest.mark.usefixtures("undone")
def test_a_load_that_fails_is_raised_too() -> None:
    usual = niceness()
    with pytest.raises(RuntimeError), loading(beside=True):
        raise RuntimeError
    assert niceness() == usual


@pytest.mark.usefixtures("unprivileged")
def test_where_it_could_not_be_undone_who_loads_is_level_with_who_computes_however_often() -> None:
    def loads() -> list[int]:
        found = []
        for _ in range(2):
            with ExitStack() as house:
                with loading(beside=True):
                    started = house.enter_context(idle_thread())
                found.append(niceness(started))
        return [*found, niceness()]

    assert on_a_thread(loads) == [level(COMPUTES)] * 3


@pytest.mark.usefixtures("unprivileged")
def test_a_thread_that_computes_is_behind_the_others_and_says_so_as_often_as_it_likes() -> None:
    def does() -> int:
        computes()
        computes()
        return niceness()

    assert on_a_thread(does) == level(COMPUTES)
    assert niceness() == level(0)


def test_where_no_priority_may_be_changed_everybody_goes_on_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    usual = niceness()
    computes()
    with loading(beside=True), idle_thread() as started:
        assert (niceness(), niceness(started)) == (usual, usual)
    assert niceness() == usual


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    usual = niceness()
    computes()
    with loading(beside=True):
        assert niceness() == usual
    assert niceness() == usual
