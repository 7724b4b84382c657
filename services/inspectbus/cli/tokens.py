"""`inspectbus tokens`: who may call the services of a plant, and as what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """Examples:

  inspectbus tokens make anna --role reviewer --out anna.token --file tokens.yaml

  inspectbus tokens make line-1-top --role station --speaks-for line-1/top --out top.token --file tokens.yaml

  inspectbus tokens make inference --role viewer --certificate inference --file tokens.yaml

To replace a token, make another for the same name: both are good until you take the older hash, the first, out of the
file. To withdraw all, take the line out. Services read tokens.yaml (setting `tokens`) anew when it changes. Whoever
calls them sets INSPECTBUS_TOKEN_FILE."""

app = typer.Typer(no_args_is_help=True, help="Say who may call the services, and as what.")


@app.command("make", epilog="Example: inspectbus tokens make anna --role reviewer --out anna.token --file tokens.yaml")
def make(
    name: Annotated[str, typer.Argument(help="Of the person or program; it stands in records and logs.")],
    role: Annotated[str, typer.Option(metavar="<viewer|station|reviewer|engineer|admin>", help="What it may do.")],
    out: Annotated[
        Path | None,
        typer.Option(help="A new file for the token, which only its owner may read.", show_default="no token"),
    ] = None,
    certificate: Annotated[
        str,
        typer.Option(metavar="NAME", help="A name in its client certificate, by which it is known without a token."),
    ] = "",
    speaks_for: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE[/STATION]", show_default="all", help="Whose frames it may send; again for more."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="The tokens file to put it into; a name that is there gets one more token.", show_default="printed"
        ),
    ] = None,
) -> None:
    """Make a token in a file of its own, or name a certificate, and put it into tokens.yaml, or print its line, which
    has the token's hash only."""
    from inspectbus.cli.credentials import keep_token
    from inspectbus.cli.tokens_file import keep_identity, line_of
    from inspectbus.errors import BadField
    from inspectbus.runtime.roles import Role
    from inspectbus.runtime.tokens import checked_entry, hash_of, new_token

    if out is None and not certificate:
        raise BadField("how shall it be known? Name --out for a token, or --certificate", field="out")
    token = new_token()
    told = {"role": role, "speaks_for": speaks_for or (), "certificate": certificate}
    entry = checked_entry(name, told | ({"sha256": hash_of(token)} if out is not None else {}))
    if entry.speaks_for and not entry.role.includes(Role.STATION):
        raise BadField(f"a {entry.role} sends no images, so it speaks for nobody: leave --speaks-for out", field="role")
    if out is not None:
        keep_token(out, token)
    if file is None:
        typer.echo(line_of(name, entry))
        return
    try:
        kept = keep_identity(file, name, entry)
    except BaseException:  # whatever it was, nobody will ever know the token in the new file
        if out is not None:
            out.unlink()
        raise
    several = f" with {len(kept.sha256)} tokens, the newest last" if len(kept.sha256) > 1 else ""
    typer.echo(f"{name} is in {file}{several}")
