"""A video file, picture by picture. OpenCV decodes it; each picture leaves as PNG, which loses nothing more."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from inspectbus.acquisition.settings import VideoSource
from inspectbus.acquisition.sources import Capture, Unreadable
from inspectbus.errors import NotPossibleNow


class VideoFile:
    def __init__(self, settings: VideoSource, max_image_bytes: int) -> None:
        self._path = settings.path
        self._max_image_bytes = max_image_bytes
        try:
            self._stat = os.stat(self._path)
        except OSError as error:
            raise NotPossibleNow(f"cannot read the video {self._path}: {error.strerror}", field="path") from None
        with self._opened():
            pass

    @property
    def items(self) -> str:
        return hashlib.sha256(f"{self._stat.st_size} {self._stat.st_mtime_ns}".encode()).hexdigest()[:16]

    def read(self, start: int, *, again: bool) -> Iterator[Capture | Unreadable]:
        skip = start
        while True:
            length = 0
            with self._opened() as video:
                # A picture can only be reached by decoding those before it: seeking is exact in few formats.
                while video.grab():
                    if skip:
                        skip -= 1
                    else:
                        yield self._picture(video, length)
                    length += 1
            if not length:
                raise NotPossibleNow(f"the video {self._path} holds no picture", field="path")
            if not again:
                return
            skip %= length

    @contextmanager
    def _opened(self) -> Iterator[cv2.VideoCapture]:
        video = cv2.VideoCapture(str(self._path))
        try:
            if not video.isOpened():
                raise NotPossibleNow(f"{self._path} is no video that OpenCV can read", field="path")
            yield video
        finally:
            video.release()

    def _picture(self, video: cv2.VideoCapture, number: int) -> Capture | Unreadable:
        item = f"{self._path.name}@{number}"
        found, pixels = video.retrieve()
        encoded, png = cv2.imencode(".png", pixels) if found else (False, None)
        if not encoded or png is None:
            return Unreadable(item, "the picture could not be decoded")
        image = png.tobytes()
        if len(image) > self._max_image_bytes:
            return Unreadable(item, f"the image is larger than {self._max_image_bytes} bytes")
        return Capture(item, image)
