"""Marks: on which side of the split people say an image stands. A set is cut by them where they name both sides."""

from __future__ import annotations

from collections import Counter

from inspectbus.errors import BadField
from inspectbus.stores.datasets.items import Dataset


def half_marked(dataset: Dataset) -> str:
    """What is wrong where they name one side only, in words: a cut that passed over them would learn from what somebody
    held out. Empty where nothing is; a set of train images alone has its held-out part cut off, as one without marks.
    """
    marks = Counter(item.half for item in dataset.items if item.half)
    if len(marks) != 1:
        return ""
    ((side, count),) = marks.items()
    if side == "train" and count == len(dataset.items):
        return ""
    other = "train" if side == "test" else "test"
    return (
        f"{count} of {len(dataset.items)} images are marked {side!r} and none {other!r}: "
        f"mark those that are {other!r} too, or none"
    )


def check_marks(dataset: Dataset) -> Dataset:
    """The data set, for who is about to split it. Raises BadField for `half_marked`."""
    if trouble := half_marked(dataset):
        raise BadField(f"{dataset.name}: {trouble}", field="data")
    return dataset
