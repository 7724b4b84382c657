"""Sources: where a station's images come from. Only the chosen form is imported, so a folder needs no video library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from inspectbus.acquisition.settings import DatasetSource, FolderSource, PushSource, VideoSource
from inspectbus.api.v1 import frame_pb2
from inspectbus.errors import NotPossibleNow


@dataclass(frozen=True)
class Capture:
    """One image as the source has it: encoded, and perhaps no valid image at all. That is preparation's to say, whose
    HOLD gives the part a decision."""

    item: str
    image: bytes
    truth: frame_pb2.Label.ValueType = frame_pb2.LABEL_UNSPECIFIED


@dataclass(frozen=True)
class Unreadable:
    """An item without bytes that could be sent."""

    item: str
    reason: str


class Source(Protocol):
    """Images in a fixed order, which can be read again from any position."""

    @property
    def items(self) -> str:
        """Fingerprint of which item stands at which position; another one means another run."""

    def read(self, start: int, *, again: bool) -> Iterator[Capture | Unreadable]:
        """The items from position `start`, counted from 0 over all passes; `again` begins a new pass at each end.

        Raises NotPossibleNow when the source as a whole cannot be read. Holds one image at a time.
        """


def open_source(settings: FolderSource | DatasetSource | VideoSource | PushSource, max_image_bytes: int) -> Source:
    """Raises NotPossibleNow, saying what is missing, when there is no such source or no image in it."""
    match settings:
        case FolderSource():
            from inspectbus.acquisition.sources.folder import ImageFolder

            return ImageFolder(settings, max_image_bytes)
        case DatasetSource():
            from inspectbus.acquisition.sources.dataset import DatasetReplay

            return DatasetReplay(settings, max_image_bytes)
        case VideoSource():
            from inspectbus.acquisition.sources.video import VideoFile

            return VideoFile(settings, max_image_bytes)
        case PushSource():
            raise NotPossibleNow("this station takes pushed frames and has no source to start", field="station")
