"""Files: whatever is named as an image, a mask or a manifest must be one.

A pipe or a device would be waited for, for ever. And what a manifest says, its groups above all, must not be passed
over because it is a link that leads nowhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from inspectbus.errors import BadField
from inspectbus.stores.datasets.items import Dataset
from inspectbus.stores.datasets.manifests import JSON_LINES, MANIFEST

NO_FILE = "is no file, nor a link to one: mend it or take it away"


def check_spelling(path: Path) -> str:
    """The path in the letters that messages carry. Raises BadField for one that is not in UTF-8."""
    if (spelt := str(path).encode(errors="replace").decode()) != str(path):
        raise BadField(f"{spelt} is no path in UTF-8, which names of data sets are told in: rename it", field="data")
    return spelt


def is_odd(path: Path) -> bool:
    """It is there, and neither a file nor a link to one. What is missing is told by whoever reads it."""
    return path.exists() and not path.is_file()


def odd_manifest(dataset: Dataset) -> str:
    """The name of a manifest that was passed over because it cannot be read; empty where none was."""
    names = (name for name in (MANIFEST, JSON_LINES) if os.path.lexists(dataset.root / name))
    return next((name for name in names if not (dataset.root / name).is_file()), "")


def check_files(dataset: Dataset) -> Dataset:
    """The data set, for who is about to read it. Raises BadField naming the first that is no file."""
    if name := odd_manifest(dataset):
        raise BadField(f"{dataset.root / name} {NO_FILE}", field=name)
    for item in dataset.items:
        for path in filter(None, (item.path, item.mask)):
            if is_odd(path):
                raise BadField(f"{path} {NO_FILE}", field=item.name)
    return dataset
