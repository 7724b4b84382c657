"""`inspectbus data`: what a data set holds and what is wrong with it, before anybody trains on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inspectbus.cli.printing import AsJson, json_line, print_line, table

if TYPE_CHECKING:
    from inspectbus.stores.datasets.check import Report

EXAMPLES = """Examples:

  inspectbus data check ./parts

  inspectbus data check elpv --json"""

CHECK_EXAMPLES = """Examples:

  inspectbus data check ./parts

  inspectbus data check elpv

  inspectbus data check ./parts --json | jq '.findings[] | .about, .files'      every file that a finding is about

DATA is what `inspectbus train` takes. Exit code 0 when nothing is to be mended, 1 with findings, 2 when it is no data
set."""

app = typer.Typer(no_args_is_help=True, help="Look into data sets.")
SHOWN = 10
"""Rows of a table that people read; --json has all."""


@app.callback()
def data() -> None:
    """A group, so that `check` is named although it is alone."""


@app.command("check", epilog=CHECK_EXAMPLES)
def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="'elpv', or a folder of images.")],
    as_json: AsJson = False,
) -> None:
    """Counts, sizes, class balance; unreadable files, duplicates, leakage across the split, labels that disagree, and
    whether there are enough images for a training to cut.

    Every image is read, and every one is compared with every other in all eight orientations.
    """
    from rich.console import Console

    from inspectbus.cli.live import stage_bar
    from inspectbus.stores.datasets import open_dataset
    from inspectbus.stores.datasets.check import survey

    dataset = open_dataset(data)
    with stage_bar(Console(stderr=True)) as show:
        report = survey(dataset, lambda stage, done, total: show(stage, done, total, ""))
    if as_json:
        json_line(report)
    else:
        _print(report)
    raise typer.Exit(1 if report.findings else 0)


def _print(report: Report) -> None:
    known = ((report.groups, "groups"), (report.lots, "lots"), (report.masks, "masks"))
    beside = "".join(f", {count} {noun}" for count, noun in known if count)
    print_line(f"{report.data}: {report.images} images{beside}")
    print_line("")
    labels = sorted({label for counts in (report.labels, *report.sizes.values()) for label in counts}, reverse=True)
    rows: list[tuple[object, ...]] = [("all", *(report.labels.get(label, 0) for label in labels))]
    rows += [(f"split: {side}", *(counts.get(label, 0) for label in labels)) for side, counts in report.split.items()]
    sizes = sorted(report.sizes.items(), key=lambda size: -sum(size[1].values()))
    rows += [(f"size {size}", *(counts.get(label, 0) for label in labels)) for size, counts in sizes[:SHOWN]]
    table(("images", *labels), rows)
    if len(sizes) > SHOWN:
        print_line(f"and {len(sizes) - SHOWN} more sizes")
    if report.split_words:
        print_line(f"split: {report.split_words}")
    if report.kinds:
        most = sorted(report.kinds.items(), key=lambda kind: -kind[1])
        more = f" and {len(most) - SHOWN} more" if len(most) > SHOWN else ""
        print_line("kinds: " + ", ".join(f"{kind} {count}" for kind, count in most[:SHOWN]) + more)
    print_line("")
    verdicts = [("fail", each.about, each.says) for each in report.findings]
    verdicts += [("note", "", note) for note in report.notes]
    if not report.findings:
        verdicts.insert(0, ("ok", "", "nothing to be mended"))
    table(("", "about", "says"), verdicts)
    _print_alike(report)


def _print_alike(report: Report) -> None:
    leaks = [each for each in report.alike if each.astride and not each.same_group]
    if not leaks:
        return
    print_line("")
    print_line("near duplicates on both sides of the split, likest first:")
    rows = [(each.likeness, *each.files, "/".join(sorted(set(each.labels))), each.turn) for each in leaks[:SHOWN]]
    table(("likeness", "first", "second", "label", "second is"), rows)
    if len(leaks) > SHOWN:
        print_line(f"and {len(leaks) - SHOWN} more: --json has all")
