"""YAML as people write it by hand: recipes and plant files. Whatever only a trick or a slip would need is refused.

text ─> no anchors, no explicit tags, no repeated or unnamed keys, not deep ─> mapping

Words and numbers are YAML 1.2's (its core schema): `off` is a word and no 0, 1:30 no 90, 010 no 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from inspectbus.errors import BadField

MAX_CHARS = 64 * 1024
"""A recipe or a plant is a few pages; anything longer is a mistake."""
MAX_DEPTH = 20
"""Lists within lists; a camera matrix in a recipe needs five. Bounds the parser's time and stack."""


def read_mapping(text: str, what: str) -> dict[str, Any]:
    """The mapping in `text`, empty when there is none; `what` names it in errors: "a recipe".

    Raises BadField saying what is wrong and in which line.
    """
    if len(text) > MAX_CHARS:
        raise BadField(f"{what} has at most {MAX_CHARS} characters, this one has {len(text)}", field="yaml")
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader, and stricter
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number too long
        raise BadField(f"{what} is not valid YAML: {_words(error)}", field="yaml") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadField(f"{what} must be a mapping of names to values", field="yaml")
    return content


def written(content: Mapping[str, Any], **how: Any) -> str:
    """Text that `read_mapping`, and any other reader of YAML, takes for the same. `how`: as `yaml.dump` has it."""
    text: str = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, **how)
    return text


def _words(error: Exception) -> str:
    """What is wrong, and where. Not the line itself, as the library would show it: a password may stand in it."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call] # its stubs leave it so
        if event.anchor is not None:
            # They let a few lines stand for gigabytes.
            raise yaml.YAMLError(f"anchors and aliases may not be used{event.start_mark}")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags such as !!float may not be used{event.start_mark}")
        if self._depth == MAX_DEPTH:
            raise yaml.YAMLError(f"nested too deeply{event.start_mark}")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.YAMLError(f"a key must be a name{key.start_mark}")
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} stands twice{key.start_mark}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what is no word by YAML 1.1 either: others may read it."""


# YAML 1.2.2, 10.3.2. No sign of one kind begins two of them but a number's, whose integers are looked for first.
_Loader.yaml_implicit_resolvers = {}
for _kind, _form, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_form})\\Z"), _first)
