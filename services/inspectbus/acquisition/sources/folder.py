"""An image folder: its files in natural order of their names, each read when it is due and sent as it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from inspectbus.acquisition.settings import FolderSource
from inspectbus.acquisition.sources import Capture, Unreadable
from inspectbus.api.v1 import frame_pb2
from inspectbus.errors import NotPossibleNow
from inspectbus.stores.datasets import IMAGE_SUFFIXES

MAX_IMAGES = 1_000_000
"""Their names stay in memory for the run; a wrong folder (a whole disk) is met before they fill it."""


class ImageFolder:
    """Lists the folder once, when it is opened: files that come later belong to the next run."""

    def __init__(self, settings: FolderSource, max_image_bytes: int) -> None:
        self._root = settings.path
        self._max_image_bytes = max_image_bytes
        self._names = self._list()

    @property
    def items(self) -> str:
        return hashlib.sha256("\0".join(self._names).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def read(self, start: int, *, again: bool) -> Iterator[Capture | Unreadable]:
        position = start
        while again or position < len(self._names):
            name = self._names[position % len(self._names)]
            item = read_image(self._root / name, spelt(name), self._max_image_bytes)
            if isinstance(item, Unreadable) and not self._root.is_dir():
                # The folder as a whole, a network drive perhaps: its images are sound, and none may be skipped.
                raise NotPossibleNow(f"the folder {self._root} has gone", field="path")
            yield item
            position += 1

    def _list(self) -> list[str]:
        try:
            # Without this, rglob would find just nothing in a folder that is not there.
            next(self._root.iterdir(), None)
            # is_file keeps pipes and devices out, which could hold a reader for ever.
            found = (
                path.relative_to(self._root).as_posix()
                for path in self._root.rglob("*")
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
            )
            names = list(islice(found, MAX_IMAGES + 1))
        except OSError as error:
            raise NotPossibleNow(f"cannot read the folder {self._root}: {error.strerror}", field="path") from None
        if not names:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise NotPossibleNow(f"the folder {self._root} holds no image ({kinds})", field="path")
        if len(names) > MAX_IMAGES:
            raise NotPossibleNow(f"the folder {self._root} holds more than {MAX_IMAGES} images", field="path")
        return sorted(names, key=natural_order)


def spelt(name: str) -> str:
    """The name as messages can carry it: bytes that are no UTF-8 become \\xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def natural_order(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sorts numbers inside names by value: frame-2 comes before frame-10. The name itself parts 1 from 01."""
    words = re.split(r"([0-9]+)", name.lower())
    return [(0, int(word)) if word[:1].isdecimal() and word.isascii() else (1, word) for word in words], name


def read_image(
    path: Path, item: str, max_image_bytes: int, truth: frame_pb2.Label.ValueType = frame_pb2.LABEL_UNSPECIFIED
) -> Capture | Unreadable:
    """The file as it is, if there is something in it and not too much."""
    if path.exists() and not path.is_file():
        return Unreadable(item, "it is no file")  # a pipe would be waited for, for ever
    try:
        with path.open("rb") as file:
            image = file.read(max_image_bytes + 1)
    except OSError as error:
        return Unreadable(item, error.strerror or str(error))
    if not image:
        return Unreadable(item, "the file is empty")
    if len(image) > max_image_bytes:
        return Unreadable(item, f"the image is larger than {max_image_bytes} bytes")
    return Capture(item, image, truth)
