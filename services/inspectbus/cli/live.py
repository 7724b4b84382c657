"""What a person sees while stations run: a table per station, and a bar to the end.

WatchDecisions ─ thread ─> Board ─┐
ListStations ─────────────────────┴─> table, four times a second; plain lines where there is no terminal
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from inspectbus.cli.report import Tally, percentile
from inspectbus.errors import InspectBusError
from inspectbus_client import Client, Record, Station, StationState, Watch

RATE_WINDOW_S = 5.0
"""Frames per second are counted over this long."""


class Board:
    """Tallies of the decisions seen so far, by (line, station). Filled by its own thread until closed."""

    def __init__(self, client: Client) -> None:
        self._watched = client.watch_decisions()
        self._lock = threading.Lock()
        self._tallies: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        self._recent: defaultdict[tuple[str, str], deque[float]] = defaultdict(deque)
        self._thread = threading.Thread(target=self._watch, name="live-table", daemon=True)

    def __enter__(self) -> Board:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watched.close()
        self._thread.join(timeout=5)

    def table(self, stations: Sequence[Station]) -> Table:
        table = Table(title_justify="left")
        for column, justify in (
            ("station", "left"),
            ("state", "left"),
            ("frames", "right"),
            ("frames/s", "right"),
            ("qualified", "right"),
            ("defective", "right"),
            ("hold", "right"),
            ("p50 ms", "right"),
            ("p99 ms", "right"),
            ("holds by reason", "left"),
        ):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        with self._lock:
            for station in stations:
                table.add_row(*self._row(station))
        return table

    def _row(self, station: Station) -> list[str]:
        key = (station.line, station.station)
        tally = self._tallies[key]
        recent = self._recent[key]
        while recent and recent[0] < time.monotonic() - RATE_WINDOW_S:
            recent.popleft()
        latencies = [percentile(tally.latencies_ms, share) for share in (0.5, 0.99)]
        holds = ", ".join(f"{reason} {count}" for reason, count in sorted(tally.holds.items()))
        return [
            f"{station.line}/{station.station}",
            station.state.lower() + (f": {station.detail}" if station.detail else ""),
            str(tally.recorded),
            f"{len(recent) / RATE_WINDOW_S:.1f}",
            *(str(tally.verdicts[verdict]) for verdict in ("qualified", "defective", "hold")),
            *("–" if latency is None else f"{latency:.0f}" for latency in latencies),
            holds,
        ]

    def _watch(self) -> None:
        try:
            for record in self._watched:
                self._add(record)
        except InspectBusError:
            # The table is a convenience: the report at the end reads the ledger, not this thread.
            return

    def _add(self, record: Record) -> None:
        key = (record.decision.line, record.decision.station)
        with self._lock:
            self._tallies[key].add(record)
            self._recent[key].append(time.monotonic())


def follow_stations(
    console: Console,
    total: int,
    client: Client,
    wanted: Callable[[], Sequence[Station]],
    stop: threading.Event,
) -> None:
    """Shows the stations until all have ended, with nothing left on their disks, or `stop` is set."""
    progress = _bar()
    task = progress.add_task("inspecting", total=total)
    with Board(client) as board, _screen(console) as show:
        while True:
            stations = wanted()
            done = sum(station.accepted + station.unreadable for station in stations)
            progress.update(task, completed=done)
            show(done, total, Group(board.table(stations), progress))
            ended = all(
                station.state in (StationState.FINISHED, StationState.FAILED) and not station.spooled
                for station in stations
            )
            if ended or stop.wait(0.25):
                return


@contextmanager
def stage_bar(console: Console) -> Iterator[Callable[[str, float, int, str], None]]:
    """A bar for work in stages: call it with stage, done (parts of a step too), total and a few words of figures."""
    progress = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )
    tasks: dict[str, TaskID] = {}
    with progress:

        def update(stage: str, done: float, total: int, figures: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total or None, figures="")
                if not console.is_terminal:
                    console.print(f"{stage} …")
            progress.update(tasks[stage], completed=done, total=total or None, figures=figures)

        yield update


@contextmanager
def ended_by(stop: threading.Event, watch: Watch[Any]) -> Iterator[None]:
    """Closes the watch when `stop` is set, so that whoever reads it comes back."""
    left = threading.Event()

    def wait() -> None:
        while not left.wait(0.1):
            if stop.is_set():
                watch.close()
                return

    thread = threading.Thread(target=wait, name="watch-stopper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join(timeout=5)


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@contextmanager
def _screen(console: Console) -> Iterator[Callable[[int, int, RenderableType], None]]:
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda _done, _total, picture: live.update(picture)
        return
    said = -1

    def say(done: int, total: int, _picture: RenderableType) -> None:
        nonlocal said
        tenth = 10 * done // max(total, 1)
        if tenth != said:
            said = tenth
            console.print(f"{done} of {total} frames accepted")

    yield say
