"""`inspectbus train` and `inspectbus evaluate`: what may be asked of them."""

from __future__ import annotations

from typing import Annotated

import typer

from inspectbus.cli.printing import AsJson, json_line, print_line, table
from inspectbus.cli.printing import console as results_console
from inspectbus.cli.state import DEFAULT_STATE, State

TRAIN_EXAMPLES = """Examples:

  inspectbus train elpv

  inspectbus train ./parts --model gearbox --epochs 12

  inspectbus train ./parts --address 10.0.0.5:50054      on the plant's training service, which has the folder

DATA is 'elpv' or a folder with one folder per class (good/ and defective/, ok_front/ and def_front/, ...), perhaps
inside train/ and test/, perhaps with a manifest.csv. A held-out part is never trained on: see `inspectbus evaluate`."""

EVALUATE_EXAMPLES = """Examples:

  inspectbus evaluate elpv

  inspectbus evaluate ./parts --model gearbox --version 0f3a5c1d2e4b6a78 --json"""


def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help="'elpv', or a folder of labelled images.")],
    model: Annotated[str, typer.Option(help="Name of the model; by default the data's.")] = "",
    backbone: Annotated[str, typer.Option(help="A timm or torchvision architecture.")] = "",
    epochs: Annotated[int, typer.Option(min=0, help="0 is the default.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    input_size: Annotated[int, typer.Option(min=0, help="Side of the input, pixels; 0 is the default.")] = 0,
    state: State = DEFAULT_STATE,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="A running training service; without one, this process trains.")
    ] = "",
) -> None:
    """Train a model version and put it into production."""
    from inspectbus.cli.training import own_data, train_and_watch, training_door
    from inspectbus.runtime.signals import stop_on_signals

    console = results_console()
    with stop_on_signals() as stop, training_door(state, data, address) as client:
        train_and_watch(
            console,
            client,
            # A service elsewhere knows its own folders, and the word goes to it as it is.
            data=data if address else own_data(data),
            model=model,
            backbone=backbone,
            epochs=epochs,
            seed=seed,
            input_size=input_size,
            stop=stop,
        )


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
    from inspectbus.stores.models import ModelStore, default_url
    from inspectbus.training.evaluation import evaluate as evaluated
    from inspectbus.training.settings import TrainingSettings

    held_out = split(open_dataset(data)).held_out
    with training_door(state, data, "") as client:
        name = model or name_from(held_out.name)
        found = client.model(name, version=version) if version else client.model(name, alias=PRODUCTION)
    store = TrainingSettings.load(state_dir=state).model_store_url or default_url(state)
    folder = ModelStore(store, state / "model-cache").fetch(found.name, found.version)
    with stage_bar(Console(stderr=True)) as show:
        result = evaluated(folder, held_out.items, on_progress=lambda done, total: show("evaluating", done, total, ""))
    confusion = result.confusion
    if as_json:
        facts = {"model": result.model, "version": result.version, "threshold": result.threshold, **result.scores}
        json_line({**facts, "confusion": vars(confusion), "unreadable": result.unreadable, "images": held_out.words})
        return
    table(("score", "value"), list(result.scores.items()))
    print_line(
        f"{result.model}/{result.version} at threshold {result.threshold:.3f}: TP {confusion.true_positives}, "
        f"FP {confusion.false_positives}, TN {confusion.true_negatives}, FN {confusion.false_negatives}; "
        f"{held_out.words}"
    )
