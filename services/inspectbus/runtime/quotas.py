"""How much one caller may ask for: calls and bytes a second, each with a few seconds' worth at once.

a single call beyond ─> TooFast, with the seconds until it would be taken
a stream ─> is read no faster: its sender waits, as at a full window
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

BURST_S = 2.0
"""A caller that was quiet may send as much as this many seconds allow, at once."""
MAX_CALLERS = 1024
"""Callers that are remembered; whoever was quiet longest is forgotten first, and begins anew."""


class Quotas:
    """Thread-safe. A rate of 0 limits nothing."""

    def __init__(self, calls_per_s: float, bytes_per_s: float) -> None:
        self._rates = (calls_per_s, bytes_per_s)
        self._lock = threading.Lock()
        self._callers: OrderedDict[str, _Account] = OrderedDict()

    def take(self, caller: str, size: int) -> float:
        """Counts one message of so many bytes; gives 0, or the seconds until it may come again, and counts nothing."""
        if not any(self._rates):
            return 0.0
        now_s = time.monotonic()
        with self._lock:
            account = self._callers.pop(caller, None) or _Account(self._rates, now_s)
            self._callers[caller] = account
            if len(self._callers) > MAX_CALLERS:
                self._callers.popitem(last=False)
            return account.take((1, size), now_s)


class _Account:
    """What one caller has left of each. May go below nothing: one message larger than a burst is still taken."""

    def __init__(self, rates: tuple[float, float], now_s: float) -> None:
        self._rates = rates
        self._left = [rate * BURST_S for rate in rates]
        self._at_s = now_s

    def take(self, amounts: tuple[float, float], now_s: float) -> float:
        passed_s, self._at_s = now_s - self._at_s, now_s
        wait_s = 0.0
        for each, rate in enumerate(self._rates):
            self._left[each] = min(self._left[each] + rate * passed_s, rate * BURST_S)
            needed = min(1.0, rate * BURST_S)
            if rate and self._left[each] < needed:
                wait_s = max(wait_s, (needed - self._left[each]) / rate)
        if not wait_s:
            for each, amount in enumerate(amounts):
                self._left[each] -= amount
        return wait_s
