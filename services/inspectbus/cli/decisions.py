"""`inspectbus decisions`: what was decided, looked up and as it happens."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inspectbus.cli import keeping
from inspectbus.cli.doors import ResultsAddress, client_of
from inspectbus.cli.printing import AsJson, console, json_line, plain, sheet, table, time_of_day

if TYPE_CHECKING:
    from inspectbus_client import Decision, DecisionFilter, Record

EXAMPLES = """Examples:

  inspectbus decisions list --line line-1 --verdict hold

  inspectbus decisions list --part 4711 --json

  inspectbus decisions show 9c0f8a3e-6f0e-5c43-8a52-1c2f9a7f4d11 --save evidence/

  inspectbus decisions watch --line line-1"""

Line = Annotated[str, typer.Option(help="Only of this line.")]
Station = Annotated[str, typer.Option(help="Only of this station.")]
Run = Annotated[str, typer.Option(metavar="RUN_ID", help="Only of this run.")]
Verdicts = Annotated[
    list[str] | None,
    typer.Option("--verdict", metavar="<qualified|defective|hold>", show_default="all", help="May be repeated."),
]
Part = Annotated[str, typer.Option(metavar="PART_ID", help="Only of this part.")]
Lot = Annotated[str, typer.Option(metavar="LOT_ID", help="Only of this lot.")]
ModelVersion = Annotated[str, typer.Option(metavar="VERSION", help="Only by this model version.")]
Moment = Annotated[datetime | None, typer.Option(help="Recorded at or after; local time.")]
End = Annotated[datetime | None, typer.Option(help="Recorded before; local time.")]

app = typer.Typer(no_args_is_help=True, help="List, show and watch decisions.")


@app.command("list", epilog="Example: inspectbus decisions list --line line-1 --verdict defective --verdict hold")
def list_decisions(
    line: Line = "",
    station: Station = "",
    run: Run = "",
    verdict: Verdicts = None,
    part: Part = "",
    lot: Lot = "",
    model_version: ModelVersion = "",
    since: Moment = None,
    until: End = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 100,
    as_json: AsJson = False,
    address: ResultsAddress = None,
) -> None:
    """List decisions in the order they were recorded."""
    filter = filter_of(line, station, run, verdict, part, lot, model_version, since, until)
    with client_of("results", address) as client:
        rest = client.decisions(page_size=min(limit + 1, 1000), **filter)
        found = itertools.islice(rest, limit)
        if as_json:
            for record in found:
                json_line(record)
        else:
            table(COLUMNS, [_cells(record) for record in found])
        if next(rest, None) is not None:
            typer.echo(f"the first {limit} only; --since, --run or a larger --limit shows more", err=True)


@app.command("show", epilog="Example: inspectbus decisions show 9c0f8a3e-6f0e-5c43-8a52-1c2f9a7f4d11 --json")
def show_decision(
    frame_id: Annotated[str, typer.Argument(metavar="FRAME_ID")],
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write original, prepared image and heatmap into this folder.")
    ] = None,
    config: keeping.Config = None,
    as_json: AsJson = False,
    address: ResultsAddress = None,
) -> None:
    """Show everything recorded about one frame.

    A heatmap is the prepared image with what speaks for DEFECTIVE painted over it, red the strongest.
    """
    with client_of("results", address) as client:
        record = client.decision(frame_id)
    if save is not None:
        _save_evidence(record.decision, save, config)
    if as_json:
        json_line(record)
        return
    decision = record.decision
    hold, quality = decision.hold, decision.quality
    facts: dict[str, object] = {
        "frame": decision.frame_id,
        "station": f"{decision.line}/{decision.station}",
        "run": f"{decision.run_id} #{decision.sequence}",
        "image": decision.source_item,
        "part, lot, product": ", ".join(filter(None, (decision.part_id, decision.lot_id, decision.product))),
        "verdict": str(decision.verdict),
        "why held": f"{hold.reason}: {hold.detail}" if hold else "",
        "score": decision.score,
        "threshold": decision.threshold,
        "qualified below": decision.qualified_below,
        "model": _model(decision),
        "recipe": f"{decision.recipe} version {decision.recipe_version or 'unknown'}",
        "preparation": decision.preparation_hash,
        "quality": ", ".join(f"{name} {value:.3g}" for name, value in vars(quality).items()) if quality else "",
        "captured": time_of_day(decision.timings.captured_at),
        "recorded": time_of_day(record.recorded_at),
        "latency ms": decision.latency_s * 1000 if decision.latency_s is not None else None,
        "gate": _gate(record),
        "truth": str(record.truth or ""),
        "evidence": ", ".join(_evidence_keys(decision)),
        "came again": f"{record.duplicates} the same, {record.conflicts} differing",
        **{f"revision {each.revision}": _revision(each) for each in record.revisions},
    }
    sheet([(name, value) for name, value in facts.items() if value not in ("", None)])


@app.command("watch", epilog="Example: inspectbus decisions watch --line line-1 --json")
def watch_decisions(
    line: Line = "",
    station: Station = "",
    verdict: Verdicts = None,
    part: Part = "",
    lot: Lot = "",
    model_version: ModelVersion = "",
    after: Annotated[int | None, typer.Option(metavar="CURSOR", help="Begin after this record.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Leave after this many.")] = None,
    as_json: AsJson = False,
    address: ResultsAddress = None,
) -> None:
    """Print decisions as they are recorded, until Ctrl-C. None is skipped, also when the connection breaks."""
    filter = filter_of(line, station, "", verdict, part, lot, model_version, None, None)
    with client_of("results", address) as client, client.watch_decisions(after=after, **filter) as watch:
        output = console()
        for record in itertools.islice(watch, limit):
            if as_json:
                json_line(record)
            else:
                output.print(plain("  ".join(_word(value) for value in _cells(record))), markup=False)


def filter_of(
    line: str,
    station: str,
    run: str,
    verdicts: list[str] | None,
    part: str,
    lot: str,
    model_version: str,
    since: datetime | None,
    until: datetime | None,
) -> DecisionFilter:
    """The options as the client takes them; times typed at a terminal are local ones."""
    filter: dict[str, Any] = {
        "line": line,
        "station": station,
        "run_id": run,
        "verdicts": verdicts or [],
        "part_id": part,
        "lot_id": lot,
        "model_version": model_version,
    }
    if since is not None:
        filter["since"] = since.astimezone()
    if until is not None:
        filter["until"] = until.astimezone()
    return filter  # type: ignore[return-value] # the keys are those of DecisionFilter


COLUMNS = (
    "cursor",
    "recorded",
    "station",
    "image",
    "part",
    "verdict",
    "score",
    "threshold",
    "model version",
    "gate",
    "truth",
    "why",
)


def _cells(record: Record) -> tuple[object, ...]:
    decision = record.decision
    return (
        record.cursor,
        time_of_day(record.recorded_at),
        f"{decision.line}/{decision.station}",
        decision.source_item,
        decision.part_id,
        str(decision.verdict),
        decision.score,
        decision.threshold,
        decision.model_version,
        _gate(record),
        str(record.truth or ""),
        f"{decision.hold.reason}: {decision.hold.detail}" if decision.hold else "",
    )


def _model(decision: Decision) -> str:
    """elpv/0f3a..., as production"""
    if not decision.model_version:
        return ""
    named_by = f", as {decision.model_alias}" if decision.model_alias else ""
    return f"{decision.model}/{decision.model_version}{named_by}"


def _gate(record: Record) -> str:
    """REJECT, or 'REJECT late' when no decision had come in time."""
    if record.gate is None:
        return ""
    return f"{record.gate.action or '-'}{' late' if record.late else ''}"


def _evidence_keys(decision: Decision) -> list[str]:
    return [key for key in vars(decision.evidence).values() if key]


def _save_evidence(decision: Decision, folder: Path, config: Path | None) -> None:
    """Raises NotPossibleNow when nothing was kept, NotFound for what is not in the store, BadField for the folder."""
    from inspectbus.errors import BadField, NotPossibleNow

    if not (keys := _evidence_keys(decision)):
        raise NotPossibleNow(f"no images were kept of frame {decision.frame_id}, {decision.verdict}", field="save")
    store = keeping.open_frame_store(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadField(f"{plain(str(folder))} is no folder: {error.strerror or error}", field="save") from None
    for key in keys:
        keeping.save(folder / key.rpartition("/")[2], store.get(key))


def _revision(decision: Decision) -> str:
    """What a replay of the frame came to."""
    why = f"{decision.hold.reason}: {decision.hold.detail}" if decision.hold else f"by {decision.model_version}"
    return f"{decision.verdict} {why}, {time_of_day(decision.timings.decided_at)}"


def _word(value: object) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
