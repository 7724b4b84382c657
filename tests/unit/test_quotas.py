"""How much one caller may ask for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from inspectbus.runtime import quotas
from inspectbus.runtime.quotas import BURST_S, Quotas


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(quotas, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_burst_is_taken_and_then_as_much_as_the_rate_allows(clock: list[float]) -> None:
    allowed = Quotas(calls_per_s=10, bytes_per_s=0)
    taken = [allowed.take("a", 1 << 30) for _ in range(int(10 * BURST_S))]
    assert not any(taken)

    assert allowed.take("a", 0) > 0
    clock[0] += 1.0
    assert [allowed.take("a", 0) > 0 for _ in range(11)] == [False] * 10 + [True]


def test_the_wait_told_is_long_enough_and_no_longer(clock: list[float]) -> None:
    allowed = Quotas(calls_per_s=0, bytes_per_s=1000)
    assert allowed.take("a", 12_000) == 0.0  # larger than any burst, and still taken by one that was quiet
    wait_s = allowed.take("a", 1)
    assert wait_s == pytest.approx(10.0, abs=0.01)
    clock[0] += wait_s - 0.1
    assert allowed.take("a", 1) > 0
    clock[0] += 0.11
    assert allowed.take("a", 1) == 0.0


def test_callers_do_not_pay_for_each_other_and_are_forgotten_beyond_a_bound(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "MAX_CALLERS", 3)
    allowed = Quotas(calls_per_s=0.5, bytes_per_s=0)
    for name in ("a", "b", "c"):
        assert allowed.take(name, 0) == 0.0
    assert allowed.take("a", 0) > 0
    assert allowed.take("d", 0) == 0.0
    assert len(allowed._callers) == 3
    assert allowed.take("a", 0) > 0  # asked last but one, so still known
    assert allowed.take("b", 0) == 0.0  # forgotten, and begins anew


def test_no_rate_is_no_limit() -> None:
    allowed = Quotas(0, 0)
    assert not any(allowed.take("a", 1 << 40) for _ in range(1000))
