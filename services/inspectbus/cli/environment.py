"""The environment as a whole: a variable under our prefix that nobody reads is refused before any command runs."""

from __future__ import annotations

from collections.abc import Mapping


def check(environ: Mapping[str, str]) -> None:
    """Raises BadField naming the first variable that is not a setting."""
    # Settings are slow to import, and most people set none.
    if not any(name.upper().startswith("INSPECTBUS_") for name in environ):
        return
    from inspectbus.line import SERVICES, settings_class
    from inspectbus.runtime.settings import refuse_unknown

    refuse_unknown(environ, [settings_class(service) for service in SERVICES])
