"""`inspectbus train` and `inspectbus evaluate`: what may be asked of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from inspectbus.cli.printing import AsJson, json_line, print_line, table
from inspectbus.cli.printing import console as results_console
from inspectbus.cli.state import DEFAULT_STATE, State

TRAIN_EXAMPLES = """Examples:

  inspectbus train elpv

  inspectbus train ./parts --model gearbox --epochs 12

  inspectbus train elpv --depth whole --input-size 300 --views 4    every layer from pixels: better, and half an hour

  inspectbus train ./parts --depth whole --no-turns --light 0.1     parts that have an up, under lamps that age

  inspectbus train ./parts --address 10.0.0.5:50054      on the plant's training service, which has the folder

DATA is 'elpv' or a folder with one folder per class (good/ and defective/, ok_front/ and def_front/, ...), perhaps
inside train/ and test/, perhaps with a manifest.csv or manifest.jsonl, or in MVTec AD's layout. A held-out part is
never trained on: see `inspectbus evaluate`. A default in parentheses is the training service's, whose settings
(INSPECTBUS_TRAINING_EPOCHS and so on) may say otherwise.

A version whose validation scores are worse than production's beyond the 95 % interval is registered, and production
stays."""

EVALUATE_EXAMPLES = """Examples:

  inspectbus evaluate elpv

  inspectbus evaluate ./parts --model gearbox --version 0f3a5c1d2e4b6a78 --json"""

AUGMENTATION = "How images are varied"


class Depth(StrEnum):
    UPPER = "upper"
    WHOLE = "whole"


class Precision(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


Backbone = Annotated[
    str, typer.Option(show_default="tf_efficientnet_lite0", help="A timm or torchvision architecture.")
]


def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help="'elpv', or a folder of labelled images.")],
    model: Annotated[str, typer.Option(help="Name of the model; by default the data's.")] = "",
    backbone: Backbone = "",
    epochs: Annotated[
        int | None,
        typer.Option(min=1, show_default="7, or 14 with --depth whole", help="Early stopping may end sooner."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default="0", help="Of cuts, first weights and order.")] = None,
    input_size: Annotated[
        int | None, typer.Option(min=32, max=2048, show_default="224", help="Side of the input, pixels.")
    ] = None,
    depth: Annotated[
        Depth | None,
        typer.Option(show_default="upper", help="upper: minutes. whole: every layer learns, longer and better."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, show_default="32, or 16 with --depth whole", help="Images per step.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="auto measures which is quicker.")] = Precision.AUTO,
    views: Annotated[int, typer.Option(metavar="<1|2|4>", help="Flips of an image that judge it on the line.")] = 1,
    dropout: Annotated[
        float, typer.Option(min=0, max=1, help="Share of features hidden while learning; below 1.")
    ] = 0.5,
    flips: Annotated[
        bool, typer.Option("--flips/--no-flips", help="Mirror images.", rich_help_panel=AUGMENTATION)
    ] = True,
    turns: Annotated[
        bool,
        typer.Option(
            "--turns/--no-turns", help="Right angles; not for parts with an up.", rich_help_panel=AUGMENTATION
        ),
    ] = True,
    light: Annotated[
        float, typer.Option(min=0, max=0.9, help="Brightness, contrast: share, at most.", rich_help_panel=AUGMENTATION)
    ] = 0.0,
    blur: Annotated[float, typer.Option(min=0, help="Sigma in pixels, at most.", rich_help_panel=AUGMENTATION)] = 0.0,
    noise: Annotated[
        float, typer.Option(min=0, max=100, help="Deviation in grey levels, at most.", rich_help_panel=AUGMENTATION)
    ] = 0.0,
    perspective: Annotated[
        float, typer.Option(min=0, max=0.25, help="Corners move: share of the side.", rich_help_panel=AUGMENTATION)
    ] = 0.0,
    state: State = DEFAULT_STATE,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="A running training service; without one, this process trains.")
    ] = "",
) -> None:
    """Train a model version, and put it into production unless the one there is better beyond doubt."""
    from inspectbus.cli.training import own_data, training_door, watched
    from inspectbus.runtime.signals import stop_on_signals
    from inspectbus_client import Augmentation

    console = results_console()
    with stop_on_signals() as stop, training_door(state, data, address) as client:
        job = client.train(
            # A service elsewhere knows its own folders, and the word goes to it as it is.
            data if address else own_data(data),
            model=model,
            backbone=backbone,
            epochs=epochs or 0,
            seed=seed,
            input_size=input_size or 0,
            depth=depth or "",
            batch=batch or 0,
            precision=precision,
            views=views,
            dropout=dropout,
            augmentation=Augmentation(flips, turns, light, blur, noise, perspective),
            # A plant's training may be somebody else's, who would not have it end with this command.
            join=not address,
        )
        watched(console, client, job, stop)


def evaluate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="'elpv', or a folder of labelled images.")],
    model: Annotated[str, typer.Option(help="Name of the model; by default the data's.")] = "",
    version: Annotated[str, typer.Option(help="A version; by default the one in production.")] = "",
    state: State = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Scores of a model version on the held-out part of a data set, all of it."""
    from rich.console import Console

    from inspectbus.cli.live import stage_bar
    from inspectbus.cli.training import training_door
    from inspectbus.domain.model_version import PRODUCTION
    from inspectbus.domain.names import name_from
    from inspectbus.stores.datasets import open_dataset, split
    from inspectbus.stores.datasets.check import check_files, check_marks
    from inspectbus.stores.models import ModelStore, default_url
    from inspectbus.training.evaluation import evaluate as evaluated
    from inspectbus.training.overlap import overlap
    from inspectbus.training.settings import TrainingSettings

    parts = split(check_marks(check_files(open_dataset(data))))
    held_out = parts.held_out
    with training_door(state, data, takes_jobs=False) as client:
        name = model or name_from(held_out.name)
        found = client.model(name, version=version) if version else client.model(name, alias=PRODUCTION)
    store = TrainingSettings.load(state_dir=state).model_store_url or default_url(state)
    folder = ModelStore(store, state / "model-cache").fetch(found.name, found.version)
    met = overlap(folder, parts)
    if met.warning:
        typer.echo(f"warning: {met.warning}", err=True)
    with stage_bar(Console(stderr=True)) as show:
        result = evaluated(folder, held_out.items, on_progress=lambda done, total: show("evaluating", done, total, ""))
    confusion, thresholds = result.confusion, result.thresholds
    if as_json:
        facts = {
            "model": result.model,
            "version": result.version,
            "threshold": thresholds.defective_from,
            "qualified_below": thresholds.qualified_below,
            **result.scores,
        }
        export = vars(result.export) if result.export is not None else None
        counts = {"confusion": vars(confusion), "unreadable": result.unreadable, "images": held_out.words}
        json_line({**facts, **counts, "export": export, "overlap": vars(met)})
        return
    table(("score", "value"), list(result.scores.items()))
    print_line(
        f"{result.model}/{result.version} at {thresholds}: TP {confusion.true_positives}, "
        f"FP {confusion.false_positives}, TN {confusion.true_negatives}, FN {confusion.false_negatives}, "
        f"held {confusion.held_defective + confusion.held_good}; "
        f"{held_out.words}"
    )
    if result.export is not None:
        same = "every verdict the same" if not result.export.differing else f"{result.export.differing} verdicts differ"
        print_line(
            f"model.onnx on the same {result.export.images} images: scores differ by at most "
            f"{result.export.largest:.1g}, {same}"
        )
