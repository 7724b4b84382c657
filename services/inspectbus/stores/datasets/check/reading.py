"""Every file of a data set is read once, and what the checks need of it is kept.

item ─> bytes ─> sha256 ─> picture ─> size, sketch ─> mask compared
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from inspectbus.errors import BadField
from inspectbus.imaging.decoding import decode
from inspectbus.stores.datasets.check.files import NO_FILE, is_odd
from inspectbus.stores.datasets.check.sketches import Sketch, sketch
from inspectbus.stores.datasets.items import Item, Label
from inspectbus.stores.datasets.masks import read_mask

READERS = min(4, os.cpu_count() or 1)
"""Threads. Each may hold a picture of the largest size, which is 600 MB while it is decoded."""
_WINDOW = 1024
"""Items handed to the readers at a time, so that what is done is told while more is read."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one item's file turned out to be."""

    item: Item
    content: str = ""
    """sha256 of the file; empty when it cannot be read."""
    width: int = 0
    height: int = 0
    """Pixels; 0 when the file is no picture."""
    sketch: Sketch | None = None
    trouble: str = ""
    """Why it is no picture."""
    mask_trouble: str = ""


def look_at_all(items: Sequence[Item], on_progress: Callable[[int, int], None]) -> Iterator[Look]:
    """One Look for each item, in their order. A file that cannot be read ends nothing."""
    done = 0
    with ThreadPoolExecutor(READERS, thread_name_prefix="data-check") as readers:
        for start in range(0, len(items), _WINDOW):
            for look in readers.map(_look, items[start : start + _WINDOW]):
                done += 1
                on_progress(done, len(items))
                yield look


def _look(item: Item) -> Look:
    content = ""
    if is_odd(item.path):
        return Look(item, trouble=f"{item.path} {NO_FILE}")
    try:
        data = item.read()
        content = hashlib.sha256(data).hexdigest()
        picture = decode(data)
    except BadField as error:
        return Look(item, content, trouble=error.message)
    height, width = picture.shape[:2]
    return Look(item, content, width, height, sketch(picture), mask_trouble=_mask_trouble(item, width, height))


def _mask_trouble(item: Item, width: int, height: int) -> str:
    if item.mask is None:
        return ""
    if is_odd(item.mask):
        return f"mask {item.mask} {NO_FILE}"
    try:
        marked = read_mask(item, width, height).any()
    except BadField as error:
        return error.message
    if not marked and item.label is Label.DEFECTIVE:
        return f"mask {item.mask} marks nothing, though its image {item.name} is defective"
    return ""
