"""MVTec AD's layout, made for detectors that learn from good parts alone.

    <root>/train/good/...                     test/good/...
    <root>/test/<kind>/<stem>.png             ground_truth/<kind>/<stem>_mask.png

Every folder of test/ but good holds defective parts, and its name is their kind. Since train/ has no defective image,
a classifier cannot be trained on it: the halves are not kept and the set is cut anew, stratified by kind. Scores on it
are therefore not comparable with those published for its own halves.

The layout is told by its ground_truth/ folder, in which each kind must be found: a misspelt test/godo would else
become a kind of defect. (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.)
"""

from __future__ import annotations

from pathlib import Path

from inspectbus.errors import BadField
from inspectbus.stores.datasets.class_names import CLASS_NAMES, GROUND_TRUTH, HALVES, meant, plain
from inspectbus.stores.datasets.folders import images_of
from inspectbus.stores.datasets.items import Item, Label, both_classes, bounded, folders_in

REMARK = "; MVTec AD's own halves are not kept, because no defective part is in train"


def is_mvtec(root: Path) -> bool:
    """True when there is a ground_truth folder and train holds good parts only."""
    halves = _halves(root)
    if not {"train", "test"} <= set(halves) or _ground_truth(root) is None:
        return False
    return [CLASS_NAMES.get(plain(sub.name)) for sub in folders_in(halves["train"])] == [Label.GOOD]


def mvtec_items(root: Path) -> list[Item]:
    """The items of both halves, defective ones with their kind and mask.

    Raises BadField naming the test folder without ground truth, or the image without its mask.
    """
    halves, truth = _halves(root), _ground_truth(root)
    assert truth is not None
    items: list[Item] = []
    for folder in [*folders_in(halves["train"]), *folders_in(halves["test"])]:
        good = CLASS_NAMES.get(plain(folder.name)) is Label.GOOD
        kind = None if good else folder.name
        if kind and not (truth / kind).is_dir():
            raise BadField(
                f"{folder} is no kind of defect, because {truth / kind} is missing{meant(kind, ['good'])}", field="data"
            )
        for path in images_of(root, folder):
            mask = truth / kind / f"{path.stem}_mask.png" if kind else None
            if mask and not mask.is_file():
                raise BadField(f"{path} has no mask: there is no file {mask}", field="data")
            name = path.relative_to(root).as_posix()
            items.append(Item(name, path, Label.GOOD if good else Label.DEFECTIVE, kind=kind, mask=mask))
        bounded(len(items), root)
    both_classes(items, str(root))
    return items


def _halves(root: Path) -> dict[str, Path]:
    return {HALVES[plain(sub.name)]: sub for sub in folders_in(root) if plain(sub.name) in HALVES}


def _ground_truth(root: Path) -> Path | None:
    return next((sub for sub in folders_in(root) if plain(sub.name) == GROUND_TRUTH), None)
