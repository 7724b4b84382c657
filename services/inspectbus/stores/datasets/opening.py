"""What a caller names becomes a data set: "elpv", or the folder in whichever layout it is."""

from __future__ import annotations

from pathlib import Path

from inspectbus.errors import BadField
from inspectbus.stores.datasets.folders import found_in
from inspectbus.stores.datasets.items import Dataset
from inspectbus.stores.datasets.manifests import listed_in, manifest_of
from inspectbus.stores.datasets.mvtec import REMARK, is_mvtec, mvtec_items
from inspectbus.stores.datasets.solar_cells import solar_cells

ELPV = "elpv"


def open_dataset(spec: str) -> Dataset:
    """The data set "elpv", or the one in a folder. Raises BadField saying what is wrong with it and where."""
    if spec == ELPV:
        root, items = solar_cells()
        return Dataset(ELPV, tuple(items), root)
    root = Path(spec).expanduser()
    if not spec or not root.is_dir():
        raise BadField(f"{spec!r} is neither a folder nor the data set {ELPV!r}", field="data")
    name = root.resolve().name or "data"
    try:
        if manifest := manifest_of(root):
            return Dataset(name, tuple(listed_in(manifest)), root)
        if is_mvtec(root):
            return Dataset(name, tuple(mvtec_items(root)), root, remark=REMARK)
        return Dataset(name, tuple(found_in(root)), root)
    except OSError as error:
        raise BadField(f"{error.filename or root} cannot be looked into: {error.strerror}", field="data") from None
