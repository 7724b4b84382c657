"""Servers that tests start for themselves as child processes."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str, how: str) -> NoReturn:
    """Skips the test that needs a server this machine lacks, or fails it where CI promises that it is there."""
    words = f"{what} is not installed: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(words)
    pytest.skip(words)
