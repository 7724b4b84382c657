"""`inspectbus tokens`: who may call the services of a plant, and as what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """Examples:

  inspectbus tokens make anna --role reviewer --out anna.token >> tokens.yaml

  inspectbus tokens make line-1-top --role station --speaks-for line-1/top --out top.token >> tokens.yaml

Services read tokens.yaml (setting `tokens`) anew when it changes. Whoever calls them sets INSPECTBUS_TOKEN_FILE."""

app = typer.Typer(no_args_is_help=True, help="Say who may call the services, and as what.")


@app.command("make", epilog="Example: inspectbus tokens make anna --role reviewer --out anna.token >> tokens.yaml")
def make(
    name: Annotated[str, typer.Argument(help="Of the person or program; it stands in records and logs.")],
    role: Annotated[str, typer.Option(metavar="<viewer|station|reviewer|engineer|admin>", help="What it may do.")],
    out: Annotated[Path, typer.Option(help="A new file for the token, which only its owner may read.")],
    speaks_for: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE[/STATION]", show_default="all", help="Whose frames it may send; again for more."),
    ] = None,
) -> None:
    """Make a token, write it into a file of its own, and print the line for tokens.yaml, which holds its hash only."""
    from inspectbus.cli.credentials import keep_token
    from inspectbus.runtime.tokens import checked_entry, hash_of, new_token

    token = new_token()
    told = {"role": role, "sha256": hash_of(token), **({"speaks_for": speaks_for} if speaks_for else {})}
    entry = checked_entry(name, told)
    keep_token(out, token)
    places = f", speaks_for: [{', '.join(entry.speaks_for)}]" if entry.speaks_for else ""
    typer.echo(f"{name}: {{role: {entry.role}{places}, sha256: {entry.sha256[0]}}}")
