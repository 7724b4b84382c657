"""What a whole network learns from: every image prepared once, kept as pixels, and varied each time it is shown.

image ─> decoded, prepared ─> Pixels, a file ─> varied, in batches, by a thread one step ahead ─> the network

Preparing is what costs; it is done before the first epoch. Varying an image costs a hundredth of learning from it, and
OpenCV does it beside the network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField
from inspectbus.imaging import Image
from inspectbus.networks.classifier import Classifier, normalised
from inspectbus.stores.datasets import Item
from inspectbus.training.augmentation import Augmentation, varied
from inspectbus.training.features import picture, reserved

AHEAD = 2
"""Batches made before they are asked for: one is enough unless a disk hesitates; each is some megabytes."""
JUDGED = 32
"""Images per forward pass of the judging: at 224 pixels an eighth faster than 8."""

Rows = NDArray[np.int64]


class Pixels:
    """Prepared images in a file of their own that lives as long as this object: page cache instead of memory."""

    def __init__(self, count: int, preparation: Preparation, how: Augmentation, folder: Path) -> None:
        shape = (count, preparation.height, preparation.width, 3)
        with reserved(folder, int(np.prod(shape))) as file:
            self._rows: NDArray[np.uint8] = np.memmap(file, np.uint8, "r+", shape=shape)
        self._how = how

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, row: int, image: Image) -> None:
        self._rows[row] = image

    def shown(self, batches: Sequence[Rows], rng: np.random.Generator) -> Generator[Tensor]:
        """uint8 (N, H, W, 3) for each entry of `batches`, every image varied by a draw of its own.

        A thread makes them ahead, at most AHEAD; closing the iterator ends it.
        """
        seeds = rng.integers(2**63, size=len(self))
        coming = iter(batches)
        with ThreadPoolExecutor(1, "training-pixels") as pool:
            made = deque(pool.submit(self._varied, rows, seeds[rows]) for rows in islice(coming, AHEAD))
            try:
                while made:
                    batch = made.popleft().result()
                    made.extend(pool.submit(self._varied, rows, seeds[rows]) for rows in islice(coming, 1))
                    yield batch
            finally:
                pool.shutdown(cancel_futures=True)

    def batches(self) -> Iterator[Tensor]:
        """Every image as it is, in order: uint8 (N, H, W, 3)."""
        for start in range(0, len(self), JUDGED):
            yield torch.from_numpy(np.array(self._rows[start : start + JUDGED]))

    def _varied(self, rows: Rows, seeds: Rows) -> Tensor:
        batch = np.empty((len(rows), *self._rows.shape[1:]), np.uint8)
        for at, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            batch[at] = varied(np.asarray(self._rows[row]), self._how, np.random.default_rng(seed))
        return torch.from_numpy(batch)


def load(
    items: Sequence[tuple[Item, str]],
    preparation: Preparation,
    how: Augmentation,
    folder: Path,
    done: Callable[[int], None],
) -> Pixels:
    """Pixels of every item, in order. `items` come with the sha256 of their bytes; the file lies in `folder`.

    `done` hears of each image, and may raise to end it all. Raises UnreadableImage, BadField for an image that is no
    longer the one whose sha256 came along, StorageFull.
    """
    pixels = Pixels(len(items), preparation, how, folder)
    for row, (item, content) in enumerate(items):
        pixels.put(row, picture(item, content, preparation))
        done(1)
    return pixels


def from_pixels(network: Classifier) -> list[tuple[str, nn.Module]]:
    """The whole network up to its head as links by name, the first of which takes pixels; they are its own modules.

    A backbone that is no plain chain is one link.
    """
    try:
        links = network.chain()
    except BadField:
        links = [("backbone", network.backbone)]
    return [("normalise", _Normalise(network)), *links]


class _Normalise(nn.Module):
    """The network's first step as a module, so that it can be copied with the rest."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, getattr(network, name), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return normalised(images, self.mean, self.std)
