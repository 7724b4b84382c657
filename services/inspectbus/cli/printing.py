"""How results look: tables for people, JSON lines for machines. Standard output holds results and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]

PIPE_COLUMNS = 240
"""Width of a table that no terminal shows: wide enough for what reads it to find whole words."""

COLOURS = {
    "QUALIFIED": "green",
    "DEFECTIVE": "bold red",
    "HOLD": "yellow",
    "FAILED": "red",
    "RUNNING": "green",
    "LISTENING": "green",
    "SUCCEEDED": "green",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns of numbers right, verdicts and states in their colour, None as a dash."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    found = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numbers = found and all(_is_number(row[index]) for row in found)
        shown.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in found:
        shown.add_row(*map(_cell, row))
    console().print(shown)


def sheet(entries: Iterable[tuple[str, object]]) -> None:
    """What one thing is: each value beside its name, however wide the terminal and the longest value are."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column()
    shown.add_column(overflow="fold")
    for name, value in entries:
        shown.add_row(Text(name), _cell(value))
    console().print(shown)


def json_line(value: Any) -> None:
    """A dictionary, or a dataclass field by field; times as ISO 8601, durations in seconds."""
    fields = value if isinstance(value, dict) else asdict(value)
    sys.stdout.write(json.dumps(fields, default=_json_default) + "\n")
    # Whoever reads a watch wants each line when it happens.
    sys.stdout.flush()


def print_line(text: str) -> None:
    """A sentence on standard output."""
    console().print(Text(plain(text)))


def console() -> Console:
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if terminal else PIPE_COLUMNS, highlight=False)


def plain(text: str) -> str:
    """On one line, and without anything that could move a terminal's cursor: names come from files and networks."""
    return "".join(c if c.isprintable() else " " if c in "\n\r\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def time_of_day(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else "-"


def _cell(value: object) -> Text:
    if value is None:
        return Text("-")
    text = f"{value:.3f}" if isinstance(value, float) else plain(str(value))
    return Text(text, style=COLOURS.get(text, ""))


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def _json_default(value: object) -> str | float:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} has no JSON form")
