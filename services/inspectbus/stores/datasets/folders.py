"""Items from the folders they lie in: two classes, in halves or not, or bare images."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal

from inspectbus.errors import BadField
from inspectbus.stores.datasets import items as limits
from inspectbus.stores.datasets.class_names import BESIDE, CLASS_NAMES, HALVES, class_words, meant, plain
from inspectbus.stores.datasets.items import IMAGE_SUFFIXES, Item, both_classes, bounded, folders_in, images_in


def found_in(root: Path) -> list[Item]:
    """The items in class folders, in halves or not, or the bare images of one folder.

    Raises BadField naming the folder that fits nowhere, and the name it was probably meant to have.
    """
    halves = [(HALVES[plain(sub.name)], sub) for sub in folders_in(root) if plain(sub.name) in HALVES]
    if not halves:
        return _classes(root, root, None, bare=True)
    strangers = [sub.name for sub in folders_in(root) if plain(sub.name) not in {*HALVES, *BESIDE}]
    if strangers or any(images_in(root, deep=False)):
        what = f"{strangers[0]}/{meant(strangers[0], HALVES)}" if strangers else "images"
        raise BadField(
            f"{root} has, beside {halves[0][1].name}/, {what}; "
            "either everything lies in train and test folders, or nothing",
            field="data",
        )
    items = [item for half, folder in halves for item in _classes(root, folder, half, bare=False)]
    bounded(len(items), root)
    return items


def images_of(root: Path, folder: Path) -> list[Path]:
    """Every image below a class folder. Raises BadField when there is none, or there are more than a set may have."""
    paths = list(islice(images_in(folder, deep=True), limits.MAX_IMAGES + 1))
    if not paths:
        raise BadField(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})", field="data")
    bounded(len(paths), root)
    return paths


def _classes(root: Path, folder: Path, half: Literal["train", "test"] | None, *, bare: bool) -> list[Item]:
    """The items of one folder of class folders; of a folder of images without labels when `bare` allows it."""
    loose = list(islice(images_in(folder, deep=False), limits.MAX_IMAGES + 1))
    known = [(CLASS_NAMES[plain(sub.name)], sub) for sub in folders_in(folder) if plain(sub.name) in CLASS_NAMES]
    unknown = [
        sub
        for sub in folders_in(folder)
        if plain(sub.name) not in {*CLASS_NAMES, *BESIDE} and any(images_in(sub, deep=True))
    ]
    if unknown and (known or not loose):
        hint = meant(unknown[0].name, CLASS_NAMES if half else [*CLASS_NAMES, *HALVES])
        raise BadField(f"{unknown[0]} names no class{hint}; {class_words()}", field="data")
    if known and loose:
        raise BadField(f"{loose[0]} lies beside the class folders, so nobody knows its label", field="data")
    if not known and loose and bare:
        bounded(len(loose), root)
        return [Item(path.relative_to(root).as_posix(), path, None) for path in loose]
    items: list[Item] = []
    for label, sub in known:
        for path in images_of(root, sub):
            within = path.relative_to(sub).parts
            kind = within[0] if len(within) > 1 else None
            items.append(Item(path.relative_to(root).as_posix(), path, label, kind=kind, half=half))
        bounded(len(items), root)
    if not items:
        raise BadField(f"no images in {folder}; {class_words()}", field="data")
    both_classes(items, str(folder))
    return items
