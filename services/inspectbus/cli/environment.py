"""The environment as a whole: a variable under our prefix that nobody reads is refused before any command runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

SETTINGS: tuple[str, ...] = ()
"""Every service's settings as "module:Class"; empty: nothing is known, so nothing can be refused."""


def check(environ: Mapping[str, str]) -> None:
    """Raises BadField naming the first variable that is not a setting."""
    # Settings are slow to import; most people set none.
    if not SETTINGS or not any(name.upper().startswith("INSPECTBUS_") for name in environ):
        return
    from inspectbus.runtime.settings import refuse_unknown

    known = []
    for place in SETTINGS:
        module, _, name = place.partition(":")
        known.append(getattr(import_module(module), name))
    refuse_unknown(environ, known)
