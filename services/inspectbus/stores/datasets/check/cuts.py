"""Cuts: a training holds a part out and sets a validation part aside. Both are made here, to foresee a failure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.stores.datasets.items import Dataset, Item, Label
from inspectbus.stores.datasets.splits import cut

VALIDATION_SHARE = 0.2
"""A training's own, of which data sets know nothing; a test compares the two."""
SEED = 0
"""A training's, unless it is told another. Only where groups are few does it matter to whether a cut is found."""
ENOUGH = 4
"""Images of a class from which both cuts succeed, where each image may stand alone."""


def no_held_out(dataset: Dataset, why: BadField) -> str:
    """What to tell where `split` has refused a set for another reason than a group on both sides."""
    if {"train", "test"} <= {item.half for item in dataset.items}:
        do = "Have images of both classes in each half, or leave the halves out to have the set cut anew"
    else:
        do = _more(dataset.items)
    return f"{_counts(dataset.items)} cannot be cut into images to learn from and images to hold out: {why}. {do}"


def no_validation(train: Dataset, unreadable: Collection[str]) -> str:
    """Why a training will find no validation part in what it learns from, and what to do; empty where it will."""
    items = [item for item in train.items if item.name not in unreadable]
    try:
        cut(items, VALIDATION_SHARE, SEED)
    except BadField as why:
        return (
            f"{_counts(items)} are left to learn from, too few for a training to validate with: {why}. {_more(items)}"
        )
    except NotPossibleNow:
        # No scikit-learn: nobody trains here.
        return ""
    return ""


def _more(items: Sequence[Item]) -> str:
    if any(item.group or item.lot for item in items):
        return "Add images of both classes from other parts or lots: those of one stay together"
    lacking = [label for label in Label if sum(item.label is label for item in items) < ENOUGH]
    return f"Add {' and '.join(lacking or Label)} images: a set with {ENOUGH} of each class can be cut"


def _counts(items: Sequence[Item]) -> str:
    return " and ".join(f"{sum(item.label is label for item in items)} {label}" for label in Label) + " images"
