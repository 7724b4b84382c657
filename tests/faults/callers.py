"""Other plant software that has images inspected all the time, by all replicas of acquisition, and writes down answers.

    callers, each with one image at a time ─┐
                                            ├─> real client ─> acquisition-0, acquisition-1
    a stream of images ─────────────────────┘

They go on until told to stop, so something is under way whatever a test does meanwhile, on a machine of any speed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from inspectbus.api.v1.decision_pb2 import Verdict
from inspectbus.errors import InspectBusError
from inspectbus_client import Client, Decision, Shot
from tests.doubles.marked_parts import name, picture
from tests.doubles.records import Records

CALLERS = 3
PICTURES = 12
CALL_S = 120.0
"""Patience for one image: that it was late is no failure here, that it got no answer is."""
PAUSE_S = 0.05
"""Of a caller between two images: the line has other work too."""


class Callers:
    """Thread-safe. Use as a context around what happens to the line; leaving waits for the last answers."""

    def __init__(self, client: Client) -> None:
        self.failures: list[str] = []
        """What was told instead of a decision."""
        self._client = client
        self._pictures = [
            (name(number, number % 4 == 3), picture(number, number % 4 == 3)) for number in range(PICTURES)
        ]
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._decisions: dict[str, Decision] = {}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, name=f"caller-{number}", daemon=True) for number in range(CALLERS)
        ]
        self._threads.append(threading.Thread(target=self._stream, name="caller-stream", daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(CALL_S)
            assert not thread.is_alive(), f"{thread.name} got neither decision nor error"

    @property
    def decisions(self) -> dict[str, Decision]:
        """Answers so far, by frame id."""
        with self._changed:
            return dict(self._decisions)

    def await_more(self, count: int) -> None:
        """Until so many further images have been decided."""
        with self._changed:
            wanted = len(self._decisions) + count
            enough = self._changed.wait_for(lambda: len(self._decisions) >= wanted or self.failures, CALL_S)
            assert not self.failures, self.failures
            assert enough, "the line decides nothing"

    def misled(self, records: Records) -> list[str]:
        """Frames whose answer was another than the record."""
        return [
            frame_id
            for frame_id, told in self.decisions.items()
            if (recorded := records.decisions.get(frame_id)) is None
            or (f"VERDICT_{told.verdict}", told.station, told.run_id, told.source_item)
            != (Verdict.Name(recorded.verdict), recorded.station, recorded.run_id, recorded.source_item)
        ]

    def _call(self) -> None:
        while not self._over.wait(PAUSE_S):
            shot = self._shot()
            try:
                self._note(shot, self._client.inspect(shot, timeout_s=CALL_S))
            except InspectBusError as error:
                self._fail(error)

    def _stream(self) -> None:
        try:
            for inspected in self._client.inspect_many(self._shots(), in_flight=2, patience_s=CALL_S):
                if inspected.decision is not None:
                    self._note(inspected.shot, inspected.decision)
                elif inspected.error is not None:
                    self._fail(inspected.error)
        except InspectBusError as error:
            self._fail(error)

    def _shots(self) -> Iterator[Shot]:
        while not self._over.wait(PAUSE_S):
            yield self._shot()

    def _shot(self) -> Shot:
        number = next(self._numbers)
        item, image = self._pictures[number % PICTURES]
        return Shot(image, source_item=f"{number}-{item}")

    def _note(self, shot: Shot, decision: Decision) -> None:
        with self._changed:
            if decision.frame_id != shot.frame_id:
                self.failures.append(f"{shot.frame_id} was answered with the decision on {decision.frame_id}")
            self._decisions[shot.frame_id] = decision
            self._changed.notify_all()

    def _fail(self, error: InspectBusError) -> None:
        with self._changed:
            self.failures.append(f"{type(error).__name__}: {error}")
            self._changed.notify_all()
