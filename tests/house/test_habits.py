"""Habits of the house that a reviewer should not have to look for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
API = ROOT / "services" / "inspectbus" / "api"
FILES = [
    path
    for folder in ("services", "clients")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if API not in path.parents and ".egg-info" not in str(path)
]


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [
        f"{names(path)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if later.search(line)
    ]
    assert found == []


def test_no_pickle_is_ever_loaded() -> None:
    """Neither by name nor through a library's loader that unpickles unless told otherwise."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if any(unpickles(node)):
                found.append(f"{names(path)}:{getattr(node, 'lineno', 0)}")
    assert found == []


UNPICKLERS = {"cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
PICKLE_ERRORS = {"PickleError", "PicklingError", "UnpicklingError"}
"""What may be used of pickle itself: its errors come out of loaders that refuse to unpickle."""


def unpickles(node: ast.AST) -> Iterator[bool]:
    if isinstance(node, ast.Import):
        yield any(
            alias.name.split(".")[0] in UNPICKLERS or (alias.asname and alias.name == "pickle") for alias in node.names
        )
    elif isinstance(node, ast.ImportFrom):
        yield (node.module or "").split(".")[0] in UNPICKLERS
        yield node.module == "pickle" and any(alias.name not in PICKLE_ERRORS for alias in node.names)
    elif isinstance(node, ast.Attribute):
        yield isinstance(node.value, ast.Name) and node.value.id == "pickle" and node.attr not in PICKLE_ERRORS
    elif isinstance(node, ast.Call):
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        yield ast.unparse(node.func) == "torch.load" and told.get("weights_only") != "True"
        yield told.get("allow_pickle", "False") != "False"


def test_a_broad_except_gives_its_reason() -> None:
    """`except Exception` (or wider) has a comment on its line or the next: what it guards, and why so much."""
    found = []
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)
            reasoned = any("#" in line for line in lines[node.lineno - 2 : node.body[0].lineno])
            if broad and not reasoned:
                found.append(f"{names(path)}:{node.lineno}")
    assert found == []


def test_every_module_says_what_flows_through_it() -> None:
    silent = [
        names(path)
        for path in FILES
        if path.read_text(encoding="utf-8").strip() and ast.get_docstring(ast.parse(path.read_text("utf-8"))) is None
    ]
    assert silent == []


@pytest.mark.parametrize("word", ["utils", "util", "common", "helpers", "misc", "shared"])
def test_no_room_is_called_by_a_word_that_says_nothing(word: str) -> None:
    assert [names(path) for path in FILES if word in path.with_suffix("").parts[len(ROOT.parts) :]] == []
