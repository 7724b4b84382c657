"""Has every station its recipe, and does it ask for a model that inference can load? Asked at the owners' doors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inspectbus.channels import NO_ACCESS, Access
from inspectbus.doctor.finding import Finding, State
from inspectbus.errors import NotFound, TooLate, Unreachable

if TYPE_CHECKING:
    from inspectbus_client import Client

PATIENCE_S = 4.0


def look_at_recipes(
    wanted: Mapping[str, Sequence[str]],
    model: str,
    alias: str,
    address: str,
    models_address: str,
    access: Access = NO_ACCESS,
) -> list[Finding]:
    """`wanted` is who names each recipe; `model`@`alias` is what inference loads first, other models when a frame asks.

    Without a `models_address` the one is all it ever has. Raises InspectBusError.
    """
    from inspectbus.domain.recipe import Recipe
    from inspectbus_client import Client

    found = []
    doors = {"preprocessing": address} | ({"training": models_address} if models_address else {})
    with Client.connect(doors, timeout_s=PATIENCE_S, access=access) as client:
        for name, askers in wanted.items():
            about, named_by = f"recipe {name}", ", ".join(askers)
            try:
                recipe = Recipe.from_yaml(client.recipe(name).yaml)
            except NotFound:
                says = f"is not there, and {named_by} names it: store it with `inspectbus recipes put {name}.yaml`"
                found.append(Finding(about, State.FAIL, says))
                continue
            except (Unreachable, TooLate):
                says = f"cannot be looked at: preprocessing does not answer at {address}"
                return [*found, Finding("recipes", State.WARN, says)]
            if recipe.model == model and (recipe.model_alias == alias or not models_address):
                found.append(Finding(about, State.OK, f"asks for model {model}, as inference is set to"))
            elif models_address:
                found.append(_look_at_other(client, about, recipe.model, recipe.model_alias, named_by))
            else:
                says = (
                    f"asks for model {recipe.model}, inference is set to {model}, and frames of {named_by} are held: "
                    f"change the recipe and `inspectbus recipes put {name}.yaml`, or set inference.model"
                )
                found.append(Finding(about, State.FAIL, says))
    return found


def _look_at_other(client: Client, about: str, model: str, alias: str, named_by: str) -> Finding:
    try:
        version = client.model(model, alias=alias).version
    except NotFound:
        says = f"asks for {model}@{alias}, which names no version, and frames of {named_by} are held: train one"
        return Finding(about, State.FAIL, says)
    except (Unreachable, TooLate):
        return Finding(about, State.WARN, f"asks for {model}@{alias}, and nobody says which version that is")
    return Finding(about, State.OK, f"asks for {model}@{alias}, version {version}, loaded when its first frame comes")
