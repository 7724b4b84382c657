"""A log of records on disk that only grows at its end and is dropped at its beginning.

    append ─> ... | 0007.log | 0008.log <─ one write, one sync        read(after) ─> records in order
                                                                      drop_through ─> mark, old segments removed

A record is its checksum, its length and its bytes. What a crash tore off the last segment is cut away when the log is
opened; what was appended before it survives. Each opening begins a new segment, so that no position is ever used twice:
a mark must not pass over records that were written after a cut below it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import structlog

from inspectbus.errors import BadField, BusClosed, NotPossibleNow, StorageAway, StorageFull

log = structlog.get_logger(__name__)

MAX_RECORD_BYTES = 512 * 1024 * 1024
"""As large as the largest message may be told to be. A length is also held to what is left of its file, so a damaged
one allocates no more than a segment has."""

Record = bytes
"""What a log keeps, whatever it means."""

_HEAD = struct.Struct("<II")
"""CRC-32 of length and bytes, then the length: a run of zeros is no record."""
_LENGTH = struct.Struct("<I")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Position(NamedTuple):
    """Where a record ends. Later records have larger positions, over restarts too."""

    segment: int
    end: int


@dataclass
class _Segment:
    number: int
    path: Path
    ends: array[int] = field(default_factory=lambda: array("Q"))
    """Where each record ends; the first begins at 0, each other where the one before ends."""

    @property
    def end(self) -> int:
        return self.ends[-1] if self.ends else 0


class SegmentLog:
    """Thread-safe; one process owns a folder at a time. Opens in its constructor, ends with `close` or as a context.

    `segment_bytes` is where a new file begins (a larger append has one of its own); with `fsync` an append is on the
    disk when it returns, without it survives the process but not the machine.
    Raises NotPossibleNow when another process has the folder, StorageAway or StorageFull when the disk refuses.
    """

    def __init__(self, folder: Path, *, segment_bytes: int, fsync: bool) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._fsync = fsync
        # Files are changed under the first, the index of records under the second, which nobody holds while the disk
        # works: to ask how much is in the log never waits for a sync. Taken in this order.
        self._disk = threading.Lock()
        self._lock = threading.Lock()
        self._segments: list[_Segment] = []
        self._active: BinaryIO | None = None
        self.damages = 0
        """Places where records were lost to damage, found since opening."""
        self.damage = ""
        """The last of them, in words."""
        self._stack = ExitStack()
        with ExitStack() as opening:
            opening.enter_context(self._owned())
            with _translated(folder):
                self._mark = self._read_mark()
                self._recover()
                if fsync:
                    _sync_folder(folder.parent)
            self._stack = opening.pop_all()
        last = self._segments[-1].number if self._segments else 0
        self._next_number = max(last, self._mark.segment) + 1

    def __enter__(self) -> SegmentLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._disk:
            self._retire()
            with suppress(OSError):  # what stays is removed at the next opening
                self._remove_dropped()
        self._stack.close()

    @property
    def mark(self) -> Position:
        """Everything up to here has been dropped."""
        return self._mark

    @property
    def records(self) -> int:
        """Not dropped."""
        with self._lock:
            return sum(len(segment.ends) - self._dropped_of(segment) for segment in self._segments)

    @property
    def bytes(self) -> int:
        """Of the records not dropped; the disk may hold one segment more."""
        with self._lock:
            return sum(
                max(0, segment.end - (self._mark.end if segment.number == self._mark.segment else 0))
                for segment in self._segments
            )

    def append(self, records: Sequence[Record]) -> Position:
        """Writes all of them, at least one, and gives the position of the last. When it raises, none is given.

        A process killed in here may find the first of them at its next opening.
        Raises BadField for a record that is too large, StorageFull or StorageAway when the disk takes no more,
        BusClosed when the log has been closed.
        """
        data = bytearray()
        ends = array("Q")
        for record in records:
            if len(record) > MAX_RECORD_BYTES:
                raise BadField(f"a record of {len(record)} bytes is too large for {self._folder}")
            length = _LENGTH.pack(len(record))
            data += zlib.crc32(record, zlib.crc32(length)).to_bytes(4, "little") + length
            data += record
            ends.append(len(data))
        with self._disk, _translated(self._folder):
            segment, file = self._writable(len(data))
            begin = segment.end
            try:
                _write(file, data)
                if self._fsync:
                    os.fdatasync(file.fileno())
            except OSError:
                # What the disk holds of this segment beyond `begin` is anybody's guess now.
                with suppress(OSError):
                    file.truncate(begin)
                self._retire()
                if not begin:
                    self._discard(segment)
                raise
            with self._lock:
                segment.ends.extend(begin + end for end in ends)
            return Position(segment.number, begin + len(data))

    def read(self, after: Position | None = None) -> Generator[tuple[Position, Record], None, None]:
        """The records beyond `after` that are not dropped, in order, until there is none; damaged ones are skipped,
        counted and told. Raises StorageAway when the disk cannot be read."""
        position = after or Position(0, 0)
        with ExitStack() as opened, _translated(self._folder):
            path, file = None, None
            while (found := self._next(position)) is not None:
                segment, begin, end = found
                if path != segment.path:
                    opened.close()
                    try:
                        path, file = segment.path, opened.enter_context(segment.path.open("rb"))
                    except FileNotFoundError:  # dropped this very moment
                        position = Position(segment.number + 1, 0)
                        continue
                assert file is not None
                file.seek(begin)
                record = _record(file, end)
                position = Position(segment.number, end)
                if record is not None:
                    yield position, record
                else:
                    self._cut(segment, begin)

    def drop_through(self, position: Position) -> None:
        """Everything up to the position is given no more, not after a restart either; a log of which all is dropped has
        no file left. Raises StorageFull, StorageAway: then it is given again after a restart."""
        with self._disk, _translated(self._folder):
            if position <= self._mark:
                return
            with self._lock:
                self._mark = position
            if self._active is not None and (self._segments[-1].number, self._segments[-1].end) <= position:
                # Others may wait for this very disk, and the next append may be long in coming.
                self._retire()
            try:
                self._write_mark()
                self._remove_dropped()
            except OSError:
                # On a full disk there may be room for the mark once what lies below it is gone.
                self._remove_dropped()
                self._write_mark()

    def _next(self, position: Position) -> tuple[_Segment, int, int] | None:
        """The first record beyond the position: its segment, where it begins and ends."""
        with self._lock:
            position = max(position, self._mark)
            for segment in self._segments:
                if segment.number < position.segment:
                    continue
                index = bisect_right(segment.ends, position.end) if segment.number == position.segment else 0
                if index < len(segment.ends):
                    return segment, segment.ends[index - 1] if index else 0, segment.ends[index]
        return None

    def _writable(self, size: int) -> tuple[_Segment, BinaryIO]:
        """The segment that takes so many bytes more, with its file."""
        if self._closed:
            raise BusClosed(f"the log {self._folder} has been closed")
        if self._active is not None and 0 < self._segments[-1].end > self._segment_bytes - size:
            self._retire()
            self._remove_dropped()
        if self._active is None:
            number = self._next_number
            segment = _Segment(number, self._folder / f"{number:016d}.log")
            self._active = segment.path.open("xb", buffering=0)
            self._next_number += 1
            with self._lock:
                self._segments.append(segment)
            if self._fsync:
                _sync_folder(self._folder)
        return self._segments[-1], self._active

    def _retire(self) -> None:
        """The next append begins a new segment."""
        if self._active is not None:
            self._active.close()
            self._active = None

    def _discard(self, segment: _Segment) -> None:
        """A file that took nothing: a full disk must not be filled with empty ones."""
        with suppress(OSError):
            segment.path.unlink(missing_ok=True)
        with self._lock:
            self._segments.remove(segment)

    def _cut(self, segment: _Segment, at: int) -> None:
        """A segment that was whole when opened no longer is."""
        with self._disk:
            self._tell_damage(segment.path, at, segment.end)
            if self._active is not None and segment is self._segments[-1]:
                self._retire()
            with self._lock:
                del segment.ends[bisect_right(segment.ends, at) :]

    def _dropped_of(self, segment: _Segment) -> int:
        return bisect_right(segment.ends, self._mark.end) if segment.number == self._mark.segment else 0

    def _remove_dropped(self) -> None:
        """Removes what lies wholly below the mark, but for the segment being written."""
        writing = self._segments[-1] if self._active is not None else None
        for segment in list(self._segments):
            if segment is not writing and (segment.number, segment.end) <= self._mark:
                segment.path.unlink(missing_ok=True)
                with self._lock:
                    self._segments.remove(segment)

    def _recover(self) -> None:
        numbered = sorted((int(path.stem), path) for path in self._folder.glob("*.log") if path.stem.isdigit())
        for number, path in numbered:
            segment = _Segment(number, path)
            size = path.stat().st_size
            with path.open("rb") as file:
                while segment.end < size and _record(file, size) is not None:
                    segment.ends.append(file.tell())
            if segment.end < size:
                self._tell_damage(path, segment.end, size)
                if (number, path) == numbered[-1]:
                    with path.open("r+b") as file:
                        file.truncate(segment.end)
                        os.fsync(file.fileno())
            self._segments.append(segment)
        self._remove_dropped()

    def _tell_damage(self, path: Path, at: int, size: int) -> None:
        self.damages += 1
        self.damage = f"{path} is damaged or torn at byte {at}: its last {size - at} bytes are lost"
        log.warning("log damaged", detail=self.damage)

    def _read_mark(self) -> Position:
        """Position(0, 0) when there is none or it is damaged: repeating records is safe, skipping them is not."""
        try:
            words = (self._folder / "mark").read_bytes()[:128].split()
        except FileNotFoundError:
            return Position(0, 0)
        if len(words) != 3 or zlib.crc32(b" ".join(words[:2])) != _number(words[2]):
            log.warning("mark damaged; all records that are left are given again", folder=str(self._folder))
            return Position(0, 0)
        return Position(int(words[0]), int(words[1]))

    def _write_mark(self) -> None:
        # Not synced: a machine that loses power gives some records twice, and the disk is spared a flush per drop.
        body = b"%d %d" % self._mark
        part = self._folder / "mark.part"
        part.write_bytes(body + b" %d\n" % zlib.crc32(body))
        part.replace(self._folder / "mark")

    @contextmanager
    def _owned(self) -> Iterator[None]:
        with _translated(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("a")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NotPossibleNow(
                    f"another process has {self._folder}: is an acquisition running? Ask that one "
                    "(`inspectbus inspect --address HOST:PORT`), or choose another state folder",
                    field="state_dir",
                ) from None
            self._closed = False
            try:
                yield
            finally:
                self._closed = True


def _record(file: BinaryIO, limit: int) -> Record | None:
    """The record where the file stands, which may reach to `limit`; None when it is not whole."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    checksum, length = _HEAD.unpack(head)
    if length > min(MAX_RECORD_BYTES, limit - file.tell()):
        return None
    body = file.read(length)
    whole = len(body) == length and zlib.crc32(body, zlib.crc32(head[4:])) == checksum
    return body if whole else None


def _write(file: BinaryIO, data: bytearray) -> None:
    """A raw file may take less than all, as when the disk is nearly full; the next write then says why."""
    with memoryview(data) as left:
        written = 0
        while written < len(data):
            written += file.write(left[written:])


def _number(word: bytes) -> int:
    return int(word) if word.isdigit() else -1


def _sync_folder(folder: Path) -> None:
    """A new file is found after a power cut only when its folder is synced too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"the disk of {folder} is full ({error.strerror})") from None
        raise StorageAway(f"cannot use {folder}: {error.strerror}") from None
