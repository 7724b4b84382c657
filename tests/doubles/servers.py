"""Servers that tests start for themselves as child processes."""

from __future__ import annotations

import os
import socket
from typing import NoReturn

import pytest


def missing(what: str, how: str) -> NoReturn:
    """Skips the test that needs a server this machine lacks, or fails it where CI promises that it is there."""
    words = f"{what} is not installed: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(words)
    pytest.skip(words)


def free_port() -> int:
    """One that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
