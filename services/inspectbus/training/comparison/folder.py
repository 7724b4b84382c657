"""The report's folder: its files by name, and whether a folder may become one. Light, for who only fetches a report."""

from __future__ import annotations

import tempfile
from pathlib import Path

from inspectbus.errors import BadField

PAGE, RECORD = "report.html", "report.json"


def empty_folder(folder: Path) -> None:
    """Makes it where it is not there. Raises BadField for one with something in it, or that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BadField(f"{folder} is not empty; name a new folder for the report", field="out")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadField(f"{folder} cannot be written: {error.strerror}", field="out") from None
