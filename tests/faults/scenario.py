"""One fault and what it cost: a line of processes takes parts while something goes wrong, and the ledger is asked.

    two cameras (folders at a rate) ─┐
                                     ├─> line of processes ─> ledger ─> Figures: all that must hold
    a computer that pushes frames ───┘         ^
                                               └── the scenario's fault

recorded = accepted, lost = 0 (but for what a station was told to drop, and counts), double = 0, one gate outcome each,
and every outcome that disagrees with its decision came late.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from inspectbus.errors import InspectBusError
from inspectbus_client import Decision, Shot, Station, StationState
from tests.doubles.line_processes import LINE, LineProcesses
from tests.doubles.marked_parts import name, picture, write_parts
from tests.doubles.records import Records

SHORT_PATIENCE = "quarantine_s=3&retry_delay_s=0.2&reconnect_s=1&heartbeat_s=4&confirm_s=5"
"""Options of a scenario's bus: faults show, and are over, sooner."""
CAMERAS = ("top", "side")
PUSHED = "hand"
QUIET_S = 2.0
"""Without a new record, nothing is on its way."""
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
    dropped: int
    """Accepted frames that stations have given up, by their own count."""
    duplicates: int
    seconds: float


TOLD: list[Figures] = []
"""Of all scenarios of this session; conftest.py prints them."""


Found = TypeVar("Found")


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
        self._numbers = range((replicas or {}).get("acquisition", 1))
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
        self._inspected: set[str] = set()
        self.refusals: Counter[str] = Counter()
        """What the pushing computer heard of frames that were not accepted, before it sent them again."""
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
            return [station for number in self._numbers for station in self.stations_of(number)]
        except InspectBusError:
            return []

    def stations_of(self, number: int) -> list[Station]:
        """Of acquisition's process of that number. Raises Unreachable."""
        with self.line.client(number) as client:
            return client.stations()

    def inspect(self, number: int = 0) -> Decision:
        """One more frame, by the door of acquisition's process of that number."""
        with self.line.client(number) as client:
            decision = client.inspect(picture(PARTS + len(self._inspected), bright=True))
        self._inspected.add(decision.frame_id)
        return decision

    def account_for(self, frame_ids: Collection[str]) -> None:
        """Further frames that acquisition has answered, whoever sent them."""
        self._inspected.update(frame_ids)

    def await_station(self, condition: Callable[[Station], bool], patience_s: float = 60.0) -> Station:
        """The first station of which it is true."""
        return self._until(lambda: next(filter(condition, self.stations()), None), patience_s)

    def await_spooled(self, patience_s: float = 60.0) -> None:
        """Until some station keeps frames on its disk."""
        self.await_station(lambda station: station.spooled > 0, patience_s)

    def await_refusal(self, words: str, patience_s: float = 60.0) -> str:
        """Until the pushing computer has heard them."""
        return self._until(lambda: next((told for told in list(self.refusals) if words in told), None), patience_s)

    def await_accepted(self, patience_s: float = 120.0) -> None:
        """Until every camera is at its end, and the pushing computer too."""
        self._until(lambda: self._accepts_no_more() or None, patience_s)

    def await_all_but(self, camera: str, patience_s: float = 120.0) -> Records:
        """Until everybody else's frames are decided and acted on."""
        return self._await(lambda records: self._decided_but(records, camera), patience_s)

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

    def finish(self, patience_s: float = 180.0, *, drops: bool = False) -> Figures:
        """Waits until every part was taken, decided and acted on, at most so long, and checks the promises.

        With `drops` stations were told to give up their oldest frames when they must: as many are lost as they say.
        """
        records = self._await(self._gone_or_decided if drops else self._decided, patience_s, fails=False)
        figures = self._figures(records)
        TOLD.append(figures)
        print(asdict(figures))  # noqa: T201
        assert len(self._accepted) == len(self._shots), "the pushing computer got no answer for some frames"
        assert figures.recorded == figures.accepted - figures.lost
        if drops:
            # What is given up on the disk may arrive all the same: for each station the frame it is just sending from
            # there, and one the broker took as it died.
            assert figures.lost <= figures.dropped <= figures.lost + 2 * (len(CAMERAS) + 1)
        else:
            assert not self._missing(records), f"cameras' frames without a decision: {self._missing(records)}"
            assert figures.lost == figures.dropped == 0
        assert figures.double == 0
        assert figures.outcomes == figures.accepted
        assert figures.disobeyed == 0
        return figures

    def _figures(self, records: Records) -> Figures:
        return Figures(
            scenario=self._title,
            frames=self._frames,
            accepted=self._all_accepted,
            recorded=len(records.decisions),
            lost=self._lost(records),
            double=len(records.twice()),
            outcomes=len(records.outcomes),
            late=len(records.late()),
            disobeyed=len(records.disobeyed()),
            held=len(records.held_ids()),
            dropped=sum(station.dropped for station in self.stations()),
            duplicates=records.duplicates,
            seconds=round(time.monotonic() - self._begun_s, 1),
        )

    @property
    def _all_accepted(self) -> int:
        """When the cameras have come to their end."""
        return len(self._accepted) + len(self._inspected) + 2 * self._by_camera

    def _lost(self, records: Records) -> int:
        missing = sum(len(places) for places in self._missing(records).values())
        return missing + len(records.lost(self._accepted | self._inspected))

    def _missing(self, records: Records) -> dict[str, set[int]]:
        found = {camera: records.missing(camera, self._by_camera) for camera in CAMERAS}
        return {camera: places for camera, places in found.items() if places}

    def _decided(self, records: Records) -> bool:
        pushed = len(self._accepted) == len(self._shots)
        return pushed and not self._lost(records) and not records.without_outcome()

    def _accepts_no_more(self) -> bool:
        ended = {station.station for station in self.stations() if station.state is StationState.FINISHED}
        return set(CAMERAS) <= ended and len(self._accepted) == len(self._shots)

    def _decided_but(self, records: Records, camera: str) -> bool:
        pushed = len(self._accepted) == len(self._shots)
        acted = {records.decisions[frame_id].station for frame_id in records.without_outcome()} <= {camera}
        return pushed and acted and not self._missing(records).keys() - {camera} and not records.lost(self._accepted)

    def _gone_or_decided(self, records: Records) -> bool:
        """No frame is still to be taken, none rests on a disk, and none is on its way."""
        if not self._accepts_no_more() or len(records.outcomes) < self._all_accepted:
            return False
        stations = self.stations()
        if not stations or any(station.spooled for station in stations):
            return False
        if self._lost(records) > sum(station.dropped for station in stations):
            return False
        threading.Event().wait(QUIET_S)
        return len(self.records().decisions) == len(records.decisions)

    @staticmethod
    def _until(look: Callable[[], Found | None], patience_s: float) -> Found:
        deadline_s = time.monotonic() + patience_s
        pause = threading.Event()
        while (found := look()) is None:
            assert time.monotonic() < deadline_s, f"not within {patience_s:.0f} s: the fault did not bite"
            pause.wait(0.1)
        return found

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
                        if answer.error is not None:
                            self.refusals[str(answer.error)] += 1
                        else:
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
