"""How far a station's run has come, in memory and on disk.

    frame accepted or unreadable ─> Cursor.settle ─> Mark ─> Journal: <state>/acquisition/<line>.<station>.cursor

The journal may lag behind, never lead: a run that goes on after a crash publishes its last frames again under the same
ids, and the ledger counts them once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inspectbus.errors import BadField, NotPossibleNow

MAX_JOURNAL_BYTES = 4096
"""A mark is a few hundred bytes."""


class Mark(BaseModel):
    """Where a run stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: str = Field(max_length=64)
    """StationSettings.plan when the run began."""
    items: str = Field(max_length=64)
    """Fingerprint of the source's items when the run began."""
    run_id: str = Field(min_length=1, max_length=64)
    next: int = Field(default=0, ge=0)
    """Every position below is settled: accepted, or unreadable and skipped."""
    unreadable: int = Field(default=0, ge=0)
    """How many of those below `next` were skipped."""
    finished: bool = False


class Cursor:
    """Counts what is settled. Frames settle in any order; `mark` moves over the gapless part. Not thread-safe."""

    def __init__(self, mark: Mark) -> None:
        self._begun = mark
        self._next = mark.next
        self._unreadable = mark.unreadable
        self._ahead: dict[int, bool] = {}

    def settle(self, position: int, *, unreadable: bool = False) -> None:
        """The position needs no more work."""
        self._ahead[position] = unreadable
        while self._next in self._ahead:
            self._unreadable += self._ahead.pop(self._next)
            self._next += 1

    def mark(self, *, finished: bool = False) -> Mark:
        update = {"next": self._next, "unreadable": self._unreadable, "finished": finished}
        return self._begun.model_copy(update=update)

    @property
    def next(self) -> int:
        """The first position that is not settled."""
        return self._next

    @property
    def unreadable(self) -> int:
        return self._unreadable + sum(self._ahead.values())

    @property
    def accepted(self) -> int:
        return self._next + len(self._ahead) - self.unreadable


class Journal:
    """The mark of one station on disk, whole or not at all: sha256 of the line's rest, a space, the mark as JSON."""

    def __init__(self, folder: Path, line: str, station: str) -> None:
        # Neither name can hold a dot or a slash, so two stations never share a file.
        self._file = folder / f"{line}.{station}.cursor"

    @property
    def file(self) -> Path:
        return self._file

    def read(self) -> Mark | None:
        """The last mark; None when there is none yet. Raises BadField naming a file that is damaged or unreadable."""
        try:
            with self._file.open("rb") as file:
                content = file.read(MAX_JOURNAL_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadField(f"cannot read the cursor {self._file}: {error.strerror}", field="cursor") from None
        digest, _, body = content.partition(b" ")
        # JSON with one changed digit is still JSON, and would skip frames.
        if digest != hashlib.sha256(body).hexdigest().encode():
            raise BadField(f"the cursor {self._file} is damaged", field="cursor")
        try:
            return Mark.model_validate_json(body)
        except ValidationError:
            raise BadField(f"the cursor {self._file} was written by another version", field="cursor") from None

    def write(self, mark: Mark) -> None:
        """Raises OSError when the disk takes no more; the mark before stays then."""
        body = mark.model_dump_json().encode()
        part = self._file.with_suffix(".part")
        with part.open("wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b" " + body)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._file)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Holds the station: two processes that replay it would move one cursor. Raises NotPossibleNow, OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NotPossibleNow(f"another process runs this station (it holds {lock.name})") from None
            yield
