"""A replay of a data set. Each frame carries what its part really is, so that the line can be scored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from inspectbus.acquisition.settings import DatasetSource
from inspectbus.acquisition.sources import Capture, Unreadable
from inspectbus.acquisition.sources.folder import read_image
from inspectbus.api.v1 import frame_pb2
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.stores.datasets import Dataset, Item, Label, open_dataset, split

_TRUTH: dict[Label | None, frame_pb2.Label.ValueType] = {
    None: frame_pb2.LABEL_UNSPECIFIED,
    Label.GOOD: frame_pb2.LABEL_GOOD,
    Label.DEFECTIVE: frame_pb2.LABEL_DEFECTIVE,
}


class DatasetReplay:
    """The chosen items in the order of their part, which the data set fixes."""

    def __init__(self, settings: DatasetSource, max_image_bytes: int) -> None:
        self._max_image_bytes = max_image_bytes
        try:
            chosen = _chosen(open_dataset(settings.data), settings)
        except BadField as error:
            raise NotPossibleNow(f"cannot replay {settings.data}: {error.message}", field=error.field) from None
        self._items = chosen[settings.offset :: settings.stride]
        if not self._items:
            raise NotPossibleNow(
                f"{settings.data}: none of {len(chosen)} images is left from number {settings.offset} on",
                field="offset",
            )

    @property
    def items(self) -> str:
        names = "\0".join(item.name for item in self._items)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def read(self, start: int, *, again: bool) -> Iterator[Capture | Unreadable]:
        position = start
        while again or position < len(self._items):
            item = self._items[position % len(self._items)]
            yield read_image(item.path, item.name, self._max_image_bytes, _TRUTH[item.label])
            position += 1


def _chosen(dataset: Dataset, settings: DatasetSource) -> Sequence[Item]:
    if settings.items:
        by_name = {item.name: item for item in dataset.items}
        strangers = [name for name in settings.items if name not in by_name]
        if strangers:
            raise BadField(f"it has no item {strangers[0]!r}", field="items")
        return [by_name[name] for name in settings.items]
    # Nothing was learnt from images without labels, so all of them are held out.
    if settings.part == "all" or not any(item.label for item in dataset.items):
        return dataset.items
    try:
        return split(dataset).held_out.items
    except ModuleNotFoundError as error:
        raise BadField(f"cutting a part off needs {error.name}: install inspectbus[training]", field="part") from None
