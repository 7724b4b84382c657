"""The lower part of a network is not trained, so what it says of an image is computed once and kept.

image ─> decoded, prepared ─> flipped ─> lower part ─> map, float16 ─┬─> cache file, found again by content
                                                                     └─> Maps: what the upper part trains on

A cache file's name says all that its content depends on, and its first bytes are the sha256 of the rest.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import itertools
import os
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField, StorageFull
from inspectbus.imaging import Image
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.classifier import Classifier
from inspectbus.networks.pretrained import Pretrained
from inspectbus.stores.datasets import Item

log = structlog.get_logger(__name__)

FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (0,), (0, 1))
"""Views of an image, by the axes of (H, W, C) that are turned: as it is, left-right, up-down, both."""
STRIDE = 16
"""The network is cut where its maps have a sixteenth of the image's side: below it are edges and textures, which any
photograph taught well; above it is what to make of them, at a fraction of the pixels."""
EXTRACT_BATCH = 8
"""Images per forward pass; maps of more than a few large images leave the processor's cache, and slow it down."""
CACHE_LIMIT_BYTES = 4 * 1024**3
_REVISION = 1
"""Rises when the code in this file changes what a cache file holds."""

Half = NDArray[np.float16]


@dataclass(frozen=True)
class Cut:
    """A network in two: `lower` takes prepared images and is frozen, `upper` gives pooled features and is trained."""

    lower: nn.Module
    """uint8 (N, H, W, 3) to float32 (N, C, h, w); a copy, made for speed."""
    upper: list[tuple[str, nn.Module]]
    """The network's own modules, by name. Empty when the backbone can only be taken whole."""
    shape: tuple[int, ...]
    """Of one image's map."""
    key: str
    """Names backbone, weights and place of the cut."""


def cut_network(pretrained: Pretrained, preparation: Preparation, *, whole: bool = False) -> Cut:
    """Cut at the stride, for images of the preparation's size; above everything when the backbone is no plain chain.

    `whole` cuts above everything in any case: the maps are then the backbone's pooled features, (F,) for each image.
    """
    network = pretrained.network
    try:
        links = network.chain()
    except BadField:
        links = [("backbone", network.backbone)]
    probe = torch.zeros(1, preparation.height, preparation.width, 3, dtype=torch.uint8)
    with torch.inference_mode():
        maps, below = network.normalise(probe), 0
        while below < len(links):
            maps = links[below][1](maps)
            below += 1
            if not whole and maps.ndim == 4 and maps.shape[2] * STRIDE <= preparation.height + STRIDE - 1:
                break
    lower = _Lower(network, [module for _, module in links[:below]])
    words = (
        f"{_REVISION} {pretrained.architecture.backbone} {pretrained.sha256} {below} of {len(links)} "
        f"{pretrained.normalisation.model_dump_json()}"
    )
    return Cut(lower, links[below:], tuple(maps.shape[1:]), hashlib.sha256(words.encode()).hexdigest())


class Maps:
    """float16 maps of images in some views, in a file of their own that lives as long as this object.

    A file, so that a large data set costs page cache and not memory.
    """

    def __init__(self, count: int, views: int, shape: tuple[int, ...], folder: Path) -> None:
        # Channels last, so that a batch put together from rows needs no turning.
        self._stored = (*shape[1:], shape[0])
        with reserved(folder, count * views * int(np.prod(shape)) * 2) as file:
            self._rows: Half = np.memmap(file, np.float16, "r+", shape=(count, views, *self._stored))

    @property
    def views(self) -> int:
        return int(self._rows.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, row: int, view: int, stored: Half) -> None:
        self._rows[row, view] = stored

    def batch(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> Tensor:
        """float32 (N, C, h, w), channels-last, or (N, F)."""
        batch = torch.from_numpy(np.asarray(self._rows[rows, views])).float()
        return batch.permute(0, 3, 1, 2) if batch.ndim == 4 else batch

    def shown(self, batches: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> Generator[Tensor]:
        """Maps for each entry of `batches`, every image in one of its views."""
        views = rng.integers(0, self.views, len(self))
        for rows in batches:
            yield self.batch(rows, views[rows])

    def batches(self, size: int = 32) -> Iterator[Tensor]:
        """The first view of every image, in order."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))


class FeatureCache:
    """Maps by content, in files below one folder. What is damaged counts as missing; the oldest make room."""

    def __init__(self, folder: Path, limit_bytes: int = CACHE_LIMIT_BYTES) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, stored: tuple[int, ...]) -> Half | None:
        """The map under the key, when it is whole and of the shape."""
        file = self._file(key)
        try:
            data = file.read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                log.warning("a damaged feature file is computed anew", file=str(file))
                return None
            found = np.load(io.BytesIO(data[32:]), allow_pickle=False)
            os.utime(file)
        except (OSError, ValueError, EOFError):
            return None
        return found if found.shape == stored and found.dtype == np.float16 else None

    def put(self, key: str, stored: Half) -> None:
        buffer = io.BytesIO()
        np.save(buffer, stored, allow_pickle=False)
        file = self._file(key)
        part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            file.parent.mkdir(exist_ok=True)
            part.write_bytes(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())
            part.replace(file)
        except OSError as error:
            # Keeping a map only saves time; having nowhere to keep it ends no training.
            log.warning("a feature file could not be kept", file=str(file), error=str(error))
            part.unlink(missing_ok=True)

    def trim(self) -> None:
        """Removes the files unused for longest until the rest fits the limit."""
        known = []
        for file in self.folder.glob("*/*"):
            try:
                known.append((file.stat().st_mtime, file.stat().st_size, file))
            except FileNotFoundError:  # another training trims too
                continue
        excess = sum(size for _, size, _ in known) - self._limit_bytes
        for _, size, file in sorted(known):
            if excess <= 0:
                return
            file.unlink(missing_ok=True)
            excess -= size

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.map"


def extract(
    items: Sequence[tuple[Item, str]],
    views: int,
    cut: Cut,
    preparation: Preparation,
    cache: FeatureCache,
    done: Callable[[int], None],
) -> Maps:
    """Maps of every item in its first `views` views. `items` come with the sha256 of their bytes.

    `done` hears of each number of maps that has become ready, and may raise to end it all. Raises UnreadableImage for
    an image that is none, BadField for one that is no longer the one whose sha256 came along, StorageFull.
    """
    maps = Maps(len(items), views, cut.shape, cache.folder)
    stored = (*cut.shape[1:], cut.shape[0])
    waiting: list[tuple[int, int, str]] = []
    for row, (_, content) in enumerate(items):
        found = 0
        for view in range(views):
            key = hashlib.sha256(f"{cut.key} {preparation.hash} {content} {FLIPS[view]}".encode()).hexdigest()
            kept = cache.get(key, stored)
            if kept is None:
                waiting.append((row, view, key))
            else:
                maps.put(row, view, kept)
                found += 1
        done(found)
    for batch in _batches(waiting):
        # Views of one image stand side by side: it is decoded once.
        pictures = {row: picture(*items[row], preparation) for row in {row for row, _, _ in batch}}
        for (row, view, key), made in zip(
            batch, _through(cut.lower, [np.flip(pictures[row], FLIPS[view]) for row, view, _ in batch]), strict=True
        ):
            maps.put(row, view, made)
            cache.put(key, made)
        done(len(batch))
    cache.trim()
    return maps


def _batches(waiting: Sequence[tuple[int, int, str]]) -> Iterator[Sequence[tuple[int, int, str]]]:
    for start in range(0, len(waiting), EXTRACT_BATCH):
        yield waiting[start : start + EXTRACT_BATCH]


def picture(item: Item, content: str, preparation: Preparation) -> Image:
    """The prepared image of an item whose bytes have the sha256. Raises UnreadableImage, or BadField if not."""
    data = item.read()
    if hashlib.sha256(data).hexdigest() != content:
        raise BadField(f"{item.path} changed while the training ran", field=item.name)
    return prepare(decode(data), preparation)


def _through(lower: nn.Module, images: Iterable[Image]) -> Half:
    """(N, h, w, C) float16, or (N, F)."""
    with torch.inference_mode():
        maps = lower(torch.from_numpy(np.stack(list(images))))
        # Beyond float16 lies infinity, which no training recovers from.
        maps = maps.clamp(-65504, 65504).half()
        if maps.ndim == 4:
            maps = maps.permute(0, 2, 3, 1)
        made: Half = maps.contiguous().numpy()
        return made


class _Lower(nn.Module):
    """Copies of the frozen modules, with batch norms folded into convolutions where that provably changes nothing."""

    def __init__(self, network: Classifier, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._normalise = network.normalise
        plain = nn.Sequential(*copy.deepcopy(list(modules))).eval()
        folded = copy.deepcopy(plain)
        _fold(folded)
        probe = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
        with torch.inference_mode():
            try:
                same = torch.allclose(folded(probe), plain(probe), rtol=1e-3, atol=1e-3)
            except RuntimeError:  # the norm that stood after a convolution was another's, and the channels differ
                same = False
        self.modules_in_order = folded if same else plain
        self.modules_in_order.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs

    def forward(self, images: Tensor) -> Any:
        return self.modules_in_order(self._normalise(images))


def _fold(module: nn.Module) -> None:
    """Folds every batch norm into the convolution listed just before it; an activation that timm put inside stays."""
    children = list(module.named_children())
    for (_, before), (name, after) in itertools.pairwise(children):
        if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            fused = torch.nn.utils.fusion.fuse_conv_bn_eval(before, after)
            before.weight, before.bias = fused.weight, fused.bias
            setattr(module, name, getattr(after, "act", nn.Identity()))
    for child in module.children():
        _fold(child)


@contextmanager
def reserved(folder: Path, size: int) -> Iterator[IO[bytes]]:
    """A nameless file in the folder, with its disk space reserved now: a disk that fills up under a memory map kills
    the process. Raises StorageFull."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.truncate(file.fileno(), size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StorageFull(f"the training needs {size / 2**20:.0f} MiB of disk space, which is not there") from error
        yield file
