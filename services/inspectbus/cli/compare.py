"""`inspectbus compare`: every model of the literature beside our CNN, on one data set, as a report.

DATA ─┬─> conductor.compare, a bar for each stage ───────────────┬─> report folder ─> a table of the scores
      └─> CompareModels elsewhere, the same bars ─> ReadReport ──┘
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inspectbus.cli.printing import AsJson, json_line, print_line, table
from inspectbus.cli.state import DEFAULT_STATE, State
from inspectbus.cli.train import Backbone, Depth
from inspectbus.errors import BadField, NotPossibleNow

if TYPE_CHECKING:
    from inspectbus.training.comparison.terms import Terms
    from inspectbus.training.plan import Progress
    from inspectbus.training.settings import TrainingSettings

EXAMPLES = """Examples:

  inspectbus compare elpv --out report --seeds 3

  inspectbus compare ./parts --out report --quick          minutes, on some of the images

  inspectbus compare ./parts --out report --models cnn,svm --json > figures.json

  inspectbus compare ./parts --out report --address 10.0.0.5:50054      as a job of the plant's training service

DATA as for `inspectbus train`; with --address, as that service knows it. The held-out part is opened when
everything is learnt. DIR gets report.html, which needs nothing else, the figures as PNG, and report.json. Features of
images seen before are found again by their content."""


def compare(
    data: Annotated[str, typer.Argument(metavar="DATA", help="'elpv', or a folder of labelled images.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report; new, or empty.")],
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Each cuts its own validation part.")] = 1,
    models: Annotated[str, typer.Option(metavar="cnn,svm,knn,bpn,mlp", show_default="all", help="Some of these.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images, epochs and candidates: minutes.")] = False,
    images: Annotated[
        int | None,
        typer.Option(min=1, show_default="all, or 240 with --quick", help="Take so many of the images."),
    ] = None,
    backbone: Backbone = "",
    epochs: Annotated[
        int | None, typer.Option(min=1, show_default="14", help="Of the CNN; with --quick at most 2.")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, show_default="300", help="Side of the input, pixels.")
    ] = None,
    depth: Annotated[
        Depth | None,
        typer.Option(show_default="whole", help="whole: every layer of the CNN learns. upper: sooner done."),
    ] = None,
    turns: Annotated[
        bool, typer.Option("--turns/--no-turns", help="The CNN sees parts turned; not for parts with an up.")
    ] = True,
    state: State = DEFAULT_STATE,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="A running training service; without one, this process compares.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Compare SVM, KNN, BPN, MLP and the CNN on one data set, and write a report."""
    cnn = {"backbone": backbone, "epochs": epochs, "input_size": input_size, "depth": depth}
    names = [name.strip() for name in models.split(",") if name.strip()]
    asked = {"seeds": seeds, "models": names, "images": images}
    if address:
        whole = {**_told({"data": data, **cnn, **asked}), "turns": turns, "quick": quick}
        record = _compared_elsewhere(address, out, whole)
    else:
        record = _compared_here(state, out, quick, {"data": data, **cnn}, turns, asked)
    if as_json:
        json_line(record)
        return
    _show(record)
    print_line(f"{out / 'report.html'}: {record['split']['words']}; {record['took_s']:.0f} s")
    if record["terms"]["shortened"]:
        begun = "the CNN has hardly begun to learn, and " if "cnn" in record["models"] else ""
        print_line(f"A quick comparison shows that everything works; {begun}who is first says nothing.")


def _compared_elsewhere(address: str, out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    import json

    from rich.console import Console

    from inspectbus.cli.doors import access
    from inspectbus.cli.training import compared
    from inspectbus.runtime.signals import stop_on_signals
    from inspectbus.training.comparison.folder import RECORD, empty_folder
    from inspectbus_client import Client

    empty_folder(out)
    with stop_on_signals() as stop, Client.connect({"training": address}, access=access()) as client:
        # The service knows its own folders, and DATA goes to it as it is.
        compared(Console(stderr=True), client, client.compare_models(**asked), stop, out)
    found: dict[str, Any] = json.loads((out / RECORD).read_bytes())
    return found


def _compared_here(
    state: Path, out: Path, quick: bool, plan: dict[str, Any], turns: bool, asked: dict[str, Any]
) -> dict[str, Any]:
    from rich.console import Console

    from inspectbus.cli.live import stage_bar
    from inspectbus.runtime.signals import stop_on_signals
    from inspectbus.stores.datasets import open_dataset
    from inspectbus.training.comparison.conductor import compare as compared
    from inspectbus.training.comparison.folder import empty_folder
    from inspectbus.training.comparison.report import write_report
    from inspectbus.training.comparison.terms import known_models
    from inspectbus.training.plan import Cancelled
    from inspectbus.training.settings import TrainingSettings

    settings = TrainingSettings.load(state_dir=state)
    terms = _terms(settings, quick, plan, turns, {**asked, "models": known_models(asked["models"])})
    dataset = open_dataset(plan["data"])
    empty_folder(out)
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    with stop_on_signals() as stop, stage_bar(Console(stderr=True)) as show:

        def told(progress: Progress) -> None:
            figures = "  ".join(f"{name} {value:.3g}" for name, value in progress.figures.items())
            show(progress.stage, progress.done, progress.total, figures)

        try:
            found = compared(
                terms,
                dataset,
                on_progress=told,
                cancel=stop,
                cache_dir=settings.state_dir / "features",
                trainings_dir=settings.state_dir / "comparisons",
                weights=settings.weights,
            )
        except Cancelled:
            raise NotPossibleNow("the comparison was interrupted; nothing was written") from None
        return write_report(found, out)


def _terms(settings: TrainingSettings, quick: bool, plan: dict[str, Any], turns: bool, asked: dict[str, Any]) -> Terms:
    """What was asked for; the rest as a comparison has it. Raises BadField naming an option."""
    from pydantic import ValidationError

    from inspectbus.training.comparison.terms import Terms, compared_plan

    try:
        whole = compared_plan(**{"backbone": settings.backbone, **_told(plan)}, turns=turns)
        return (Terms.quick if quick else Terms.full)(whole, **_told(asked))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise BadField(f"--{name.replace('_', '-')}: {first['msg']}", field=name) from None


def _told(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value}


def _show(record: dict[str, Any]) -> None:
    parts = (("frozen features", record["models"]), ("raw pixels", record["raw_models"]))
    rows = [
        (name, "the picture" if name == "cnn" else form, *_figures(each))
        for form, models in parts
        for name, each in models.items()
        if name != "floor"
    ]
    rows += [(name.replace("_", " "), "floor", *_figures(each)) for name, each in record["floors"].items()]
    table(
        ("model", "sees", "precision", "recall", "f1", "95 %", "AP", "95 %", "AUROC", "accuracy", "fit s", "ms/image"),
        rows,
    )


def _figures(each: dict[str, Any]) -> list[object]:
    f1, ap = each["f1"], each["average_precision"]
    return [
        each["precision"]["mean"],
        each["recall"]["mean"],
        f1["mean"],
        f"{f1['low']:.2f}-{f1['high']:.2f}",
        ap["mean"],
        f"{ap['low']:.2f}-{ap['high']:.2f}",
        each["auroc"]["mean"],
        each["accuracy"]["mean"],
        each["fit_s"],
        each["predict_ms"],
    ]
