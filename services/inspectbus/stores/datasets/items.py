"""An item is one image and what is known of it; a data set is items in a fixed order."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from inspectbus.errors import BadField

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
MAX_IMAGES = 100_000
"""More than a training of this size of network gains from; a wrong folder (a home, a disk) is met long before."""
MAX_FILE_BYTES = 256 * 1024 * 1024
"""A larger file is no photograph of a part; its size is looked at before it is read."""


class Label(StrEnum):
    """What a part really is. DEFECTIVE is the positive class."""

    GOOD = "good"
    DEFECTIVE = "defective"


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
    lot: str | None = None
    """The batch the part was made in, where known."""
    mask: Path | None = None
    """An image of the same size that is white where the defect is, where somebody has drawn one."""

    def read(self) -> bytes:
        """The encoded image. Raises BadField naming the file when it cannot be read, or is a pipe or a device."""
        try:
            found = self.path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise BadField(f"{self.path} is no file, nor a link to one", field=self.name)
            if found.st_size > MAX_FILE_BYTES:
                raise BadField(
                    f"{self.path} has {found.st_size} bytes, at most {MAX_FILE_BYTES} are read", field=self.name
                )
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
    remark: str = ""
    """What whoever reads a score on it must know of the set, beginning with "; "."""

    @property
    def labelled(self) -> bool:
        return all(item.label for item in self.items)

    def count(self, label: Label) -> int:
        return sum(item.label is label for item in self.items)


def both_classes(items: Sequence[Item], where: str) -> None:
    """Raises BadField saying how many items have no label, or which class is missing."""
    counts = Counter(item.label for item in items)
    if nameless := counts[None]:
        raise BadField(f"{where}: {nameless} of {len(items)} images have no label", field="data")
    for label in Label:
        if not counts[label]:
            raise BadField(f"{where}: no {label} images among {len(items)}; both classes are needed", field="data")


def bounded(count: int, root: Path) -> None:
    """Raises BadField when there are more images than a data set may have."""
    if count > MAX_IMAGES:
        raise BadField(f"{root} has more than {MAX_IMAGES} images", field="data")


def folders_in(folder: Path) -> list[Path]:
    """Visible folders in the order of their names."""
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def images_in(folder: Path, *, deep: bool) -> Iterator[Path]:
    """Visible image files in the order of their names; other files are none of our business.

    Raises OSError for a folder that cannot be looked into, whose images would else be missing without a word.
    """
    for here, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if deep and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(here, name)


def _raise(error: OSError) -> None:
    raise error
