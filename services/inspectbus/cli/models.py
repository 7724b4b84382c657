"""`inspectbus models`: which versions there are, how good they were, and which one an alias names."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from inspectbus.cli.decisions import End, Line, Moment, Station
from inspectbus.cli.doors import ModelsAddress, ResultsAddress, client_of
from inspectbus.cli.printing import AsJson, json_line, print_line, sheet, table, time_of_day

if TYPE_CHECKING:
    from inspectbus_client import Agreement, AgreementFilter, AliasChange, Client, Disagreement, Model

EXAMPLES = """Examples:

  inspectbus models

  inspectbus models elpv --json | head -1

  inspectbus models show elpv --at "2026-03-01 06:00"      which version was in production then

  inspectbus models set-alias elpv canary 0f3a5c1d2e4b6a78 --reason "a week on line 2"

  inspectbus models rollback elpv --reason "false alarms on line 1"

  inspectbus models agreement elpv                         what its shadow says of the frames, by station

A version that is worse than the one in production goes there with --force and a --reason only."""

VERDICTS = ("QUALIFIED", "DEFECTIVE", "HOLD")

SCORES = ("f1", "precision", "recall", "average_precision")
"""As the model card spells them; on the validation part, at the version's own threshold."""


class _ListedByDefault(TyperGroup):
    """`inspectbus models elpv` is `inspectbus models list elpv`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ListedByDefault, help="List and show model versions; say which one an alias names.")

Name = Annotated[str, typer.Argument(help="Of the model.")]
Alias = Annotated[str, typer.Argument(help="production, canary, shadow or a name of your own.")]
Reason = Annotated[str, typer.Option(help="Kept in the history.")]


@app.command("list", epilog="Example: inspectbus models elpv --json | head -1")
def list_models(
    name: Annotated[str, typer.Argument(help="Only versions of this name.")] = "",
    as_json: AsJson = False,
    address: ModelsAddress = None,
) -> None:
    """List model versions, newest first, with their aliases and validation scores; what `models` alone does."""
    with client_of("training", address) as client:
        found = client.models(name)
        if name and not found:
            _check_known(client, name)
    if as_json:
        for model in found:
            json_line(_facts(model))
        return
    columns = ("name", "version", "aliases", *SCORES, "threshold", "registered")
    table(columns, [_row(model) for model in found])


@app.command("show", epilog='Example: inspectbus models show elpv --alias production --at "2026-03-01 06:00"')
def show_model(
    name: Name,
    version: Annotated[str, typer.Option(help="By its id, instead of by an alias.")] = "",
    alias: Annotated[str, typer.Option(help="The version this alias names.")] = "production",
    at: Annotated[datetime | None, typer.Option(help="Or named then; local time.")] = None,
    as_json: AsJson = False,
    address: ModelsAddress = None,
) -> None:
    """Show one version: scores, data, threshold, network, how its images are prepared, input size."""
    from inspectbus.errors import NotFound

    with client_of("training", address) as client:
        try:
            model = client.model(name, version=version, alias=alias, at=at.astimezone() if at else None)
        except NotFound:
            _check_known(client, name)
            raise
    if as_json:
        json_line(_facts(model))
        return
    card = model.card
    entries: list[tuple[str, object]] = [
        ("version", f"{model.name}/{model.version}"),
        ("aliases", ", ".join(model.aliases)),
        ("registered", time_of_day(model.registered_at)),
        *((score, card.get("validation_scores", {}).get(score)) for score in SCORES),
        ("threshold", card.get("threshold")),
    ]
    entries += [("qualified_below", card["qualified_below"])] if "qualified_below" in card else []
    entries += [(f"data {field}", value) for field, value in card.get("data", {}).items()]
    entries += [(field, card[field]) for field in ("seed", "code_revision", "created_at") if field in card]
    entries += [(field, value) for field, value in card.get("architecture", {}).items()]
    entries += [(f"preparation {field}", value) for field, value in card.get("preparation", {}).items()]
    sheet(entries)


@app.command("set-alias", epilog="Example: inspectbus models set-alias elpv canary 0f3a5c1d2e4b6a78 --reason 'trial'")
def set_alias(
    name: Name,
    alias: Alias,
    version: Annotated[str, typer.Argument(help="As `inspectbus models` shows it.")],
    reason: Reason = "",
    force: Annotated[bool, typer.Option("--force", help="Also a version that is worse; needs a reason.")] = False,
    as_json: AsJson = False,
    address: ModelsAddress = None,
) -> None:
    """Point an alias at a version. Stations whose recipe asks for the alias follow within seconds.

    Exit code 2, with the figures, when production would get a version whose scores are worse beyond the interval.
    """
    with client_of("training", address) as client:
        change = client.set_alias(name, alias, version, reason=reason, force=force)
    if change is None and not as_json:
        print_line(f"{name}@{alias} names {version} already")
    elif change is not None:
        _tell(change, as_json)


@app.command("rollback", epilog="Example: inspectbus models rollback elpv --reason 'false alarms on line 1'")
def rollback(
    name: Name,
    alias: Alias = "production",
    reason: Reason = "",
    as_json: AsJson = False,
    address: ModelsAddress = None,
) -> None:
    """Point an alias back at the version it named before; again, one further back."""
    with client_of("training", address) as client:
        change = client.rollback(name, alias, reason=reason)
    _tell(change, as_json)


@app.command("history", epilog="Example: inspectbus models history elpv production --json")
def history(
    name: Name,
    alias: Annotated[str, typer.Argument(help="Only of this alias.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    as_json: AsJson = False,
    address: ModelsAddress = None,
) -> None:
    """List what a model's aliases named: who changed them, when and why; newest first."""
    with client_of("training", address) as client:
        found = list(islice(client.alias_history(name, alias, page_size=min(limit, 1000)), limit))
    if as_json:
        for change in found:
            json_line(change)
        return
    rows = [
        (time_of_day(change.changed_at), change.alias, change.previous or "-", change.version, change.by, _why(change))
        for change in found
    ]
    table(("when", "alias", "from", "to", "who", "why"), rows)


@app.command("agreement", epilog="Example: inspectbus models agreement elpv --line line-1 --differing 20")
def agreement(
    name: Name,
    version: Annotated[str, typer.Option(help="Only what this version decided.")] = "",
    shadow: Annotated[str, typer.Option(metavar="VERSION", help="Only what this version said as shadow.")] = "",
    line: Line = "",
    station: Station = "",
    since: Moment = None,
    until: End = None,
    differing: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", show_default=False, help="List the first N frames on which they differ instead."
        ),
    ] = 0,
    as_json: AsJson = False,
    address: ResultsAddress = None,
) -> None:
    """Show how often a model's shadow says what was decided, over the frames that both judged.

    A column D/Q, say, counts frames decided DEFECTIVE of which the shadow said QUALIFIED. --differing lists such
    frames; `inspectbus decisions show FRAME_ID --save DIR` has their images.
    """
    filter: AgreementFilter = {"model_version": version, "shadow_version": shadow, "line": line, "station": station}
    if since is not None:
        filter["since"] = since.astimezone()
    if until is not None:
        filter["until"] = until.astimezone()
    with client_of("results", address) as client:
        if differing:
            found = list(islice(client.disagreements(name, page_size=min(differing, 1000), **filter), differing))
            _list_differing(found, as_json)
            return
        rows = client.agreement(name, **filter)
    if as_json:
        for row in rows:
            json_line(row)
        return
    columns = (
        "station",
        "version",
        "shadow",
        "frames",
        "agree",
        *(f"{a[0]}/{b[0]}" for a in VERDICTS for b in VERDICTS),
    )
    table(columns, [_agreement_row(row) for row in rows])


def _check_known(client: Client, name: str) -> None:
    """Raises NotFound with the names there are, when this is none of them."""
    from inspectbus.errors import NotFound

    names = sorted({model.name for model in client.models()})
    if name not in names:
        known = (
            f"there are {', '.join(names)}" if names else "there is none yet: train one with `inspectbus train DATA`"
        )
        raise NotFound(f"no model {name[:80]!r}: {known}", field="name")


def _list_differing(found: list[Disagreement], as_json: bool) -> None:
    if as_json:
        for each in found:
            json_line(each)
        return
    columns = ("frame", "station", "decided", "score", "shadow", "its score", "truth", "version", "shadow version")
    rows = [
        (
            each.frame_id,
            f"{each.line}/{each.station}",
            str(each.decided),
            each.decided_score,
            str(each.shadow),
            each.shadow_score,
            str(each.truth or ""),
            each.model_version,
            each.shadow_version,
        )
        for each in found
    ]
    table(columns, rows)


def _agreement_row(row: Agreement) -> tuple[object, ...]:
    counts = {(str(pair.decided), str(pair.shadow)): pair.frames for pair in row.pairs}
    share = row.agreeing / row.frames if row.frames else None
    cells = (counts.get((decided, said), 0) for decided in VERDICTS for said in VERDICTS)
    return f"{row.line}/{row.station}", row.model_version, row.shadow_version, row.frames, share, *cells


def _facts(model: Model) -> dict[str, object]:
    fields = asdict(model)
    del fields["card_json"]
    return {**fields, "card": model.card}


def _row(model: Model) -> tuple[object, ...]:
    card = model.card
    scores = [card.get("validation_scores", {}).get(score) for score in SCORES]
    aliases = ", ".join(model.aliases)
    return model.name, model.version, aliases, *scores, card.get("threshold"), time_of_day(model.registered_at)


def _tell(change: AliasChange, as_json: bool) -> None:
    if as_json:
        json_line(change)
        return
    before = f", before {change.previous}" if change.previous else ""
    print_line(f"{change.name}@{change.alias} names {change.version}{before}")


def _why(change: AliasChange) -> str:
    how = "forced" if change.forced else "rollback" if change.rollback else ""
    return ": ".join(word for word in (how, change.reason) if word)
