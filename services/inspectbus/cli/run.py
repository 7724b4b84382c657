"""`inspectbus run`: the whole line in one process, from images to scores.

    data ─> split ─┬─ train part ──> a model version, unless one of these images is there already
                   └─ held-out part ─> two lines of two stations ─> ledger ─> report

The command uses the services' doors like any other client, so what it shows is what the plant would see.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from inspectbus.cli.live import follow_stations
from inspectbus.cli.printing import console as results_console
from inspectbus.cli.report import Tally, print_report, report
from inspectbus.cli.training import train_and_watch
from inspectbus.domain.model_version import PRODUCTION
from inspectbus.domain.names import name_from
from inspectbus.domain.recipe import Recipe
from inspectbus_client import Client, Model, RecipeVersion, Station, StationState

if TYPE_CHECKING:
    from inspectbus.stores.datasets import Dataset

ELPV = "elpv"
STATIONS = (("line-1", "top"), ("line-1", "side"), ("line-2", "top"), ("line-2", "side"))
RECIPE = "default"
ELPV_NOTE = (
    "the data set does not say which cells come from one solar module, so cells of one module stand on both sides of "
    "this split: expect somewhat lower scores on new modules"
)

EXAMPLES = """
Examples:

    inspectbus run --frames 400                       solar cells, 400 frames over four stations

    inspectbus run --data ./parts --frames 1000       ./parts/good and ./parts/defective

    inspectbus run --data ./incoming                  unlabelled images, judged by the present model

    inspectbus run --fps 0 --report out.json          as fast as the machine goes, figures as JSON
"""


class _Interrupted(Exception):
    """Told to stop before the stations had ended."""


@dataclass(frozen=True)
class Replay:
    """What is to be replayed, and what its model may learn from."""

    spec: str
    name: str
    train: Dataset | None
    """None for images without labels: they are judged by the present model."""
    images: Dataset
    """The part the model never saw."""


def run(
    frames: Annotated[int, typer.Option(min=1, help="Frames to inspect, over all stations.")] = 400,
    fps: Annotated[float, typer.Option(min=0, help="Frames per second of each station; 0 is as fast as it goes.")] = 5,
    data: Annotated[str, typer.Option(help="'elpv', two class folders, or a folder of unlabelled images.")] = "elpv",
    state: Annotated[Path, typer.Option(help="Folder for ledger, models and evidence.")] = Path(".inspectbus"),
    report_file: Annotated[Path | None, typer.Option("--report", help="Write the figures here as JSON.")] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs when a model is trained; 0 is the default.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the training.")] = None,
    retrain: Annotated[bool, typer.Option(help="Train even when there is a model of these images.")] = False,
) -> None:
    """Train once, then inspect a replayed test part on two lines of two stations, live."""
    from inspectbus.line import open_inspection, open_records, sole_owner, wait_for_engine
    from inspectbus.runtime.signals import stop_on_signals

    console = results_console()
    with stop_on_signals() as stop, sole_owner(state):
        replay = _replay_of(data)
        root = Path() if data == ELPV else Path(data).resolve()
        with open_records(state, root) as records:
            with Client.connect(records) as client:
                model = _model_for(console, client, replay, epochs, seed, retrain, stop)
            with (
                open_inspection(records, state, model.name, _lines(replay, frames, fps)) as addresses,
                Client.connect(addresses) as client,
            ):
                _give_recipe(console, client, replay, model)
                wait_for_engine(client, stop)
                begun = time.monotonic()
                with suppress(_Interrupted):
                    _replay(console, client, replay, frames, state, stop)
                summary = _report(console, client, replay, state, time.monotonic() - begun)
    if report_file:
        report_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        console.print(f"report: {report_file}")
    if stop.is_set():
        console.print("interrupted: the same command goes on where this one stopped")
        raise typer.Exit(130)
    raise typer.Exit(1 if summary["lost"] or summary["failed_stations"] else 0)


def _replay_of(spec: str) -> Replay:
    from inspectbus.stores.datasets import open_dataset, split

    dataset = open_dataset(spec)
    if not dataset.labelled:
        return Replay(spec, dataset.name, None, dataset)
    parts = split(dataset)
    return Replay(spec, dataset.name, parts.train, parts.held_out)


def _lines(replay: Replay, frames: int, fps: float) -> list[dict[str, Any]]:
    """The four stations: each takes every fourth image, and its share of the frames."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for number, (line, station) in enumerate(STATIONS):
        share = frames // len(STATIONS) + (number < frames % len(STATIONS))
        source = {"kind": "dataset", "data": replay.spec, "offset": number, "stride": len(STATIONS)}
        lines.setdefault(line, []).append(
            {"name": station, "recipe": RECIPE, "fps": fps, "frames": share, "source": source, "autostart": False}
        )
    return [{"name": line, "stations": stations} for line, stations in lines.items()]


def _model_for(
    console: Console,
    client: Client,
    replay: Replay,
    epochs: int,
    seed: int | None,
    retrain: bool,
    stop: threading.Event,
) -> Model:
    """The production version made of just these images, trained first when there is none.

    For images without labels: the newest production version there is.
    """
    from inspectbus.line import newest_in_production

    if replay.train is None:
        return newest_in_production(client)
    name = name_from(replay.name)
    if not retrain:
        from inspectbus.stores.datasets import fingerprint

        sha256 = fingerprint(replay.train.items)
        for model in client.models(name):
            if PRODUCTION in model.aliases and model.card["data"]["sha256"] == sha256:
                console.print(f"model {model.name}/{model.version} was trained on these images; nothing to train")
                return model
    return train_and_watch(console, client, data=replay.spec, model=name, epochs=epochs, seed=seed, stop=stop)


def _give_recipe(console: Console, client: Client, replay: Replay, model: Model) -> None:
    """The demo recipe: no geometry, this model, and quality limits from the images it learnt from."""
    if replay.train is None or any(recipe.name == RECIPE and _asks_for(recipe, model) for recipe in client.recipes()):
        return
    from inspectbus.imaging.decoding import decode
    from inspectbus.imaging.quality import limits_from, measure

    with console.status("measuring the training images, for the recipe's quality limits"):
        limits = limits_from(measure(decode(item.read())) for item in replay.train.items)
    recipe = Recipe(name=RECIPE, description=f"made for {replay.name}", model=model.name, quality=limits)
    stored = client.put_recipe(recipe.to_yaml())
    console.print(f"recipe {RECIPE} version {stored.recipe.version}: {limits.model_dump(exclude_none=True)}")


def _asks_for(recipe: RecipeVersion, model: Model) -> bool:
    return Recipe.from_yaml(recipe.yaml).model == model.name


def _replay(console: Console, client: Client, replay: Replay, frames: int, state: Path, stop: threading.Event) -> None:
    with _run_marker(state, replay, frames, client) as before:
        for station in _stations(client):
            # Finished in this very run, before it was interrupted: starting it would begin another.
            done = station.state is StationState.FINISHED and station.run_id != before.get(_name(station))
            if not done and not stop.is_set():
                client.start_station(station.line, station.station)
        follow_stations(console, frames, client, lambda: _stations(client), stop)
        if stop.is_set():
            console.print("stopping: frames in hand are finished first")
            for line, station_name in STATIONS:
                client.stop_station(line, station_name)
            raise _Interrupted


@contextmanager
def _run_marker(state: Path, replay: Replay, frames: int, client: Client) -> Iterator[dict[str, str]]:
    """Yields each station's run before this one. The marker outlives an interruption, so the run that goes on knows
    which stations had finished in it and which have yet to begin."""
    marker = state / "run.json"
    plan = {"data": replay.spec, "frames": frames}
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        known = found["plan"] == plan
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        found = {"plan": plan, "before": {_name(each): each.run_id for each in _stations(client)}}
        part = marker.with_suffix(".part")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(marker)
    before: dict[str, str] = found["before"]
    yield before
    marker.unlink(missing_ok=True)


def _stations(client: Client) -> list[Station]:
    """The run's own; the service has one more, for inspections."""
    return [station for station in client.stations() if (station.line, station.station) in STATIONS]


def _name(station: Station) -> str:
    return f"{station.line}/{station.station}"


def _report(console: Console, client: Client, replay: Replay, state: Path, seconds: float) -> dict[str, Any]:
    stations = _stations(client)
    tally, lines = Tally(), {line: Tally() for line, _ in STATIONS}
    for station in stations:
        for record in client.decisions(run_id=station.run_id) if station.run_id else ():
            tally.add(record)
            lines[station.line].add(record)
    failed = [station for station in stations if station.state is StationState.FAILED]
    notes = [ELPV_NOTE] if replay.spec == ELPV else []
    facts = {
        "model": ", ".join(sorted(tally.versions)),
        "data": replay.spec,
        "images": len(replay.images.items),
        "split": replay.images.words,
        "notes": notes,
        "seconds": round(seconds, 3),
        "unreadable": sum(station.unreadable for station in stations),
        "failed_stations": {_name(each): each.detail for each in failed},
        "run_ids": {_name(each): each.run_id for each in stations},
        "ledger": str(state / "inspectbus.db"),
        "evidence": str(state / "frames"),
        "models": str(state / "models"),
    }
    summary = report(tally, lines, sum(station.accepted for station in stations), facts)
    print_report(console, tally, lines, summary)
    console.print(f"images: {replay.images.words}")
    for note in notes:
        console.print(f"note: {note}")
    for each in failed:
        console.print(f"[red]station {_name(each)} failed:[/red] {each.detail}")
    console.print(f"records: {facts['ledger']}   evidence: {facts['evidence']}   model: {facts['model']}")
    return summary
