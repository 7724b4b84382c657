"""Data sets: labelled images in folders, or a package of them, as items that know where their bytes are.

"elpv" | folder ─> open_dataset ─> Dataset ─> split ─┬─> train ─────> training, which takes its validation part by `cut`
                                                     └─> held_out ──> replay, evaluation

A folder is one of

    <root>/<class>/...                        two class folders; deeper folders name the kind of the item
    <root>/{train,test}/<class>/...           the same in two halves, which are kept
    <root>/manifest.csv                       the list of what belongs to it: columns file, label, split, group, kind
    <root>/*.png                              images without labels

`group` is the physical part: images of one part never stand on both sides of a cut.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

from inspectbus.errors import BadField, NotPossibleNow

ELPV = "elpv"
MANIFEST = "manifest.csv"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
HELD_OUT_SHARE = 0.25
SPLIT_SEED = 20260101
"""Fixed, so that the held-out part is the same whatever a training is seeded with."""
MAX_IMAGES = 100_000
"""More than a training of this size of network gains from; a wrong folder (a home, a disk) is met long before."""
MAX_FILE_BYTES = 256 * 1024 * 1024
"""A larger file is no photograph of a part; its size is looked at before it is read."""


class Label(StrEnum):
    """What a part really is. DEFECTIVE is the positive class."""

    GOOD = "good"
    DEFECTIVE = "defective"


CLASS_NAMES: dict[str, Label] = {
    **dict.fromkeys(("good", "ok", "ok-front", "pass", "passed", "normal", "non-defective", "qualified"), Label.GOOD),
    **dict.fromkeys(
        ("defective", "defect", "defects", "def", "def-front", "bad", "ng", "nok", "not-ok"), Label.DEFECTIVE
    ),
    **dict.fromkeys(("fail", "failed", "faulty", "broken", "damaged", "anomaly", "anomalous"), Label.DEFECTIVE),
}
"""What class folders may be called, in any case, with '_', '-' or a space between words."""
HALVES: dict[str, Literal["train", "test"]] = {
    **dict.fromkeys(("train", "training", "val", "valid", "validation"), "train"),
    **dict.fromkeys(("test", "testing", "held-out"), "test"),
}
BESIDE = frozenset({"mask", "masks", "ground-truth"})
"""Folders that source data sets keep beside the classes and that hold no photographs."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a data set."""

    name: str
    """Path inside the data set, with '/' between folders."""
    path: Path
    label: Label | None
    """None where nobody has said."""
    group: str | None = None
    """The physical part, where known."""
    probability: float | None = None
    """How sure the people were who labelled it that it is defective, 0 to 1, where the data set says so."""
    kind: str | None = None
    """Kind of part or of defect, where known."""
    half: Literal["train", "test"] | None = None
    """The half of the data set's own split, where it has one."""

    def read(self) -> bytes:
        """The encoded image. Raises BadField naming the file when it cannot be read."""
        try:
            size = self.path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise BadField(f"{self.path} has {size} bytes, at most {MAX_FILE_BYTES} are read", field=self.name)
            return self.path.read_bytes()
        except OSError as error:
            raise BadField(f"{self.path} cannot be read: {error.strerror}", field=self.name) from None


@dataclass(frozen=True)
class Dataset:
    """Items in a fixed order."""

    name: str
    items: tuple[Item, ...]
    root: Path
    words: str = "the whole data set"
    """How these items were taken from the whole."""

    @property
    def labelled(self) -> bool:
        return all(item.label for item in self.items)

    def count(self, label: Label) -> int:
        return sum(item.label is label for item in self.items)


@dataclass(frozen=True)
class Split:
    """The part a model may learn from, and the part it must never have seen."""

    train: Dataset
    held_out: Dataset


def open_dataset(spec: str) -> Dataset:
    """The data set "elpv", or the one in a folder. Raises BadField saying what is wrong with it and where."""
    if spec == ELPV:
        return _open_elpv()
    root = Path(spec).expanduser()
    if not spec or not root.is_dir():
        raise BadField(f"{spec!r} is neither a folder nor the data set {ELPV!r}", field="data")
    items = _listed(root) if (root / MANIFEST).is_file() else _found(root)
    return Dataset(root.resolve().name or "data", tuple(items), root)


def split(dataset: Dataset, share: float = HELD_OUT_SHARE, seed: int = SPLIT_SEED) -> Split:
    """Holds a part out: the data set's own test half if it has halves, else `share`, by group where groups are known.

    Both parts come mixed, so that a replay that ends early has met both classes. Raises BadField when a side would
    lack a class.
    """
    halves = {item.half for item in dataset.items}
    if not {"train", "test"} <= halves:
        train, held_out, words = cut(dataset.items, share, seed)
    else:
        train = _mixed((item for item in dataset.items if item.half != "test"), seed)
        held_out = _mixed((item for item in dataset.items if item.half == "test"), seed)
        words = "the data set's own train and test"
        if astride := {i.group for i in train if i.group} & {i.group for i in held_out if i.group}:
            words += f"; {len(astride)} groups stand on both sides"
    parts = Split(
        replace(dataset, items=tuple(train), words=f"train: {len(train)} of {words}"),
        replace(dataset, items=tuple(held_out), words=f"held out: {len(held_out)} of {words}"),
    )
    for side in (parts.train, parts.held_out):
        _both_classes(side.items, f"{dataset.name}, {side.words}")
    return parts


def cut(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item], str]:
    """The rest, a part of about `share`, and how it was cut, in words.

    Stratified by label, doubt and kind. No group stands on both sides. Raises BadField when items have no label, or
    are too few to give both sides both classes, NotPossibleNow where scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import train_test_split  # heavy, and a set with its own halves needs none of it
    except ModuleNotFoundError:
        raise NotPossibleNow("cutting a data set needs scikit-learn: pip install 'inspectbus[training]'") from None

    _both_classes(items, "the images to cut")
    if any(item.group for item in items):
        return _cut_by_group(items, share, seed)
    try:
        sides = train_test_split(range(len(items)), test_size=share, random_state=seed, stratify=_strata(items))
    except ValueError as error:
        raise BadField(f"{len(items)} images are too few to set {share:.0%} apart: {error}", field="data") from None
    rest, part = ([items[i] for i in side] for side in sides)
    for side in (rest, part):
        _both_classes(side, f"{len(side)} of {len(items)} images, cut {1 - share:.0%} to {share:.0%}")
    return rest, part, f"{1 - share:.0%} and {share:.0%}, stratified, seed {seed}"


def fingerprint(items: Iterable[Item]) -> str:
    """sha256 over every item's name, label and content, in the order of names; an unreadable file counts as empty."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda each: each.name):
        try:
            content = hashlib.sha256(item.read()).hexdigest()
        except BadField:
            content = ""
        # Neither separator can stand in the parts, so no two lists spell the same text.
        digest.update(f"{item.name}\0{item.label or ''}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _open_elpv() -> Dataset:
    """2,624 solar cells, defective where at least as likely so as not. Its files are read, its code is not run."""
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
    return Dataset(ELPV, tuple(items), root)


def _listed(root: Path) -> list[Item]:
    """The items a manifest names: they and no others are the data set."""
    manifest = root / MANIFEST
    items: list[Item] = []
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines)
            if "file" not in (table.fieldnames or ()):
                raise BadField(f"{manifest} has no column 'file'", field=MANIFEST)
            for row in table:
                items.append(_row(root, row, f"{manifest}, line {table.line_num}"))
                _bounded(len(items), root)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadField(f"{manifest} is unreadable: {error}", field=MANIFEST) from None
    if not items:
        raise BadField(f"{manifest} names no images", field=MANIFEST)
    if repeated := [name for name, times in Counter(item.name for item in items).items() if times > 1]:
        raise BadField(f"{manifest} names {repeated[0]} more than once", field=MANIFEST)
    if any(item.label for item in items):
        _both_classes(items, str(manifest))
    return sorted(items, key=lambda item: item.name)


def _row(root: Path, row: dict[str, str | None], where: str) -> Item:
    name = PurePosixPath((row["file"] or "").replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise BadField(f"{where}: file {str(name)!r} must be a path inside the data set", field="file")
    path = root / name
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise BadField(f"{where}: {name} is no image file; known are {', '.join(sorted(IMAGE_SUFFIXES))}", field="file")
    if not path.is_file():
        raise BadField(f"{where}: there is no file {path}", field="file")
    # A column left out, or empty, leaves it to the folders the file lies in.
    folders = [_plain(part) for part in name.parts[:-1]]
    half_word = _plain(row.get("split") or "") or next((part for part in folders if part in HALVES), "")
    label_word = _plain(row.get("label") or "") or next((part for part in folders if part in CLASS_NAMES), "")
    if half_word and half_word not in HALVES:
        raise BadField(f"{where}: split {row['split']!r} is none of {', '.join(sorted(HALVES))}", field="split")
    if label_word and label_word not in CLASS_NAMES:
        raise BadField(f"{where}: label {row['label']!r} names no class; {_class_words()}", field="label")
    return Item(
        str(name),
        path,
        CLASS_NAMES.get(label_word),
        group=row.get("group") or None,
        kind=row.get("kind") or None,
        half=HALVES.get(half_word),
    )


def _found(root: Path) -> list[Item]:
    """The items in class folders, in halves or not, or the bare images of one folder."""
    halves = [(HALVES[_plain(folder.name)], folder) for folder in _folders(root) if _plain(folder.name) in HALVES]
    if not halves:
        return _classes(root, root, None, bare=True)
    strangers = [folder.name for folder in _folders(root) if _plain(folder.name) not in {*HALVES, *BESIDE}]
    if strangers or any(_images(root, deep=False)):
        raise BadField(
            f"{root} has {strangers[0] + '/' if strangers else 'images'} beside {halves[0][1].name}/: "
            "either everything lies in train and test folders, or nothing",
            field="data",
        )
    items = [item for half, folder in halves for item in _classes(root, folder, half, bare=False)]
    _bounded(len(items), root)
    return items


def _classes(root: Path, folder: Path, half: Literal["train", "test"] | None, *, bare: bool) -> list[Item]:
    """The items of one folder of class folders; of a folder of images without labels when `bare` allows it."""
    loose = list(islice(_images(folder, deep=False), MAX_IMAGES + 1))
    known = [(CLASS_NAMES[_plain(sub.name)], sub) for sub in _folders(folder) if _plain(sub.name) in CLASS_NAMES]
    unknown = [
        sub
        for sub in _folders(folder)
        if _plain(sub.name) not in {*CLASS_NAMES, *BESIDE} and any(_images(sub, deep=True))
    ]
    if unknown and (known or not loose):
        raise BadField(f"{unknown[0]} names no class; {_class_words()}", field="data")
    if known and loose:
        raise BadField(f"{loose[0]} lies beside the class folders, so nobody knows its label", field="data")
    if not known and loose and bare:
        _bounded(len(loose), root)
        return [Item(path.relative_to(root).as_posix(), path, None) for path in loose]
    items: list[Item] = []
    for label, sub in known:
        paths = list(islice(_images(sub, deep=True), MAX_IMAGES + 1))
        if not paths:
            raise BadField(f"{sub} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})", field="data")
        for path in paths:
            within = path.relative_to(sub).parts
            kind = within[0] if len(within) > 1 else None
            items.append(Item(path.relative_to(root).as_posix(), path, label, kind=kind, half=half))
        _bounded(len(items), root)
    if not items:
        raise BadField(f"no images in {folder}; {_class_words()}", field="data")
    _both_classes(items, str(folder))
    return items


def _folders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _images(folder: Path, *, deep: bool) -> Iterator[Path]:
    """Visible image files in the order of their names; other files are none of our business."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if deep and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(here, name)


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]+", "-", word.strip()).casefold()


def _class_words() -> str:
    names = {label: [name for name, of in CLASS_NAMES.items() if of is label] for label in Label}
    return "; ".join(f"{label} parts are called {', '.join(names[label])}" for label in Label)


def _bounded(count: int, root: Path) -> None:
    if count > MAX_IMAGES:
        raise BadField(f"{root} has more than {MAX_IMAGES} images", field="data")


def _both_classes(items: Sequence[Item], where: str) -> None:
    counts = Counter(item.label for item in items)
    if nameless := counts[None]:
        raise BadField(f"{where}: {nameless} of {len(items)} images have no label", field="data")
    for label in Label:
        if not counts[label]:
            raise BadField(f"{where}: no {label} images among {len(items)}; both classes are needed", field="data")


def _mixed(items: Iterable[Item], seed: int) -> list[Item]:
    # By hash and not by a random generator: adding an image leaves the order of the others alone.
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}\0{item.name}".encode("utf-8", "replace")).digest())


def _strata(items: Sequence[Item]) -> list[str]:
    """What each side gets its share of: doubt, kind and label together; the label alone where too few are alike."""
    fine = [f"{item.probability or 0:.2f}{item.kind or ''}{item.label}" for item in items]
    return fine if min(Counter(fine).values()) >= 8 else [str(item.label) for item in items]


def _cut_by_group(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item], str]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [item.group or f"\0{item.name}" for item in items]
    labels = [str(item.label) for item in items]
    folds = max(2, round(1 / share))
    best: tuple[float, Sequence[int], Sequence[int]] | None = None
    # Whole groups rarely add up to the share, with both classes on both sides, at the first draw.
    for attempt in range(8 if len(set(groups)) >= folds else 0):
        cutter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "fewer members than folds": judged below, by what comes out
            try:
                drawn = list(cutter.split(groups, labels, groups))
            except ValueError:  # fewer images of either class than folds
                break
        for rest, part in drawn:
            if any(len({labels[i] for i in side}) < len(Label) for side in (rest, part)):
                continue
            miss = _miss(labels, part, share)
            if best is None or miss < best[0]:
                best = (miss, rest, part)
        if best and best[0] <= 0.05:
            break
    if best is None:
        raise BadField(
            f"{len(items)} images in {len(set(groups))} groups cannot be cut so that both sides have both classes and "
            "no group stands on both",
            field="data",
        )
    words = f"{1 - share:.0%} and {share:.0%} by group, stratified, seed {seed}"
    return _mixed((items[i] for i in best[1]), seed), _mixed((items[i] for i in best[2]), seed), words


def _miss(labels: Sequence[str], part: Iterable[int], share: float) -> float:
    """How far the worst served class lies from its share."""
    whole, taken = Counter(labels), Counter(labels[i] for i in part)
    return max(abs(taken[label] / whole[label] - share) for label in whole)
