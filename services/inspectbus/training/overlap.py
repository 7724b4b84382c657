"""Whether images that a version learnt from stand on the held-out side now: a set that grew is cut anew, elsewhere.

A version keeps which images it was validated on, a fifth of what it learnt from; where some of them are held out, some
of the rest are too, and scores on them are too good.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from inspectbus.errors import BadField
from inspectbus.stores.datasets import Split, fingerprint
from inspectbus.stores.models import read_card
from inspectbus.training.validation import VALIDATION_FILE, read_validation


@dataclass(frozen=True)
class Overlap:
    """Of a version and a split."""

    same_train_part: bool
    """The version was trained on the very images, labels and groups of this split's train part."""
    validation_images: int
    """0 where the version did not keep them."""
    held_out: int
    """Those of them that stand on this split's held-out side."""

    @property
    def warning(self) -> str:
        """In words; empty where scores on the held-out part can be believed."""
        if self.same_train_part or not self.held_out:
            return ""
        return (
            f"the data set is not the one this version was trained on: {self.held_out} of the {self.validation_images} "
            "images it was validated on are held out now, and so may be others that it learnt from; its scores here "
            "are too good. Keep the sides apart by a manifest with 'split', or train a new version"
        )


def overlap(folder: Path, parts: Split) -> Overlap:
    """Of the version in that folder. Raises CorruptModel for a damaged list of validation images."""
    if read_card(folder, version=folder.name).data.sha256 == fingerprint(parts.train.items):
        return Overlap(True, 0, 0)
    file = folder / VALIDATION_FILE
    validated = set(read_validation(file.read_bytes()).images) if file.exists() else set()
    held_out = set()
    for item in parts.held_out.items:
        try:
            held_out.add(hashlib.sha256(item.read()).hexdigest())
        except BadField:
            continue  # it enters no score either
    return Overlap(False, len(validated), len(validated & held_out))
