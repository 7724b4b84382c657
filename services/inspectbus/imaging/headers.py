"""What an image file says of itself, read from its bytes before any decoder may allocate a pixel.

bytes ─> which format? ─> width, height, bit depth, and whether the file goes on to its end

A decoder fills what a broken transfer cut off with grey or black and calls it a picture (libjpeg does, with a warning
on standard error). A part must not be judged by such a picture, so each parser here walks its file to the end.
What they cannot see is a changed byte inside the compressed pixels of a JPEG or TIFF, which carry no checksum.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from inspectbus.errors import UnreadableImage

FIELD = "image"
MAX_SCANS = 100
"""A progressive JPEG needs about ten; thousands of empty ones keep a decoder busy for minutes."""


@dataclass(frozen=True)
class Header:
    """One picture in a file, as its header gives it."""

    format: str
    width: int
    height: int
    bits: int
    """Bits per channel."""


def read_header(image: bytes) -> Header:
    """Raises UnreadableImage for another format, a file cut short, and a file of several pictures."""
    for magic, parse in _FORMATS:
        if image.startswith(magic):
            try:
                return parse(image)
            except (struct.error, IndexError):
                raise _cut_short(parse.__name__.removeprefix("_").upper()) from None
    if not image:
        raise UnreadableImage("the image is empty: it has 0 bytes", field=FIELD)
    raise UnreadableImage(f"not a PNG, JPEG, BMP or TIFF image: it begins with {image[:12]!r}", field=FIELD)


def _cut_short(kind: str) -> UnreadableImage:
    return UnreadableImage(f"the {kind} is cut short: its end is missing", field=FIELD)


def _png(image: bytes) -> Header:
    position, header = 8, None
    while True:
        length, kind = struct.unpack_from(">I4s", image, position)
        (checksum,) = struct.unpack_from(">I", image, position + 8 + length)
        if zlib.crc32(memoryview(image)[position + 4 : position + 8 + length]) != checksum:
            raise UnreadableImage(f"the PNG is damaged: its {kind!r} chunk fails its checksum", field=FIELD)
        if header is None:
            if kind != b"IHDR":
                raise UnreadableImage("the PNG is damaged: it does not begin with its header", field=FIELD)
            header = Header("PNG", *struct.unpack_from(">IIB", image, position + 8))
        if kind == b"acTL":
            raise UnreadableImage("the PNG is animated; a frame is one picture", field=FIELD)
        if kind == b"IEND":
            return header
        position += length + 12


# After a scan's compressed data, where FF is followed by 00 (an escaped FF) or a restart marker, comes a real marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(image: bytes) -> Header:
    position, scans, header = 2, 0, None
    while True:
        if image[position] != 0xFF:
            raise UnreadableImage(f"the JPEG is damaged: no marker at byte {position}", field=FIELD)
        while image[position + 1] == 0xFF:  # any number of FF may come before a marker
            position += 1
        marker = image[position + 1]
        position += 2
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", image, position)
        if marker in _SIZES:
            bits, height, width = struct.unpack_from(">BHH", image, position + 2)
            header = Header("JPEG", width, height, bits)
        position += length
        if marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise UnreadableImage(f"the JPEG has more than {MAX_SCANS} scans", field=FIELD)
            end = _MARKER.search(image, position)
            if end is None:
                raise _cut_short("JPEG")
            position = end.start()
    if header is None or scans == 0:
        raise UnreadableImage("the JPEG holds no picture", field=FIELD)
    return header


def _bmp(image: bytes) -> Header:
    begin, header_size = struct.unpack_from("<II", image, 10)
    if header_size == 12:  # the OS/2 form
        width, height, _, bits = struct.unpack_from("<HHHH", image, 18)
        packing, size = 0, 0
    else:
        width, height, _, bits, packing, size = struct.unpack_from("<iiHHII", image, 18)
    if packing in (1, 2):  # run lengths: only the header knows how many bytes they take
        if not size:
            raise UnreadableImage("the BMP is compressed and does not say how long it is", field=FIELD)
    else:
        size = (max(width, 0) * bits + 31) // 32 * 4 * abs(height)  # rows end on four bytes; negative is top-down
    if begin + size > len(image):
        raise _cut_short("BMP")
    return Header("BMP", width, abs(height), 8)


_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}
_WIDTH, _HEIGHT, _BITS, _STRIPS, _STRIP_SIZES = 256, 257, 258, 273, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325


def _tiff(image: bytes) -> Header:
    order = "<" if image.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(order + "I", image, 4)
    (count,) = struct.unpack_from(order + "H", image, directory)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", image, entry)
        if kind in _TIFF_TYPES:
            size = struct.calcsize(_TIFF_TYPES[kind]) * values
            (place,) = struct.unpack_from(order + "I", image, entry + 8) if size > 4 else (entry + 8,)
            if place + size > len(image):
                raise _cut_short("TIFF")
            tags[tag] = struct.unpack_from(f"{order}{values}{_TIFF_TYPES[kind]}", image, place)
    (following,) = struct.unpack_from(order + "I", image, directory + 2 + 12 * count)
    if following:
        raise UnreadableImage("the TIFF has more than one page; a frame is one picture", field=FIELD)
    width, height = (tags.get(tag, (0,))[0] for tag in (_WIDTH, _HEIGHT))
    places = tags.get(_STRIPS) or tags.get(_TILES) or ()
    sizes = tags.get(_STRIP_SIZES) or tags.get(_TILE_SIZES) or ()
    if not places or len(places) != len(sizes):
        raise UnreadableImage("the TIFF is damaged: it does not say where its pixels are", field=FIELD)
    if any(place + size > len(image) for place, size in zip(places, sizes, strict=True)):
        raise _cut_short("TIFF")
    # A decoder makes room for whole tiles, so the picture is as large as the tile that holds it.
    tile_width, tile_height = (tags.get(tag, (0,))[0] for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    if tile_width > width + 4096 or tile_height > height + 4096:
        raise UnreadableImage(f"the TIFF's tiles ({tile_width}x{tile_height}) do not fit its picture", field=FIELD)
    return Header("TIFF", width, height, max(tags.get(_BITS, (1,)), default=1))


_FORMATS = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"BM", _bmp),
    (b"II*\x00", _tiff),
    (b"MM\x00*", _tiff),
)
