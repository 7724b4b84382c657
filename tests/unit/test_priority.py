"""A load gives way to those who judge, and what it leaves behind does not."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from inspectbus.inference import priority
from inspectbus.inference.priority import LOWEST, giving_way

PATIENCE_S = 10.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")


def niceness(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


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


def test_the_thread_and_those_it_starts_are_lowered_within_and_raised_after() -> None:
    own = threading.get_native_id()
    usual = niceness(own)
    if not priority._can_be_undone():
        pytest.skip("this process may not raise a thread's priority, so none is lowered")
    with idle_thread() as engine:
        with giving_way(), idle_thread() as started:
            # then it and its own are behind, and whoever was there before is not
            lowered = min(LOWEST, usual + priority.STEP)
            assert (niceness(own), niceness(started)) == (lowered, lowered)
            assert niceness(engine) == usual
        with giving_way():
            later = idle_thread()
            kept = later.__enter__()
        assert (niceness(own), niceness(kept), niceness(engine)) == (usual, usual, usual)
        later.__exit__(None, None, None)


def test_a_load_that_fails_is_raised_too() -> None:
    usual = niceness(threading.get_native_id())
    with pytest.raises(RuntimeError), giving_way():
        raise RuntimeError
    assert niceness(threading.get_native_id()) == usual


def test_where_it_could_not_be_undone_nothing_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = niceness(threading.get_native_id())
    lower = os.setpriority

    def refuse_to_raise(which: int, who: int, wanted: int) -> None:
        if wanted <= niceness(who):
            raise PermissionError
        lower(which, who, wanted)

    monkeypatch.setattr(os, "setpriority", refuse_to_raise)
    with giving_way():
        assert niceness(threading.get_native_id()) == usual
