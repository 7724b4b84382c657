"""A station: one camera position, read by a replay of its source or fed by pushed frames.

stopped ── start ──> running ──> finished      the source has been read to its end
   ^                    │  └───> failed        start tries again
   └────── stop ────────┘
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial

import structlog

from inspectbus.acquisition.claims import Claims
from inspectbus.acquisition.cursor import Journal, Mark
from inspectbus.acquisition.gate import Gate
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.outlet import Outlet
from inspectbus.acquisition.replay import FAILED, FINISHED, LISTENING, STATES, STOPPED, Replay, new_run_id
from inspectbus.acquisition.settings import AcquisitionSettings, StationSettings
from inspectbus.api.v1 import acquisition_pb2, frame_pb2
from inspectbus.bus import Bus, Message
from inspectbus.domain.frame import frame_id
from inspectbus.errors import BadField, NotPossibleNow

log = structlog.get_logger(__name__)

OPENING_PATIENCE_S = 10.0
"""How long StartStation waits to say whether the source opened; a slower one shows its state later."""


class Station:
    """Thread-safe, and a context: entering gives the parts a former life left at the gate their outcome, and sends the
    frames it left on disk."""

    def __init__(
        self,
        line: str,
        station: StationSettings,
        settings: AcquisitionSettings,
        bus: Bus,
        claims: Claims,
        metrics: AcquisitionMetrics,
        on_decision: Callable[[Message], None],
    ) -> None:
        """`on_decision` hears the news of decisions on the station's frames."""
        self.line = line
        self.name = station.name
        self._station = station
        self._settings = settings
        self._metrics = metrics
        # Neither name can hold a dot, so two stations never share a folder.
        folder = settings.state_dir / "acquisition" / "gate" / f"{line}.{station.name}"
        self.gate = Gate(line, station.name, station.gate, folder, bus, metrics, also=on_decision)
        self._outlet = Outlet(bus, line, station, settings, metrics, self.gate, claims)
        self._journal = Journal(settings.state_dir / "acquisition", line, station.name)
        # Pushed frames share one run per life of the service: nobody could resume them but their sender.
        self._push_run_id = new_run_id()
        self._pushed = itertools.count()
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._replay: Replay | None = None
        self._last_run, self._last_trouble = self._read_journal()
        for state in STATES:
            word = acquisition_pb2.StationState.Name(state).removeprefix("STATION_STATE_").lower()
            metrics.station_state.labels(line, station.name, word).set_function(partial(self._is, state))

    def __enter__(self) -> Station:
        with ExitStack() as opening:
            opening.callback(self.gate.close, 0)
            self.gate.open()
            opening.enter_context(self._outlet)
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def takes_pushes(self) -> bool:
        return self._station.source.kind == "push"

    @property
    def starts_itself(self) -> bool:
        """Its run is unfinished, or it has none yet; repeating a finished run is somebody's decision."""
        finished = self._last_run is not None and self._last_run.finished
        return self._station.autostart and not self.takes_pushes and not finished

    def start(self) -> None:
        """Running already: no change. Raises NotPossibleNow when the station has no source or is still stopping."""
        if self.takes_pushes:
            raise NotPossibleNow(f"{self} takes pushed frames and has no source to start", field="station")
        with self._lock:
            if self._replay is not None and not self._replay.ended(0):
                if self._replay.stopping:
                    raise NotPossibleNow(f"{self} is still stopping: try again in a moment", field="station")
                return
            self._replay = Replay(self._station, self._settings, self._outlet, self._journal, self._metrics)
            self._replay.start()

    def confirm_started(self) -> None:
        """Waits until the source is open. Raises NotPossibleNow with the reason when it cannot be."""
        if self._replay is not None:
            self._replay.opened(OPENING_PATIENCE_S)
        status = self.status()
        if status.state == FAILED:
            raise NotPossibleNow(f"{self} did not start: {status.detail}", field="station")

    def ask_to_stop(self) -> None:
        if self._replay is not None:
            self._replay.ask_to_stop()

    def stopped(self, patience_s: float) -> bool:
        """Waits until nothing of the station is in flight, at most patience_s; False when something still is."""
        if self._replay is not None and not self._replay.ended(patience_s):
            return False
        return self._outlet.drain(patience_s)

    def stop_draining(self) -> None:
        """What is on disk stays there for the next start."""
        self._outlet.stop_draining()

    def rescue(self) -> None:
        """Puts on disk what the bus has not confirmed, where the station spools."""
        self._outlet.rescue()

    @property
    def state(self) -> acquisition_pb2.StationState.ValueType:
        if self.takes_pushes:
            return LISTENING
        if self._replay is not None:
            return self._replay.state
        return FINISHED if self._last_run is not None and self._last_run.finished else STOPPED

    def _is(self, state: acquisition_pb2.StationState.ValueType) -> float:
        return float(self.state == state)

    def status(self) -> acquisition_pb2.Station:
        status = acquisition_pb2.Station(
            line=self.line,
            station=self.name,
            recipe=self._station.recipe,
            source=self._station.source.kind,
            state=self.state,
            in_flight=self._outlet.in_flight,
            fps=self._station.fps,
        )
        if self._outlet.last_frame_s:
            status.last_frame_at.FromNanoseconds(int(self._outlet.last_frame_s * 1e9))
        if self.takes_pushes:
            status.run_id = self._push_run_id
            status.accepted = self._outlet.accepted
        elif self._replay is not None:
            self._replay.describe(status)
        else:
            status.detail = self._last_trouble
            if self._last_run is not None:
                status.run_id = self._last_run.run_id
                status.accepted = self._last_run.next - self._last_run.unreadable
                status.unreadable = self._last_run.unreadable
        troubles = (status.detail, self._outlet.trouble, self.gate.trouble)
        status.detail = "; ".join(words for words in troubles if words)
        self._describe_spool(status)
        self.gate.describe(status)
        return status

    def frame(self, shot: acquisition_pb2.Shot, recipe: str = "") -> frame_pb2.Frame:
        """The frame of a sender's image, which has been checked: its own id or a new one, our recipe unless it asks."""
        sequence = next(self._pushed)
        made_id = frame_id(self.line, self.name, self._push_run_id, shot.source_item, sequence)
        frame = frame_pb2.Frame(
            frame_id=shot.frame_id or made_id,
            line=self.line,
            station=self.name,
            run_id=self._push_run_id,
            source_item=shot.source_item,
            sequence=sequence,
            part_id=shot.part_id,
            lot_id=shot.lot_id,
            product=shot.product,
            recipe=recipe or self._station.recipe,
            image=shot.image,
            truth=shot.truth,
        )
        if shot.HasField("captured_at"):
            frame.captured_at.CopyFrom(shot.captured_at)
        else:
            frame.captured_at.GetCurrentTime()
        return frame

    def publish(self, frame: frame_pb2.Frame, *, may_spool: bool = True) -> Future[None]:
        """Done when the frame is accepted; see Outlet.publish for how long it blocks and what it raises."""
        return self._outlet.publish(frame, may_spool=may_spool)

    def __str__(self) -> str:
        return f"station {self.line}/{self.name}"

    def _describe_spool(self, status: acquisition_pb2.Station) -> None:
        spool = self._outlet.spool
        if spool is None:
            return
        status.spooled = spool.frames
        status.spooled_bytes = spool.held_bytes
        status.dropped = spool.dropped
        behind_s = spool.behind_s
        if behind_s is not None:
            status.behind.FromNanoseconds(int(behind_s * 1e9))

    def _read_journal(self) -> tuple[Mark | None, str]:
        """The last run, when it followed today's plan, and what is wrong with the journal."""
        if self.takes_pushes:
            return None, ""
        try:
            mark = self._journal.read()
        except BadField as error:
            log.warning("cursor unreadable", line=self.line, station=self.name, detail=error.message)
            return None, error.message
        return (mark, "") if mark is not None and mark.plan == self._station.plan else (None, "")
