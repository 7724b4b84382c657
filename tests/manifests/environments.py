"""A process's environment for a moment: only what a manifest gives it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

from inspectbus.runtime.settings import PREFIX


@contextmanager
def clean_environment(told: Mapping[str, str]) -> Iterator[None]:
    """Ours with no setting of InspectBus but these."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with mock.patch.dict(os.environ, {**others, **told}, clear=True):
        yield
