"""A report on its way into a folder: looked at as a stranger's file, and only then unpacked.

ZIP file ─> names, number and sizes checked ─> each file written, none over another
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path
from typing import IO

from inspectbus.errors import BadField, NotPossibleNow

MAX_REPORT_BYTES = 256 * 1024 * 1024
"""Packed, and unpacked too: a real one has a few megabytes."""
MAX_FILES = 200
"""A real one has some fifteen."""


def unpack(file: IO[bytes], folder: Path) -> tuple[Path, ...]:
    """Raises NotPossibleNow for a file that is no report, before anything is written where its list tells, and BadField
    for a folder that cannot be written or has such a file already."""
    try:
        with zipfile.ZipFile(file) as report:
            found = report.infolist()
            _check(found)
            folder.mkdir(parents=True, exist_ok=True)
            written = []
            for entry in found:
                # Never more than the size its list tells, whatever the packed bytes would make.
                with report.open(entry) as source, (folder / entry.filename).open("xb") as target:
                    shutil.copyfileobj(source, target)
                written.append(folder / entry.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _no_report(str(error)) from error
    except FileExistsError as error:
        raise BadField(f"{error.filename} is there already; name a new folder for the report", field="folder") from None
    except OSError as error:
        raise BadField(f"{folder} cannot be written: {error.strerror}", field="folder") from None
    return tuple(written)


def _check(found: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in found]
    if not names:
        raise _no_report("it is empty")
    if len(names) > MAX_FILES or len(set(names)) < len(names):
        raise _no_report(f"it has {len(names)} files, at most {MAX_FILES} of different names are taken")
    for name in names:
        # Whatever leads out of a folder on any system has a separator, a colon or a dot in front.
        if name.startswith(".") or any(mark in name for mark in "/\\:\0"):
            raise _no_report(f"{name[:100]!r} is no name of a file in a report")
    size = sum(entry.file_size for entry in found)
    if size > MAX_REPORT_BYTES:
        raise _no_report(f"unpacked it has {size} bytes, at most {MAX_REPORT_BYTES} are taken")


def _no_report(fault: str) -> NotPossibleNow:
    return NotPossibleNow(f"what came is no report: {fault}")
