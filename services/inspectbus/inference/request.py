"""A request for a judgement, whose pixels are read where they lie in what was received.

bytes ─┬─> as every library writes them: sizes first, then the pixels ─> an image over these bytes
       └─> any other way ─> protobuf, which copies them thrice ─> the same image, or what is wrong with it

The copies would pass through the caches that the network lives in. Only the usual way is known here; whatever else a
message may say, and everything that is wrong, is protobuf's to find.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from inspectbus.api.v1.inference_pb2 import InferRequest
from inspectbus.api.v1.prepared_frame_pb2 import Pixels
from inspectbus.imaging import Image
from inspectbus.imaging.pixels import from_pixels

# https://protobuf.dev/programming-guides/encoding: a field is its number and kind, here in one byte; then a varint,
# which is a number in sevens of bits, the lowest first; and where the kind says so, as many bytes as that number.
_VARINT = rb"([\x80-\xff]{0,3}[\x00-\x7f])"
_HEAD = re.compile(
    rb"\x0a%b"  # pixels, of so many bytes: InferRequest and InferStreamRequest are written alike
    rb"\x08%b\x10%b\x18\x03"  # height, width, three channels
    rb"\x22%b" % ((_VARINT,) * 4)  # data, of so many bytes
)


class Request(NamedTuple):
    """An InferRequest or InferStreamRequest."""

    pixels: Pixels | Image
    preparation_hash: str
    model: str

    def image(self) -> Image:
        """(height, width, 3) uint8 RGB, read-only. Raises BadField when the sizes do not agree."""
        return from_pixels(self.pixels) if isinstance(self.pixels, Pixels) else self.pixels


def read(data: bytes) -> Request:
    """Raises DecodeError when it is no such message."""
    if (found := _usual(data)) is not None:
        image, end = found
        if end == len(data):
            return Request(image, "", "")
        rest = InferRequest.FromString(data[end:])
        if not rest.HasField("pixels"):  # they would be merged with those before
            return Request(image, rest.preparation_hash, rest.model)
    message = InferRequest.FromString(data)
    return Request(message.pixels, message.preparation_hash, message.model)


def _usual(data: bytes) -> tuple[Image, int] | None:
    """The image, and where its message ends."""
    head = _HEAD.match(data)
    if head is None:
        return None
    size, height, width, count = map(_number, head.groups())
    end = head.end() + count
    if end > len(data) or end != head.end(1) + size or count != height * width * 3 or not count:
        return None
    return np.frombuffer(data, np.uint8, count, head.end()).reshape(height, width, 3), end


def _number(varint: bytes) -> int:
    number = 0
    for byte in reversed(varint):
        number = number << 7 | byte & 0x7F
    return number
