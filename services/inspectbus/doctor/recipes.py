"""Has every station its recipe, and does it ask for the model that is loaded? Asked at preprocessing's door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inspectbus.channels import NO_ACCESS, Access
from inspectbus.doctor.finding import Finding, State
from inspectbus.errors import NotFound, TooLate, Unreachable

PATIENCE_S = 4.0


def look_at_recipes(
    wanted: Mapping[str, Sequence[str]], model: str, address: str, access: Access = NO_ACCESS
) -> list[Finding]:
    """`wanted` is who names each recipe; `model` is what inference judges with. Raises InspectBusError."""
    from inspectbus.domain.recipe import Recipe
    from inspectbus_client import Client

    found = []
    with Client.connect({"preprocessing": address}, timeout_s=PATIENCE_S, access=access) as client:
        for name, askers in wanted.items():
            about, named_by = f"recipe {name}", ", ".join(askers)
            try:
                asked = Recipe.from_yaml(client.recipe(name).yaml).model
            except NotFound:
                says = f"is not there, and {named_by} names it: store it with `inspectbus recipes put {name}.yaml`"
                found.append(Finding(about, State.FAIL, says))
                continue
            except (Unreachable, TooLate):
                says = f"cannot be looked at: preprocessing does not answer at {address}"
                return [*found, Finding("recipes", State.WARN, says)]
            if asked == model:
                found.append(Finding(about, State.OK, f"asks for model {model}, as inference is set to"))
                continue
            says = (
                f"asks for model {asked}, inference is set to {model}, and frames of {named_by} are held: change the "
                f"recipe and `inspectbus recipes put {name}.yaml`, or set inference.model"
            )
            found.append(Finding(about, State.FAIL, says))
    return found
