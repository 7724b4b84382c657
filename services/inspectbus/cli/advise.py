"""`inspectbus advise`: limits on what may slip through and be held, and the thresholds for a recipe that keep them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspectbus.cli.doors import ModelsAddress, client_of
from inspectbus.cli.printing import AsJson, json_line, print_line, table

if TYPE_CHECKING:
    from inspectbus_client import AdvisedThreshold, ThresholdAdvice

TIMEOUT_S = 60.0
"""The service may have to fetch the version from its store first."""

EXAMPLES = """Examples:

  inspectbus advise elpv --escape-ppm 50000

  inspectbus advise gearbox --escape-ppm 2000 --held 0.02 --plot gearbox.png

PPM counts defective parts that pass in a million defective ones; overkill and held are shares of good parts. The two
lines of YAML go into a recipe. Each bound holds with 95 % confidence for itself, and for limits that were set before
looking; it cannot know that the network's best epoch was picked on the same images."""


def advise(
    name: Annotated[str, typer.Argument(help="A model.")],
    escape_ppm: Annotated[float, typer.Option(metavar="PPM", help="Defective parts that may pass, in a million.")],
    held: Annotated[float, typer.Option(metavar="SHARE", help="Good parts that may be held, 0 to 1.")] = 0.0,
    version: Annotated[str, typer.Option(help="A version; by default the one in production.")] = "",
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the trade-off as a PNG.")] = None,
    as_json: AsJson = False,
    address: ModelsAddress = None,
) -> None:
    """Find the thresholds that keep escapes, and held parts, within limits, and what that costs."""
    with client_of("training", address) as client:
        found = client.advise_threshold(
            name, escape_ppm=escape_ppm, held_limit=held, version=version, timeout_s=TIMEOUT_S
        )
    if plot is not None:
        from inspectbus.cli.advice_plot import draw

        draw(found, plot)
    if as_json:
        json_line({**asdict(found), "confidence": 0.95})
        return
    _print(found)


def _print(found: AdvisedThreshold) -> None:
    advice = found.advice
    print_line(
        f"{found.name}/{found.version}: at most {_ppm(advice):,} ppm escape gives at most "
        f"{advice.overkill.at_most:.2%} overkill with at most {advice.held.at_most:.2%} held, at 95% confidence, "
        f"from {found.defective:,} defective and {found.good:,} good images"
    )
    print_line(f"threshold: {advice.threshold:.6f}")
    if advice.qualified_below < advice.threshold:
        print_line(f"qualified_below: {advice.qualified_below:.6f}")
    print_line("")
    print_line("What other limits would give:")
    table(COLUMNS, [_cells(each) for each in found.curve])


COLUMNS = (
    "escape ppm",
    "seen",
    "overkill %",
    "seen",
    "held %",
    "seen",
    "defective held %",
    "qualified below",
    "threshold",
)
"""Upper bound and what was seen, side by side."""


def _cells(advice: ThresholdAdvice) -> tuple[object, ...]:
    return (
        _ppm(advice),
        round(advice.escape.seen * 1e6),
        100 * advice.overkill.at_most,
        100 * advice.overkill.seen,
        100 * advice.held.at_most,
        100 * advice.held.seen,
        100 * advice.held_defective,
        f"{advice.qualified_below:.6f}",
        f"{advice.threshold:.6f}",
    )


def _ppm(advice: ThresholdAdvice) -> int:
    return round(advice.escape.at_most * 1e6)
