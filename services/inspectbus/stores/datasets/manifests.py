"""The items a manifest names: they and no others are the data set.

    manifest.csv     a header, then one row an image
    manifest.jsonl   one JSON object a line

Fields are file, label, split, group, lot, kind, mask, probability; all but file may be left out or empty. Label and
split are then taken from the folders the file lies in, and the label at last from the probability. Paths are relative
to the manifest's folder. Other fields are left alone, unless they look like one of these misspelt.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from inspectbus.errors import BadField
from inspectbus.stores.datasets import items as limits
from inspectbus.stores.datasets.class_names import CLASS_NAMES, HALVES, class_words, meant, plain
from inspectbus.stores.datasets.items import IMAGE_SUFFIXES, Item, Label, both_classes, bounded

MANIFEST = "manifest.csv"
JSON_LINES = "manifest.jsonl"
FIELDS = ("file", "label", "split", "group", "lot", "kind", "mask", "probability")
SURE = 0.5
"""An item nobody gave a label is defective where it is at least as likely so as not."""

Row = dict[str, str]


def manifest_of(root: Path) -> Path | None:
    """The folder's manifest, if it has one. Raises BadField when it has two."""
    found = [root / name for name in (MANIFEST, JSON_LINES) if (root / name).is_file()]
    if len(found) > 1:
        raise BadField(f"{root} has both {MANIFEST} and {JSON_LINES}; keep one of them", field=JSON_LINES)
    return found[0] if found else None


def listed_in(manifest: Path) -> list[Item]:
    """Items in the order of their names. Raises BadField naming the line that is wrong."""
    rows = _csv_rows(manifest) if manifest.name == MANIFEST else _json_rows(manifest)
    items: list[Item] = []
    try:
        if manifest.stat().st_size > limits.MAX_FILE_BYTES:
            raise BadField(f"{manifest} has more than {limits.MAX_FILE_BYTES} bytes", field=manifest.name)
        for where, row in rows:
            items.append(_item(manifest.parent, row, where))
            bounded(len(items), manifest.parent)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadField(f"{manifest} is unreadable: {error}", field=manifest.name) from None
    if not items:
        raise BadField(f"{manifest} names no images", field=manifest.name)
    if repeated := [name for name, times in Counter(item.name for item in items).items() if times > 1]:
        raise BadField(f"{manifest} names {repeated[0]} more than once", field=manifest.name)
    if any(item.label for item in items):
        both_classes(items, str(manifest))
    return sorted(items, key=lambda item: item.name)


def _csv_rows(manifest: Path) -> Iterator[tuple[str, Row]]:
    with manifest.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        if "file" not in (table.fieldnames or ()):
            raise BadField(f"{manifest} has no column 'file'", field=MANIFEST)
        _spelt(tuple(table.fieldnames or ()), str(manifest))
        for row in table:
            where = f"{manifest}, line {table.line_num}"
            if None in row:
                raise BadField(f"{where} has more cells than the header", field=MANIFEST)
            yield where, {name: value or "" for name, value in row.items()}


def _json_rows(manifest: Path) -> Iterator[tuple[str, Row]]:
    with manifest.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{manifest}, line {number}"
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadField(f"{where} is no JSON: {error}", field=JSON_LINES) from None
            if not isinstance(found, dict) or "file" not in found:
                raise BadField(f"{where} is no JSON object with a field 'file'", field=JSON_LINES)
            _spelt(tuple(found), where)
            yield where, {name: _text(value, name, where) for name, value in found.items() if name in FIELDS}


def _text(value: Any, name: str, where: str) -> str:
    """As the cell of a CSV file would have it."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadField(f"{where}: {name} is {json.dumps(value)[:80]}, neither text nor a number", field=name)
    return str(value)


def _spelt(names: tuple[str, ...], where: str) -> None:
    """A misspelt 'gruop' would silently put one part on both sides of a cut."""
    if wrong := _misspelt(names):
        raise BadField(f"{where}: there is no field {wrong[0]!r}{wrong[1]}", field=wrong[0])


@lru_cache(maxsize=64)  # a hundred thousand lines have the same few fields
def _misspelt(names: tuple[str, ...]) -> tuple[str, str] | None:
    """A field that is none, and the one probably meant. A 'slot' is no lot: first letters are rarely wrong."""
    for name in names:
        missing = [each for each in FIELDS if each not in names and each[0] == name[:1].casefold()]
        if name not in FIELDS and (hint := meant(name, missing)):
            return name, hint
    return None


def _item(root: Path, row: Row, where: str) -> Item:
    name, path = _inside(root, row["file"], "file", where)
    # A column left out, or empty, leaves it to the folders the file lies in.
    folders = [plain(part) for part in name.parts[:-1]]
    half_word = plain(row.get("split", "")) or next((part for part in folders if part in HALVES), "")
    label_word = plain(row.get("label", "")) or next((part for part in folders if part in CLASS_NAMES), "")
    if half_word and half_word not in HALVES:
        hint = meant(half_word, HALVES)
        raise BadField(f"{where}: split {row['split']!r} is none of {', '.join(sorted(HALVES))}{hint}", field="split")
    if label_word and label_word not in CLASS_NAMES:
        hint = meant(label_word, CLASS_NAMES)
        raise BadField(f"{where}: label {row['label']!r} names no class{hint}; {class_words()}", field="label")
    probability = _probability(row.get("probability", ""), where)
    label = CLASS_NAMES.get(label_word)
    if label is None and probability is not None:
        label = Label.DEFECTIVE if probability >= SURE else Label.GOOD
    return Item(
        str(name),
        path,
        label,
        group=row.get("group") or None,
        probability=probability,
        kind=row.get("kind") or None,
        half=HALVES.get(half_word),
        lot=row.get("lot") or None,
        mask=_inside(root, row["mask"], "mask", where)[1] if row.get("mask") else None,
    )


def _inside(root: Path, text: str, field: str, where: str) -> tuple[PurePosixPath, Path]:
    """Of an image file inside the data set: its name there, and where it lies."""
    name = PurePosixPath(text.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in text:
        raise BadField(f"{where}: {field} {text[:200]!r} must be a path inside the data set", field=field)
    path = root / name
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise BadField(f"{where}: {field} {name} is no image file; known are {known}", field=field)
    if not path.is_file():
        raise BadField(f"{where}: {field}: there is no file {path}", field=field)
    return name, path


def _probability(text: str, where: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise BadField(f"{where}: probability {text!r} is no number from 0 to 1", field="probability")
    return value
