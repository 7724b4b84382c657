"""`inspectbus scores`: precision, recall, F1 and the plant's two risks, over decisions whose truth is known."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from inspectbus.cli.decisions import End, Line, Lot, ModelVersion, Moment, Part, Run, Station, filter_of
from inspectbus.cli.doors import ResultsAddress, client_of
from inspectbus.cli.printing import AsJson, json_line, table

EXAMPLES = """Examples:

  inspectbus scores --by line

  inspectbus scores --by model-version --since 2026-01-01 --json"""


class Group(StrEnum):
    LINE = "line"
    STATION = "station"
    MODEL_VERSION = "model-version"


def scores(
    by: Annotated[Group | None, typer.Option(help="A row for each.")] = None,
    line: Line = "",
    station: Station = "",
    run: Run = "",
    part: Part = "",
    lot: Lot = "",
    model_version: ModelVersion = "",
    since: Moment = None,
    until: End = None,
    as_json: AsJson = False,
    address: ResultsAddress = None,
) -> None:
    """Show scores of the parts whose truth is known; DEFECTIVE is positive, held parts enter none."""
    filter = filter_of(line, station, run, None, part, lot, model_version, since, until)
    with client_of("results", address) as client:
        found = client.scores(by=by or "", **filter)
    rows = [*found.rows, found.overall]
    if as_json:
        for row in rows:
            json_line(row)
        return
    columns = (
        "group",
        "decisions",
        "held",
        "no truth",
        "TP",
        "FP",
        "TN",
        "FN",
        "precision",
        "recall",
        "F1",
        "escape",
        "overkill",
    )
    cells = []
    for row in rows:
        counts, score = row.scores.confusion, row.scores
        known = sum(vars(counts).values())
        cells.append(
            (
                row.group or "overall",
                row.decisions,
                row.held,
                row.decisions - known,
                counts.true_positives,
                counts.false_positives,
                counts.true_negatives,
                counts.false_negatives,
                score.precision,
                score.recall,
                score.f1,
                score.escape,
                score.overkill,
            )
        )
    table(columns, cells)
