"""What a gate must not forget: frames pending, outcomes given, and how far the bus has confirmed them.

    expect ─> P        a frame may be accepted from now on
    forget ─> F        its sender was told that it is not
    settle ─> O        what was done with its part
    confirm ─> C       the bus has every outcome up to here

Each is one small record in a log (acquisition/segments.py), in the hands of the operating system before the call
returns, so that kill -9 cannot take it back. What nobody will ask for again is dropped from the log's beginning.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import structlog

from inspectbus.acquisition.segments import Position, SegmentLog
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.errors import StorageAway, StorageFull

log = structlog.get_logger(__name__)

REMEMBERED = 20_000
"""Outcomes whose frame ids are known for a second try, over restarts: far more than a resumed run publishes again (its
window and the time its cursor lags), and minutes of a sender that repeats itself. Costs about 6 MB of disk a gate."""
SEGMENT_BYTES = 1024 * 1024
"""A few thousand frames; what is dropped goes in such pieces."""

_PENDING, _FORGOTTEN, _OUTCOME, _CONFIRMED = b"P", b"F", b"O", b"C"
_POSITION = struct.Struct("<QQ")
_NOWHERE = Position(0, 0)


class GateJournal:
    """Thread-safe; one process holds a gate's journal at a time. Opens in its constructor, ends with `close`.

    Raises NotPossibleNow when another process has it, StorageAway or StorageFull when the disk refuses.
    """

    def __init__(self, folder: Path, *, fsync: bool, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._lock = threading.Lock()
        # For each the position before its record: what a drop may reach without losing it.
        self._pending: OrderedDict[str, Position] = OrderedDict()
        self._given: deque[Position] = deque(maxlen=remembered)
        self._confirmed = self._last = self._dropped = _NOWHERE
        self._log = SegmentLog(folder, segment_bytes=SEGMENT_BYTES, fsync=fsync)
        self.left: list[GateOutcome]
        """Frames that were pending when the last life ended, without action and reason."""
        self.given: list[str]
        """Frame ids of outcomes given in former lives, the oldest first."""
        self.left, self.given = self._recall()

    def close(self) -> None:
        self._log.close()

    @property
    def size_bytes(self) -> int:
        """Of the records that are kept."""
        return self._log.bytes

    @property
    def damage(self) -> str:
        """The last place where the disk had lost records, in words; empty when it has not."""
        return self._log.damage

    def expect(self, outcome: GateOutcome) -> None:
        """The frame of this outcome, which has no action yet, is pending.

        Raises StorageFull, StorageAway, BusClosed.
        """
        with self._lock:
            before = self._append([_PENDING + outcome.SerializeToString()])
            self._pending[outcome.frame_id] = before

    def forget(self, frame_id: str) -> None:
        """The frame is not pending any more and gets no outcome. Raises as `expect`; then a restart gives it one."""
        with self._lock:
            self._append([_FORGOTTEN + frame_id.encode()])
            self._pending.pop(frame_id, None)

    def settle(self, outcomes: Sequence[GateOutcome]) -> None:
        """Keeps these outcomes until they are confirmed, all or none. Raises as `expect`."""
        with self._lock:
            before = self._append([_OUTCOME + outcome.SerializeToString() for outcome in outcomes])
            for outcome in outcomes:
                self._pending.pop(outcome.frame_id, None)
                self._given.append(before)

    def confirm(self, position: Position) -> None:
        """The bus has every outcome up to this one. Raises as `expect`; then they are sent again after a restart."""
        with self._lock:
            self._append([_CONFIRMED + _POSITION.pack(*position)])
            self._confirmed = position
            self._drop()

    @property
    def confirmed(self) -> Position:
        """Where the outcomes that are still to be sent begin."""
        return self._confirmed

    def outcomes(self, after: Position) -> Iterator[tuple[Position, GateOutcome]]:
        """Those beyond the position, in the order they were given. Raises StorageAway."""
        for position, record in self._log.read(after):
            if record[:1] == _OUTCOME:
                yield position, GateOutcome.FromString(record[1:])

    def _append(self, records: Sequence[bytes]) -> Position:
        """Gives the position before them. Lock held."""
        before = self._last
        self._last = self._log.append(records)
        return before

    def _drop(self) -> None:
        """Drops what is settled, confirmed and older than what is remembered. Lock held."""
        keep_after = min([self._confirmed, *islice(self._pending.values(), 1), *islice(self._given, 1)])
        # Disk comes back in whole segments, so a mark within one would only cost.
        if keep_after.segment > self._dropped.segment:
            with suppress(StorageFull, StorageAway):  # it is tried again with the next confirmation
                self._log.drop_through(keep_after)
                self._dropped = keep_after

    def _recall(self) -> tuple[list[GateOutcome], list[str]]:
        left: OrderedDict[str, GateOutcome] = OrderedDict()
        given: deque[str] = deque(maxlen=self._remembered)
        for position, record in self._log.read():
            kind, body = record[:1], record[1:]
            if kind == _PENDING:
                outcome = GateOutcome.FromString(body)
                left[outcome.frame_id] = outcome
                self._pending[outcome.frame_id] = self._last
            elif kind == _OUTCOME:
                outcome = GateOutcome.FromString(body)
                given.append(outcome.frame_id)
                self._given.append(self._last)
                left.pop(outcome.frame_id, None)
                self._pending.pop(outcome.frame_id, None)
            elif kind == _FORGOTTEN:
                left.pop(body.decode(), None)
                self._pending.pop(body.decode(), None)
            elif kind == _CONFIRMED:
                self._confirmed = Position(*_POSITION.unpack(body))
            else:
                log.warning("a gate's journal holds a record of another version", kind=kind)
            self._last = position
        return list(left.values()), list(given)
