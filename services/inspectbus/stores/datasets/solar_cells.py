"""ELPV: 2,624 solar cells as their package has them. Its files are read, its code is not run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from inspectbus.errors import BadField
from inspectbus.stores.datasets.items import Item, Label


def solar_cells() -> tuple[Path, list[Item]]:
    """The package's folder of data and its items, defective where at least as likely so as not.

    Raises BadField saying how to install it, or what cannot be read.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise BadField(
            "the data set 'elpv' is not installed; it comes with the extra 'demo': pip install 'inspectbus[demo]'",
            field="data",
        )
    root = Path(spec.submodule_search_locations[0]) / "data"
    items = []
    try:
        for line in (root / "labels.csv").read_text(encoding="utf-8").splitlines():
            name, probability, kind = line.split()
            label = Label.DEFECTIVE if float(probability) >= 0.5 else Label.GOOD
            items.append(Item(name, root / name, label, probability=float(probability), kind=kind))
    except (OSError, ValueError) as error:
        raise BadField(f"{root / 'labels.csv'} is unreadable: {error}", field="data") from None
    return root, items
