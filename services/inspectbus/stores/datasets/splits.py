"""Where a data set is cut in two: stratified, and never through a group.

items ─┬─ `split`: the held-out part, the same whatever a training is seeded with
       └─ `cut`: any other part, such as a training's validation images, by its seed
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.stores.datasets.items import Dataset, Item, Label, both_classes

HELD_OUT_SHARE = 0.25
SPLIT_SEED = 20260101
"""Fixed, so that the held-out part is the same whatever a training is seeded with."""


@dataclass(frozen=True)
class Split:
    """The part a model may learn from, and the part it must never have seen."""

    train: Dataset
    held_out: Dataset


def split(dataset: Dataset, share: float = HELD_OUT_SHARE, seed: int = SPLIT_SEED) -> Split:
    """Holds a part out: the data set's own test half if it has halves, else `share`, by group where groups are known.

    Both parts come mixed, so that a replay that ends early has met both classes. Raises BadField when a side would
    lack a class, or when the set's own halves have a group on both sides, naming the group and its files.
    """
    halves = {item.half for item in dataset.items}
    if not {"train", "test"} <= halves:
        train, held_out, words = cut(dataset.items, share, seed)
    else:
        train = _mixed((item for item in dataset.items if item.half != "test"), seed)
        held_out = _mixed((item for item in dataset.items if item.half == "test"), seed)
        words = "the data set's own train and test"
        _none_astride(train, held_out)
    words += dataset.remark
    parts = Split(
        replace(dataset, items=tuple(train), words=f"train: {len(train)} of {words}"),
        replace(dataset, items=tuple(held_out), words=f"held out: {len(held_out)} of {words}"),
    )
    for side in (parts.train, parts.held_out):
        both_classes(side.items, f"{dataset.name}, {side.words}")
    return parts


def cut(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item], str]:
    """The rest, a part of about `share`, and how it was cut, in words.

    Stratified by label, doubt and kind; by label alone where groups are kept together. No group stands on both sides,
    and no lot whose items have no group: parts of one lot share tools, material and light, and the next lot is what a
    model meets. A lot that all items share tells nothing apart and is left aside.

    Raises BadField when items have no label, or are too few to give both sides both classes, NotPossibleNow where
    scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import train_test_split  # heavy, and a set with its own halves needs none of it
    except ModuleNotFoundError:
        raise NotPossibleNow("cutting a data set needs scikit-learn: pip install 'inspectbus[training]'") from None

    both_classes(items, "the images to cut")
    if any(units := _units(items)):
        return _cut_by_group(items, units, share, seed)
    try:
        sides = train_test_split(range(len(items)), test_size=share, random_state=seed, stratify=_strata(items))
    except ValueError:
        counts = " and ".join(f"{sum(item.label is label for item in items)} {label}" for label in Label)
        raise BadField(
            f"{counts} images are too few to set {share:.0%} apart with both classes on both sides", field="data"
        ) from None
    rest, part = ([items[i] for i in side] for side in sides)
    for side in (rest, part):
        both_classes(side, f"{len(side)} of {len(items)} images, cut {1 - share:.0%} to {share:.0%}")
    return rest, part, f"{1 - share:.0%} and {share:.0%}, stratified, seed {seed}"


def _none_astride(train: Sequence[Item], held_out: Sequence[Item]) -> None:
    first, second = (
        {item.group: item.name for item in sorted(side, key=lambda each: each.name, reverse=True) if item.group}
        for side in (train, held_out)
    )
    if astride := sorted(first.keys() & second.keys()):
        group = astride[0]
        more = f"; so do {len(astride) - 1} more groups" if len(astride) > 1 else ""
        raise BadField(
            f"group {group!r} stands on both sides of the data set's own split: {first[group]} in train, "
            f"{second[group]} in test{more}. Move each group to one half, or leave the halves out to have it cut anew",
            field="data",
        )


def _units(items: Sequence[Item]) -> list[str | None]:
    """What must stay together with others of its name, for each item; None where it may stand alone."""
    lots = {item.lot for item in items}
    return [
        f"group {item.group}" if item.group else f"lot {item.lot}" if item.lot and len(lots) > 1 else None
        for item in items
    ]


def _mixed(items: Iterable[Item], seed: int) -> list[Item]:
    # By hash and not by a random generator: adding an image leaves the order of the others alone.
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}\0{item.name}".encode("utf-8", "replace")).digest())


def _strata(items: Sequence[Item]) -> list[str]:
    """What each side gets its share of: doubt, kind and label together; the label alone where too few are alike."""
    fine = [f"{item.probability or 0:.2f}{item.kind or ''}{item.label}" for item in items]
    return fine if min(Counter(fine).values()) >= 8 else [str(item.label) for item in items]


def _cut_by_group(
    items: Sequence[Item], units: Sequence[str | None], share: float, seed: int
) -> tuple[list[Item], list[Item], str]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [unit or f"\0{item.name}" for item, unit in zip(items, units, strict=True)]
    by = " or ".join(kind for kind in ("group", "lot") if any(unit and unit.startswith(kind) for unit in units))
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
            f"{len(items)} images in {len(set(groups))} {by}s cannot be cut so that both sides have both "
            f"classes and no {by} stands on both",
            field="data",
        )
    words = f"{1 - share:.0%} and {share:.0%} by {by}, stratified, seed {seed}"
    return _mixed((items[i] for i in best[1]), seed), _mixed((items[i] for i in best[2]), seed), words


def _miss(labels: Sequence[str], part: Iterable[int], share: float) -> float:
    """How far the worst served class lies from its share."""
    whole, taken = Counter(labels), Counter(labels[i] for i in part)
    return max(abs(taken[label] / whole[label] - share) for label in whole)
