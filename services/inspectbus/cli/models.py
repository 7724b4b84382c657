"""`inspectbus models`: which versions there are, what points at them, how good they were."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from inspectbus.cli.doors import ModelsAddress, client_of
from inspectbus.cli.printing import AsJson, json_line, table, time_of_day

EXAMPLES = """Examples:

  inspectbus models

  inspectbus models elpv --json | head -1"""

SCORES = ("f1", "precision", "recall", "average_precision")
"""As the model card spells them; on the validation part, at the version's own threshold."""


def models(
    name: Annotated[str, typer.Argument(help="Only versions of this name.")] = "",
    as_json: AsJson = False,
    address: ModelsAddress = None,
) -> None:
    """List model versions, newest first, with their aliases and validation scores."""
    with client_of("training", address) as client:
        found = client.models(name)
    if as_json:
        for model in found:
            fields = asdict(model)
            del fields["card_json"]
            json_line({**fields, "card": model.card})
        return
    rows = []
    for model in found:
        card = model.card
        scores = [card.get("validation_scores", {}).get(score) for score in SCORES]
        rows.append(
            (
                model.name,
                model.version,
                ", ".join(model.aliases),
                *scores,
                card.get("threshold"),
                time_of_day(model.registered_at),
            )
        )
    table(("name", "version", "aliases", *SCORES, "threshold", "registered"), rows)
