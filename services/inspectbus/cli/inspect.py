"""`inspectbus inspect`: image files in, verdicts out.

PATH|DIR ... ─> files, no masks ─ stream, bounded ─> decisions ─> table, JSON lines or CSV; exit code 0, 1 or 2
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from inspectbus.cli.doors import client_of
from inspectbus.cli.printing import console, json_line, plain, table
from inspectbus.cli.state import DEFAULT_STATE, State

if TYPE_CHECKING:
    from inspectbus_client import Client, Inspected

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
"""What a folder is searched for. A file that is named outright is tried whatever it is called."""

EXAMPLES = """Examples:

  inspectbus inspect part.png

  inspectbus inspect photos/ --json > verdicts.jsonl

  inspectbus inspect photos/ --csv --recipe cells --address 10.0.0.5:50051

A folder is searched to its depths. The masks that data sets keep beside their photographs, in folders called mask,
masks or ground_truth, are no pictures of parts and left out.

Exit code: 0 when every part is qualified, 1 when some are defective, 2 when some were held or failed."""


class Form(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def inspect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH|DIR...", help="Image files, or folders of them.")],
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="INSPECTBUS_ACQUISITION_ADDRESS",
            help="A running acquisition service. Without one, a line is opened in this process, for this command.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, as the decisions fall.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, as the decisions fall.")] = False,
    recipe: Annotated[str, typer.Option(metavar="NAME", show_default="default", help="How to prepare and judge.")] = "",
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.1, help="How long each decision may take, and the loading of a line's model."
        ),
    ] = 30.0,
    state: State = DEFAULT_STATE,
) -> None:
    """Judge image files."""
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    form = Form.JSON if as_json else Form.CSV if as_csv else Form.TABLE
    with ExitStack() as stack:
        if address is None:
            from inspectbus.line import private_line
            from inspectbus_client import Client

            client = stack.enter_context(Client.connect(stack.enter_context(private_line(state, timeout))))
        else:
            client = stack.enter_context(client_of("acquisition", address))
        code = inspect_files(client, paths, form=form, recipe=recipe, timeout_s=timeout)
    raise typer.Exit(code)


def inspect_files(
    client: Client, paths: list[Path], *, form: Form = Form.TABLE, recipe: str = "", timeout_s: float = 30.0
) -> int:
    """Prints a decision for every image and one line on standard error for every file that is none.

    Gives the exit code: 0 all qualified, 1 some defective, 2 some held, failed, or nothing to inspect.
    """
    from inspectbus_client import Shot

    found = find_images(paths)
    for folder in found.empty:
        _complain(f"{folder}: holds no PNG, JPEG, BMP or TIFF image")
    if found.masks:
        where = ", ".join(f"{folder}/" for folder in found.masks)
        typer.echo(plain(f"left out {found.masks.total()} masks, which are no pictures of parts: {where}"), err=True)
    shots = [Shot(file) for file in found.files]
    order = {shot.frame_id: position for position, shot in enumerate(shots)}
    page = _Page(form)
    code = 2 if found.empty or not found.files else 0
    try:
        with _progress(len(shots)) as advance:
            for inspected in client.inspect_many(shots, recipe=recipe, patience_s=timeout_s):
                advance()
                page.add(order[inspected.shot.frame_id], inspected)
                code = max(code, _exit_code(inspected))
    finally:
        # What was decided before a service vanished, or before Ctrl-C, is worth showing.
        page.end()
    return code


class Found(NamedTuple):
    """What the paths of a command come to."""

    files: list[Path]
    empty: list[Path]
    """Folders without a photograph."""
    masks: Counter[Path]
    """Images in each folder that data sets keep beside their photographs, and that show no part."""


def find_images(paths: list[Path]) -> Found:
    """Every file meant, folders searched to their depths in the order of names. What is named outright is no mask."""
    found = Found([], [], Counter())
    for path in paths:
        if not path.is_dir():
            found.files.append(path)
            continue
        before = len(found.files)
        for each in sorted(path.rglob("*")):
            # A broken link or a pipe is told as what it is, not passed over.
            if each.suffix.lower() not in SUFFIXES or each.is_dir():
                continue
            if (folder := _kept_beside(path, each)) is not None:
                found.masks[folder] += 1
            else:
                found.files.append(each)
        if len(found.files) == before:
            found.empty.append(path)
    return found


def _kept_beside(root: Path, image: Path) -> Path | None:
    """The folder below root that holds the image and no photographs, by its name."""
    from inspectbus.stores.datasets import class_names

    below = reversed(image.relative_to(root).parents[:-1])
    beside = (folder for folder in below if class_names.plain(folder.name) in class_names.BESIDE)
    return next((root / folder for folder in beside), None)


def _exit_code(inspected: Inspected) -> int:
    verdict = inspected.decision.verdict if inspected.decision else None
    # Anything that is neither of the two known answers needs a person.
    return {"QUALIFIED": 0, "DEFECTIVE": 1}.get(verdict or "", 2)


def _complain(message: str) -> None:
    typer.echo(f"error: {plain(message)}", err=True)


class _progress:  # noqa: N801 - a context manager that reads as a verb
    """A bar on standard error while somebody watches and there is something to wait for."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress

        error_output = Console(stderr=True)
        shown = error_output.is_terminal and total > 1
        self._bar = Progress(
            *Progress.get_default_columns(),
            MofNCompleteColumn(),
            console=error_output,
            transient=True,
            disable=not shown,
        )
        self._task = self._bar.add_task("inspecting", total=total)

    def __enter__(self) -> Any:
        self._bar.start()
        return lambda: self._bar.advance(self._task)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class _Page:
    """Results in the form asked for. Lines are written as they come; a table in the order of the files, at the end."""

    COLUMNS = ("file", "verdict", "score", "threshold", "model version", "why", "ms")

    def __init__(self, form: Form) -> None:
        self._form = form
        self._rows: dict[int, dict[str, Any]] = {}
        self._csv = csv.writer(sys.stdout, lineterminator="\n")
        if form is Form.CSV:
            self._csv.writerow(self.COLUMNS)

    def add(self, position: int, inspected: Inspected) -> None:
        row = _row(inspected)
        if inspected.error is not None:
            file, message = row["file"], inspected.error.message
            _complain(message if message.startswith(file) else f"{file}: {message}")
        if self._form is Form.JSON:
            json_line(row)
        elif self._form is Form.CSV:
            self._csv.writerow(_cells(row))
            sys.stdout.flush()
        else:
            self._rows[position] = row

    def end(self) -> None:
        if self._form is not Form.TABLE or not self._rows:
            return
        rows = [self._rows[position] for position in sorted(self._rows)]
        table(self.COLUMNS, [_cells(row) for row in rows])
        counts = Counter(row["verdict"] or "failed" for row in rows)
        words = ", ".join(f"{count} {word.lower()}" for word, count in counts.most_common())
        console().print(f"{len(rows)} {'image' if len(rows) == 1 else 'images'}: {words}", style="dim")


def _row(inspected: Inspected) -> dict[str, Any]:
    """One image as JSON has it; a failed one has null where a decision would stand."""
    decision, error = inspected.decision, inspected.error
    latency_s = decision.latency_s if decision else None
    hold = decision.hold if decision else None
    return {
        "file": plain(str(inspected.shot.image)),
        "frame_id": inspected.shot.frame_id,
        "verdict": str(decision.verdict) if decision else None,
        "hold": {
            "reason": str(hold.reason),
            "detail": hold.detail,
            "measure": hold.measure,
            "value": hold.value,
            "limit": hold.limit,
        }
        if hold
        else None,
        "score": decision.score if decision else None,
        "threshold": decision.threshold if decision else None,
        "qualified_below": decision.qualified_below if decision else None,
        "model": decision.model if decision else None,
        "model_version": decision.model_version if decision else None,
        "recipe": decision.recipe if decision else None,
        "recipe_version": decision.recipe_version if decision else None,
        "ms": round(latency_s * 1000, 3) if latency_s is not None else None,
        "error": {"kind": type(error).__name__, "message": error.message, "field": error.field} if error else None,
    }


def _cells(row: dict[str, Any]) -> list[object]:
    """The row's values under COLUMNS."""
    why = ""
    if row["hold"]:
        why = f"{row['hold']['reason']}: {row['hold']['detail']}"
    elif row["error"]:
        why = f"{row['error']['kind']}: {row['error']['message']}"
    model = f"{row['model']}/{row['model_version']}" if row["model_version"] else ""
    return [row["file"], row["verdict"] or "FAILED", row["score"], row["threshold"], model, why, row["ms"]]
