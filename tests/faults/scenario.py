"""One fault and what it cost: a line of processes takes parts while something goes wrong, and the ledger is asked.

    two cameras (folders at a rate) ─┐
                                     ├─> line of processes ─> ledger ─> Figures: all that must hold
    a computer that pushes frames ───┘         ^
                                               └── the scenario's fault

recorded = accepted, lost = 0, double = 0, one gate outcome each, and every outcome that disagrees with its decision
came late.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from inspectbus.errors import InspectBusError
from inspectbus_client import Shot, Station
from tests.doubles.line_processes import LINE, LineProcesses
from tests.doubles.marked_parts import name, picture, write_parts
from tests.doubles.records import Records

SHORT_PATIENCE = "quarantine_s=3&retry_delay_s=0.2&reconnect_s=1&heartbeat_s=4&confirm_s=5"
"""Options of a scenario's bus: faults show, and are over, sooner."""
CAMERAS = ("top", "side")
PUSHED = "hand"
PARTS = 40
"""Different pictures; cameras begin again when they have shown them all."""

SIZES = pytest.mark.parametrize(
    "frames", [pytest.param(200, id="200"), pytest.param(2000, id="2000", marks=pytest.mark.soak)]
)
"""Every scenario is a test with 200 frames, and a soak with 2000."""


@dataclass(frozen=True)
class Figures:
    """What a scenario ended with."""

    scenario: str
    frames: int
    accepted: int
    recorded: int
    lost: int
    double: int
    outcomes: int
    late: int
    disobeyed: int
    """Outcomes that disagree with their decision and are not marked late."""
    held: int
    duplicates: int
    seconds: float


TOLD: list[Figures] = []
"""Of all scenarios of this session; conftest.py prints them."""


class Scenario:
    """Use as a context around the fault; `finish` waits for the end, and fails the test unless all promises held."""

    def __init__(
        self,
        title: str,
        frames: int,
        folder: Path,
        bus_url: str,
        database_url: str,
        *,
        fps: float = 0.0,
        poison: Sequence[bytes] = (),
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        replicas: Mapping[str, int] | None = None,
        station: Mapping[str, Any] | None = None,
        camera_bus_url: str = "",
    ) -> None:
        """`fps` is each camera's rate; unless told, cameras take 13 s for 200 frames and 36 s for 2000. `poison` are
        images the pushing computer mixes into its own, `station` further settings of every station."""
        fps = fps or max(6.0, frames / 90)
        self._title = title
        self._frames = frames
        self._database_url = database_url
        share = 2 * frames // 5
        self._by_camera = share
        write_parts(folder / "parts", PARTS)
        source = {"kind": "folder", "path": folder / "parts"}
        cameras = [
            {"name": camera, "fps": fps, "frames": share, "source": source, **(station or {})} for camera in CAMERAS
        ]
        pushed = {"name": PUSHED, "source": {"kind": "push"}, **(station or {})}
        self.line = LineProcesses(
            folder / "line",
            bus_url,
            database_url,
            [*cameras, pushed],
            replicas=replicas,
            settings=settings,
            acquisition_bus_url=camera_bus_url,
        )
        images = [(name(number, number % 4 == 3), picture(number, number % 4 == 3)) for number in range(PARTS)]
        left = frames - 2 * share
        self._shots = [self._shot(*images[number % PARTS]) for number in range(left - len(poison))]
        gap = max(1, len(self._shots) // (len(poison) + 1))
        for number, image in enumerate(poison):
            self._shots.insert((number + 1) * gap + number, self._shot(f"poison-{number}", image))
        self._accepted: set[str] = set()
        self._over = threading.Event()
        self._pusher = threading.Thread(target=self._push, args=(fps,), name="pusher", daemon=True)
        self._house = ExitStack()
        self._begun_s = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as house:
            house.enter_context(self.line)
            self._begun_s = time.monotonic()
            house.callback(self._stop)
            self._pusher.start()
            self._house = house.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._house.close()

    def records(self) -> Records:
        return Records.read(self._database_url)

    def stations(self) -> list[Station]:
        """As acquisition's door tells them; none while it is away."""
        try:
            with self.line.client() as client:
                return client.stations()
        except InspectBusError:
            return []

    def await_spooled(self, patience_s: float = 60.0) -> None:
        """Until some station keeps frames on its disk."""
        deadline_s = time.monotonic() + patience_s
        pause = threading.Event()
        while not any(station.spooled for station in self.stations()):
            assert time.monotonic() < deadline_s, "no station has spooled a frame: the fault did not bite"
            pause.wait(0.1)

    def await_drained(self, patience_s: float = 20.0) -> None:
        """Until the bus has confirmed all that was on disk: a decision may be faster than its frame's confirm."""
        deadline_s = time.monotonic() + patience_s
        pause = threading.Event()
        while not (stations := self.stations()) or any(station.spooled for station in stations):
            assert time.monotonic() < deadline_s, "some frames stay on disk"
            pause.wait(0.1)

    def await_logged(self, name: str, event: str, patience_s: float = 60.0) -> None:
        """Until a process has said so, in this life."""
        self.line[name].await_event(event, patience_s)

    def await_recorded(self, share: float, patience_s: float = 120.0) -> Records:
        """Until this share of all frames has a decision."""
        return self._await(lambda records: len(records.decisions) >= share * self._frames, patience_s)

    @contextmanager
    def flows_again(self, within_s: float = 10.0) -> Iterator[None]:
        """The fault ends inside; so long after it, at most, something is decided."""
        decided = len(self.records().decisions)
        yield
        ended_s = time.monotonic()
        self._await(lambda records: len(records.decisions) > decided, within_s)
        print(f"{self._title}: flows again after {time.monotonic() - ended_s:.1f} s")  # noqa: T201

    def finish(self, patience_s: float = 180.0) -> Figures:
        """Waits until every part was taken, decided and acted on, at most so long, and checks the promises."""
        records = self._await(self._complete, patience_s, fails=False)
        figures = self._figures(records)
        TOLD.append(figures)
        print(asdict(figures))  # noqa: T201
        assert not self._missing(records), f"cameras' frames without a decision: {self._missing(records)}"
        assert len(self._accepted) == len(self._shots), "the pushing computer got no answer for some frames"
        assert figures.recorded == figures.accepted
        assert figures.lost == 0
        assert figures.double == 0
        assert figures.outcomes == figures.accepted
        assert figures.disobeyed == 0
        return figures

    def _figures(self, records: Records) -> Figures:
        accepted = len(self._accepted) + 2 * self._by_camera
        missing = sum(len(places) for places in self._missing(records).values())
        return Figures(
            scenario=self._title,
            frames=self._frames,
            accepted=accepted,
            recorded=len(records.decisions),
            lost=missing + len(records.lost(self._accepted)),
            double=len(records.twice()),
            outcomes=len(records.outcomes),
            late=len(records.late()),
            disobeyed=len(records.disobeyed()),
            held=len(records.held_ids()),
            duplicates=records.duplicates,
            seconds=round(time.monotonic() - self._begun_s, 1),
        )

    def _missing(self, records: Records) -> dict[str, set[int]]:
        found = {camera: records.missing(camera, self._by_camera) for camera in CAMERAS}
        return {camera: places for camera, places in found.items() if places}

    def _complete(self, records: Records) -> bool:
        return (
            len(self._accepted) == len(self._shots)
            and not self._missing(records)
            and not records.lost(self._accepted)
            and not records.without_outcome()
        )

    def _await(self, enough: Callable[[Records], bool], patience_s: float, *, fails: bool = True) -> Records:
        deadline_s = time.monotonic() + patience_s
        pause = threading.Event()
        records = Records({}, {}, 0, 0)
        while time.monotonic() < deadline_s:
            try:
                records = self.records()
            except Exception as error:
                print("the ledger cannot be read now:", type(error).__name__)  # noqa: T201
            else:
                if enough(records):
                    return records
            pause.wait(0.2)
        if fails:
            raise AssertionError(f"{len(records.decisions)} decisions after {patience_s:.0f} s are not enough")
        return records

    @staticmethod
    def _shot(item: str, image: bytes) -> Shot:
        return Shot(image, frame_id=str(uuid.uuid4()), source_item=item)

    def _push(self, fps: float) -> None:
        """As a plant's computer would: sends again, under the same id, what was not accepted."""
        open_shots = {shot.frame_id: shot for shot in self._shots}
        while open_shots and not self._over.is_set():
            try:
                with self.line.client() as client:
                    paced = self._paced(list(open_shots.values()), fps)
                    for answer in client.publish_frames(paced, line=LINE, station=PUSHED, patience_s=20):
                        if answer.error is None:
                            self._accepted.add(answer.shot.frame_id)
                            del open_shots[answer.shot.frame_id]
            except InspectBusError:
                pass  # the service is away; what it did not answer is sent again
            self._over.wait(0.3)

    def _paced(self, shots: Sequence[Shot], fps: float) -> Any:
        for shot in shots:
            if self._over.wait(1 / fps):
                return
            yield shot

    def _stop(self) -> None:
        self._over.set()
        self._pusher.join(30)
