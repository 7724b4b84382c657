"""Names of lines, stations, recipes and models: what may be one, and who refuses the rest."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

from inspectbus.errors import BadField

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}\Z"
"""Safe as a routing-key word, a Kubernetes label and a folder name; `\\Z` because `$` would let a line feed pass."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", max_length=63)]
"""A name inside a pydantic model (its regular expressions know no line-feed exception)."""


def checked_name(value: str, field: str) -> str:
    """The value, when it is a name. Raises BadField naming the field otherwise."""
    if not re.match(NAME_PATTERN, value):
        raise BadField(
            f"{value[:80]!r} is not a name: use lower-case letters, digits and '-', at most 63, "
            "beginning with a letter or digit",
            field=field,
        )
    return value


def name_from(text: str) -> str:
    """The nearest name to a free text such as a folder's: 'My Parts_2' becomes 'my-parts-2'."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:63].rstrip("-") or "unnamed"
