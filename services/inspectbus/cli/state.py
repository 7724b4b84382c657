"""Where a command that opens services of its own keeps what they make: its --state, the folder of a plant here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

State = Annotated[
    Path,
    typer.Option(envvar="INSPECTBUS_STATE_DIR", help="Where services in this process keep their models and records."),
]
DEFAULT_STATE = Path(".inspectbus")
