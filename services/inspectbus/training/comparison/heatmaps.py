"""Where the CNN looked: heatmaps of the images a report shows, and whether they fall on what people marked.

items ─> decoded, prepared ─> Classifier.explained ─> Explained ─┬─> laid over the hardest images
masks of defective items ────────────────────────────────────────┴─> pointing.agreement ─> Pointing

The heatmap is the line's: the same pass of the same network that an engine runs. Preparation resizes the whole picture
and neither crops nor straightens it, so heatmap, prepared picture and mask show one field in three sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField
from inspectbus.imaging import Image
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.classifier import Classifier
from inspectbus.stores.datasets import Item, Label
from inspectbus.stores.datasets.masks import read_mask
from inspectbus.training.evaluation import BATCH
from inspectbus.training.pointing import Agreement, agreement

log = structlog.get_logger(__name__)

SHOWN = 12
"""Images with a mask in the figure, evenly over the held-out part: a choice by how well they look would be a lie."""


@dataclass(frozen=True)
class Explained:
    """One image, and what each place of it speaks for."""

    item: Item
    picture: Image
    """Prepared: what the network saw."""
    heatmap: NDArray[np.float32]
    """(h, w), in logits; above 0 speaks for DEFECTIVE."""
    width: int
    height: int
    """Pixels of the image as it was read."""


@dataclass(frozen=True)
class Marked:
    """An explained image with what people marked on it."""

    explained: Explained
    mask: NDArray[np.bool_]
    """(height, width) of the image as it was read, true on the defect."""


@dataclass(frozen=True)
class Pointing:
    """Heatmaps against masks."""

    agreement: Agreement | None
    """None where no mask could be used."""
    shown: Sequence[Marked]
    left_out: tuple[str, ...]
    """Names of the images whose masks cannot be read, have another size, or mark nothing."""


def explained(network: Classifier, preparation: Preparation, items: Sequence[Item]) -> Iterator[Explained]:
    """Of each item, in order, by a network that `explains`. Raises BadField for an image that cannot be read."""
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        pictures = [decode(item.read()) for item in batch]
        seen = np.stack([prepare(picture, preparation) for picture in pictures])
        with torch.inference_mode():
            _, heatmaps = network.explained(torch.from_numpy(seen))
        assert heatmaps is not None, "this network has no heatmap"
        for item, picture, prepared, heatmap in zip(batch, pictures, seen, heatmaps.numpy(), strict=True):
            height, width = picture.shape[:2]
            yield Explained(item, prepared, heatmap, width, height)


def masked(items: Sequence[Item]) -> list[Item]:
    """The defective ones on which people marked the defect."""
    return [item for item in items if item.label is Label.DEFECTIVE and item.mask is not None]


def point(
    network: Classifier, preparation: Preparation, items: Sequence[Item], tell: Callable[[int], None]
) -> Pointing:
    """Of `masked` items. `tell` hears of each, and may raise."""
    shown: list[Marked] = []
    left_out: list[str] = []
    rows = {int(row) for row in np.linspace(0, len(items) - 1, min(SHOWN, len(items)))}

    def pairs() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        for row, found in enumerate(explained(network, preparation, items)):
            tell(1)
            try:
                mask = read_mask(found.item, found.width, found.height)
                if not mask.any():
                    raise BadField(f"mask {found.item.mask} marks nothing", field=found.item.name)
            except BadField as error:
                log.warning("a mask is left out of the comparison", error=error.message)
                left_out.append(found.item.name)
                continue
            if row in rows:
                shown.append(Marked(found, mask))
            yield found.heatmap, mask

    try:
        # One after the other: masks are as large as photographs.
        found = agreement(pairs())
    except BadField:
        if len(left_out) < len(items):
            raise
        found = None
    return Pointing(found, shown, tuple(left_out))
