"""Outputs: whoever moves the part, told what the gate has done.

    gate ── act, heartbeat ──> feeder: bounded queue, own thread ──> output

A slow or failing output never delays the gate: what its feeder cannot hold is dropped for this output alone, counted,
and told in the station's detail. Heartbeats come from the gate's own timer, so a gate that hangs is silent too.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, assert_never

import structlog
from prometheus_client import Counter

from inspectbus import spans
from inspectbus.acquisition.settings import FileOutputSettings, LogOutputSettings, OutputSettings
from inspectbus.api.v1.decision_pb2 import Verdict
from inspectbus.api.v1.gate_pb2 import GateAction, GateOutcome, GateReason

log = structlog.get_logger(__name__)

FEEDER_LIMIT = 1000
"""Outcomes that wait for one output: seconds of a fast line, after which acting on them helps no part."""
FAREWELL_S = 1.0
"""How long an output may take for what waits when the gate closes."""


class Output(Protocol):
    """Used by one thread. Either call may raise OSError, and is then counted as failed."""

    def act(self, outcome: GateOutcome) -> None:
        """The gate has done this; called once for each outcome, in order."""

    def heartbeat(self) -> None:
        """The gate is alive. Who moves the parts takes its fail-safe position when this is missing."""


def open_output(settings: OutputSettings) -> Output:
    match settings:
        case LogOutputSettings():
            return LogOutput()
        case FileOutputSettings():
            return FileOutput(settings.path, settings.max_bytes)
        case _:
            assert_never(settings)


class LogOutput:
    """A line in the service's log for each outcome."""

    def act(self, outcome: GateOutcome) -> None:
        log.info("gate", trace_id=spans.trace_id_of(outcome.frame_id), **words(outcome))

    def heartbeat(self) -> None:
        """A log is read later, when nobody acts on it."""


class FileOutput:
    """JSON lines at `path`; the full file becomes `path`.1. `path`.heartbeat is written anew with each heartbeat."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._full = path.with_name(path.name + ".1")
        self._heartbeat = path.with_name(path.name + ".heartbeat")

    def act(self, outcome: GateOutcome) -> None:
        row = json.dumps(words(outcome)).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if self._path.stat().st_size + len(row) > self._max_bytes:
                self._path.replace(self._full)
        # Opened each time: whoever moves the file away, or mounts its disk again, gets a new one.
        with self._path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            written = 0
            try:
                written = file.write(row)
            finally:
                if written != len(row):
                    # Half a row would swallow the next one.
                    with suppress(OSError):
                        file.truncate(end)
        if written != len(row):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def heartbeat(self) -> None:
        self._heartbeat.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own each time: it is never read half written, and a full disk, which takes no outcome, takes no
        # heartbeat either.
        part = self._heartbeat.with_name(self._heartbeat.name + ".part")
        part.write_text(f"{time.time():.3f}\n", encoding="ascii")
        part.replace(self._heartbeat)


def words(outcome: GateOutcome) -> dict[str, object]:
    """An outcome for people and scripts: what is unset is left out."""
    said: dict[str, object] = {
        "frame_id": outcome.frame_id,
        "line": outcome.line,
        "station": outcome.station,
        "action": _word(GateAction, outcome.action),
        "reason": _word(GateReason, outcome.reason),
        "at": outcome.at.ToJsonString(),
    }
    if outcome.HasField("waited_s"):
        said["waited_s"] = round(outcome.waited_s, 6)
    if outcome.verdict:
        said["verdict"] = _word(Verdict, outcome.verdict)
    if outcome.part_id:
        said["part_id"] = outcome.part_id
    return said


def _word(enum: Any, number: int) -> str:
    """REJECT for GATE_ACTION_REJECT; the number of a word that only a newer service knows."""
    if number not in enum.values():
        return str(number)
    return str(enum.Name(number)).removeprefix(enum.Name(0).removesuffix("UNSPECIFIED"))


class Feeder:
    """Hands one output what it must know, on a thread of its own. `start` it, `close` it."""

    def __init__(self, kind: str, output: Output, failures: Counter) -> None:
        """`kind` names the output in words; `failures` counts outcomes it did not get."""
        self._kind = kind
        self._output = output
        self._failures = failures
        self._changed = threading.Condition()
        self._waiting: deque[GateOutcome] = deque()
        self._beat = False
        self._closed = False
        self._missed = 0
        self._reason = ""
        self._beats_fail = ""
        self._thread = threading.Thread(target=self._run, name=f"gate-output-{kind}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def act(self, outcome: GateOutcome) -> None:
        with self._changed:
            if len(self._waiting) < FEEDER_LIMIT:
                self._waiting.append(outcome)
            else:
                self._fail(f"{FEEDER_LIMIT} outcomes wait for it already")
            self._changed.notify()

    def heartbeat(self) -> None:
        with self._changed:
            self._beat = True
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(FAREWELL_S)

    @property
    def trouble(self) -> str:
        """What the output did not get since the gate opened, in words; empty while it gets all."""
        missed = f"{self._missed} outcomes missed, the last for: {self._reason}" if self._missed else ""
        told = "; ".join(filter(None, (missed, self._beats_fail)))
        return f"output {self._kind}: {told}" if told else ""

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._beat or self._closed)
                if self._closed and not self._waiting:
                    return
                outcome = self._waiting.popleft() if self._waiting else None
                beat, self._beat = self._beat, False
            # An output is somebody's device: whatever it raises, the next outcome is tried.
            try:
                if outcome is not None:
                    self._output.act(outcome)
            except Exception as error:  # as above
                self._fail(str(error) or type(error).__name__)
            try:
                if beat:
                    self._output.heartbeat()
                    self._beats_fail = ""
            except Exception as error:  # as above
                self._beats_fail = f"no heartbeat: {error}"

    def _fail(self, reason: str) -> None:
        if not self._missed:
            log.warning("an output misses outcomes", output=self._kind, reason=reason)
        self._missed += 1
        self._reason = reason
        self._failures.inc()
