"""`inspectbus recipes`: how stations prepare and judge their images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inspectbus.cli.doors import PreprocessingAddress, client_of
from inspectbus.cli.printing import AsJson, console, json_line, plain, table, time_of_day

EXAMPLES = """Examples:

  inspectbus recipes list

  inspectbus recipes show cells > cells.yaml

  inspectbus recipes put cells.yaml"""

EXAMPLE_RECIPE = """\
name: cells
description: cells under the top camera
model: elpv
model_alias: production
geometry:
  perspective:
    corners: [[12, 8], [630, 10], [628, 470], [10, 468]]
    width: 620
    height: 460
  crop: {x: 10, y: 10, width: 600, height: 440}
quality:
  min_sharpness: 40
  max_glare: 0.2
threshold: 0.45
qualified_below: 0.2
"""
"""Shown by --help, and stored by a test."""

MAX_FILE_BYTES = 1024 * 1024
"""No recipe is that long; a file that is has been named by mistake."""

# \b keeps Typer from running the lines together.
_PUT_EPILOG = (
    "A recipe, of which only name and model must be given:\n\n\b\n"
    + EXAMPLE_RECIPE
    + "\nA score below qualified_below is QUALIFIED, one at or above threshold DEFECTIVE, one between them HOLD. "
    "They win over the model version's; threshold alone divides without a band."
)

app = typer.Typer(no_args_is_help=True, help="List, show and store recipes.")


@app.command("list", epilog="Example: inspectbus recipes list --json")
def list_recipes(as_json: AsJson = False, address: PreprocessingAddress = None) -> None:
    """List the newest version of every recipe."""
    with client_of("preprocessing", address) as client:
        found = client.recipes()
    if as_json:
        for recipe in found:
            json_line(recipe)
        return
    rows = [(recipe.name, recipe.version, time_of_day(recipe.created_at), recipe.sha256[:16]) for recipe in found]
    table(("name", "version", "stored", "sha256"), rows)


@app.command("show", epilog="Example: inspectbus recipes show cells --version 2 > cells.yaml")
def show_recipe(
    name: Annotated[str, typer.Argument()],
    version: Annotated[int, typer.Option(min=0, help="0 is the newest.")] = 0,
    as_json: AsJson = False,
    address: PreprocessingAddress = None,
) -> None:
    """Print a recipe as YAML, every default written out."""
    with client_of("preprocessing", address) as client:
        recipe = client.recipe(name, version)
    if as_json:
        json_line(recipe)
    else:
        typer.echo(recipe.yaml, nl=not recipe.yaml.endswith("\n"))


@app.command("put", epilog=_PUT_EPILOG)
def put_recipe(
    file: Annotated[Path, typer.Argument(help="A YAML file.")],
    as_json: AsJson = False,
    address: PreprocessingAddress = None,
) -> None:
    """Store a recipe as a new version; the same content again keeps the present one."""
    text = _text_of(file)
    with client_of("preprocessing", address) as client:
        stored = client.put_recipe(text)
    if as_json:
        json_line(stored)
        return
    word = "stored as" if stored.created else "is already"
    console().print(f"{stored.recipe.name} {word} version {stored.recipe.version}", markup=False)


def _text_of(file: Path) -> str:
    """Raises BadField naming the file."""
    from inspectbus.errors import BadField

    name = plain(str(file))
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadField(f"{name}: {error.strerror or error}", field=name) from None
    if len(data) > MAX_FILE_BYTES:
        raise BadField(f"{name}: is too long for a recipe", field=name)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadField(f"{name}: is not text", field=name) from None
