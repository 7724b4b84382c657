"""A replay: the whole line in one process, from images to scores.

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
from typing import Any

from rich.console import Console

from inspectbus.api.v1.prepared_frame_pb2 import QualityReport
from inspectbus.cli.live import follow_stations
from inspectbus.cli.report import Tally, print_report, report
from inspectbus.cli.training import own_data, training_door, watched
from inspectbus.domain.model_version import PRODUCTION
from inspectbus.domain.names import name_from
from inspectbus.domain.recipe import Recipe
from inspectbus.errors import BadField
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.quality import limits_from, measure
from inspectbus.line import (
    DEFAULT_RECIPE,
    make_recipe,
    newest_in_production,
    open_inspection,
    open_records,
    sole_owner,
    unmeasured_recipe,
    wait_for_engine,
)
from inspectbus.stores.datasets import ELPV, Dataset, fingerprint, open_dataset, split
from inspectbus_client import Client, Model, Station, StationState

STATIONS = (("line-1", "top"), ("line-1", "side"), ("line-2", "top"), ("line-2", "side"))
ELPV_NOTE = (
    "the data set does not say which cells come from one solar module, so cells of one module stand on both sides of "
    "this split: expect somewhat lower scores on new modules"
)


class _Interrupted(Exception):
    """Told to stop before the stations had ended."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    data: str
    """'elpv', or a folder's whole path."""
    frames: int
    """Over all stations."""
    fps: float
    """Of each station; 0 is as fast as it goes."""
    state: Path
    epochs: int
    """0 leaves it to the service."""
    seed: int | None
    retrain: bool


@dataclass(frozen=True)
class Material:
    """The images there are, and what a model may learn from."""

    spec: str
    name: str
    train: Dataset | None
    """None for images without labels: they are judged by the present model."""
    images: Dataset
    """The part the model never saw."""


def replay(console: Console, wish: Wish, stop: threading.Event) -> dict[str, Any]:
    """The whole of it; gives the report. Setting `stop` drains: the same wish goes on where it stopped.

    Raises BadField for data that cannot be used, NotPossibleNow when the training fails or another run holds the state
    folder, ModelNotReady when the model cannot be loaded.
    """
    with sole_owner(wish.state):
        material = _material(wish.data)
        root = Path() if wish.data == ELPV else Path(wish.data)
        with open_records(wish.state, root, takes_jobs=False) as records:
            with Client.connect(records) as client:
                model = _model_for(console, client, material, wish, stop)
            with (
                open_inspection(records, wish.state, model.name, _lines(wish)) as addresses,
                Client.connect(addresses) as client,
            ):
                _give_recipe(console, client, material, model)
                wait_for_engine(client, stop)
                begun = time.monotonic()
                with suppress(_Interrupted):
                    _inspect(console, client, wish, stop)
                return _report(console, client, material, wish.state, time.monotonic() - begun)


def _material(spec: str) -> Material:
    dataset = open_dataset(spec)
    if not dataset.labelled:
        return Material(spec, dataset.name, None, dataset)
    parts = split(dataset)
    return Material(spec, dataset.name, parts.train, parts.held_out)


def _lines(wish: Wish) -> list[dict[str, Any]]:
    """The four stations: each takes every fourth image, and its share of the frames."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for number, (line, station) in enumerate(STATIONS):
        share = wish.frames // len(STATIONS) + (number < wish.frames % len(STATIONS))
        source = {"kind": "dataset", "data": wish.data, "offset": number, "stride": len(STATIONS)}
        lines.setdefault(line, []).append(
            {
                "name": station,
                "recipe": DEFAULT_RECIPE,
                "fps": wish.fps,
                "frames": share,
                "source": source,
                "autostart": False,
            }
        )
    return [{"name": line, "stations": stations} for line, stations in lines.items()]


def _model_for(console: Console, client: Client, material: Material, wish: Wish, stop: threading.Event) -> Model:
    """The production version, after a training where none was made of just these images yet.

    For images without labels: the newest production version there is.
    """
    if material.train is None:
        return newest_in_production(client)
    name = name_from(material.name)
    sha256 = fingerprint(material.train.items)
    made = [
        model
        for model in ([] if wish.retrain else client.models(name))
        if model.card["data"]["sha256"] == sha256 and wish.seed in (None, model.card["seed"])
    ]
    if made:
        # Whichever is in production, if one is; else the newest, which somebody or its scores kept out of it.
        known = next((model for model in made if PRODUCTION in model.aliases), made[0])
        console.print(f"model {known.name}/{known.version} was trained on these images; nothing to train")
    else:
        # The worker ends with the training: what else waits for one must not compete with the line.
        with training_door(wish.state, material.spec) as trainer:
            job = trainer.train(own_data(material.spec), model=name, epochs=wish.epochs, seed=wish.seed, join=True)
            known = watched(console, trainer, job, stop)
    live = client.model(name, alias=PRODUCTION)
    if live.version != known.version:
        console.print(f"what judges is {live.name}/{live.version}, which is in production")
    return live


def _give_recipe(console: Console, client: Client, material: Material, model: Model) -> None:
    """The demo recipe: no geometry, this model, and quality limits from the images it learnt from.

    One that somebody put for this model is kept. One that was made before there were images to measure is not.
    """
    if material.train is None:
        make_recipe(client, model.name)
        return
    present = [Recipe.from_yaml(each.yaml) for each in client.recipes() if each.name == DEFAULT_RECIPE]
    if any(recipe.model == model.name and recipe != unmeasured_recipe(model.name) for recipe in present):
        return
    with console.status("measuring the training images, for the recipe's quality limits"):
        limits = limits_from(_measured(material.train))
    recipe = Recipe(name=DEFAULT_RECIPE, description=f"made for {material.name}", model=model.name, quality=limits)
    stored = client.put_recipe(recipe.to_yaml())
    console.print(f"recipe {DEFAULT_RECIPE} version {stored.recipe.version}: {limits.model_dump(exclude_none=True)}")


def _measured(images: Dataset) -> Iterator[QualityReport]:
    for item in images.items:
        # The training has told of the damaged ones and left them out.
        with suppress(BadField):
            yield measure(decode(item.read()))


def _inspect(console: Console, client: Client, wish: Wish, stop: threading.Event) -> None:
    with _run_marker(wish, client) as before:
        for station in _stations(client):
            # Finished in this very run, before it was interrupted: starting it would begin another.
            done = station.state is StationState.FINISHED and station.run_id != before.get(_name(station))
            if not done and not stop.is_set():
                client.start_station(station.line, station.station)
        follow_stations(console, wish.frames, client, lambda: _stations(client), stop)
        if stop.is_set():
            console.print("stopping: frames in hand are finished first")
            for line, station_name in STATIONS:
                client.stop_station(line, station_name)
            raise _Interrupted


@contextmanager
def _run_marker(wish: Wish, client: Client) -> Iterator[dict[str, str]]:
    """Yields each station's run before this one. The marker outlives an interruption, so the run that goes on knows
    which stations had finished in it and which have yet to begin."""
    marker = wish.state / "run.json"
    plan = {"data": wish.data, "frames": wish.frames}
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


def _report(console: Console, client: Client, material: Material, state: Path, seconds: float) -> dict[str, Any]:
    stations = _stations(client)
    tally, lines = Tally(), {line: Tally() for line, _ in STATIONS}
    for station in stations:
        for record in client.decisions(run_id=station.run_id) if station.run_id else ():
            tally.add(record)
            lines[station.line].add(record)
    failed = [station for station in stations if station.state is StationState.FAILED]
    notes = [ELPV_NOTE] if material.spec == ELPV else []
    facts = {
        "model": ", ".join(sorted(tally.versions)),
        "data": material.spec,
        "images": len(material.images.items),
        "split": material.images.words,
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
    console.print(f"images: {material.images.words}")
    for note in notes:
        console.print(f"note: {note}")
    for each in failed:
        console.print(f"[red]station {_name(each)} failed:[/red] {each.detail}")
    console.print(f"records: {facts['ledger']}   evidence: {facts['evidence']}   model: {facts['model']}")
    return summary
