"""`inspectbus run`: what may be asked of it. What it does is in replay.py, whose libraries load only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from inspectbus.cli.printing import console as results_console
from inspectbus.cli.state import DEFAULT_STATE, State

EXAMPLES = """
Examples:

    inspectbus run --frames 400                       solar cells, 400 frames over four stations

    inspectbus run --data ./parts --frames 1000       ./parts/good and ./parts/defective

    inspectbus run --data ./incoming                  unlabelled images, judged by the present model

    inspectbus run --fps 0 --report out.json          as fast as the machine goes, figures as JSON
"""


def run(
    frames: Annotated[int, typer.Option(min=1, help="Frames to inspect, over all stations.")] = 400,
    fps: Annotated[float, typer.Option(min=0, help="Frames per second of each station; 0 is as fast as it goes.")] = 5,
    data: Annotated[
        str, typer.Option(metavar="DATA", help="'elpv', two class folders, or a folder of unlabelled images.")
    ] = "elpv",
    state: State = DEFAULT_STATE,
    report_file: Annotated[Path | None, typer.Option("--report", help="Write the figures here as JSON.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, show_default="7", help="Epochs, at most, when a model is trained.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, show_default="0", help="Of the training; without it a model of any seed is taken up."),
    ] = None,
    retrain: Annotated[bool, typer.Option(help="Train even when there is a model of these images.")] = False,
) -> None:
    """Train once, then inspect a replayed test part on two lines of two stations, live."""
    from inspectbus.cli.replay import Wish, replay
    from inspectbus.cli.training import own_data
    from inspectbus.errors import BadField
    from inspectbus.runtime.signals import stop_on_signals

    if report_file and not report_file.absolute().parent.is_dir():
        raise BadField(f"--report {report_file}: there is no folder {report_file.absolute().parent}", field="report")
    console = results_console()
    with stop_on_signals() as stop:
        wish = Wish(own_data(data), frames, fps, state, epochs or 0, seed, retrain)
        summary = replay(console, wish, stop)
    if report_file:
        report_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        console.print(f"report: {report_file}")
    if stop.is_set():
        console.print("interrupted: the same command goes on where this one stopped")
        raise typer.Exit(130)
    raise typer.Exit(1 if summary["lost"] or summary["failed_stations"] else 0)
