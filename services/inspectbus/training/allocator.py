"""What torch frees, it will want again: keep it, while a training runs.

Maps of a batch are tens of megabytes, made and freed at each layer. glibc gives such blocks back to the kernel at once,
and every page of the next one is a fault: on two cores that doubles the time of a training.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_WHILE_TRAINING = 1 << 30
_AFTERWARDS = 32 << 20
"""glibc's own ceiling, which it comes to by itself in a process that computes much."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """For the whole process. Does nothing with another C library than glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    try:
        libc.mallopt(_MMAP_THRESHOLD, _WHILE_TRAINING)
        libc.mallopt(_TRIM_THRESHOLD, _WHILE_TRAINING)
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _AFTERWARDS)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _AFTERWARDS)
        libc.malloc_trim(0)
