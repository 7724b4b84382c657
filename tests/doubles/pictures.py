"""Rendered pictures and the files cameras would send of them."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectbus.imaging import Image


def textured(height: int = 120, width: int = 160, seed: int = 0) -> Image:
    """A sharp, well-lit colour picture without any symmetry."""
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 216, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    picture: Image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return picture


def encoded(rgb: NDArray[np.uint8] | NDArray[np.uint16], suffix: str = ".png", *parameters: int) -> bytes:
    """The image file of an RGB, RGBA or grey array."""
    if rgb.ndim == 3:
        rgb = rgb[:, :, [2, 1, 0, *range(3, rgb.shape[2])]]
    ok, data = cv2.imencode(suffix, rgb, parameters)
    assert ok
    return bytes(data)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A few hundred bytes of valid PNG that would decode to gigabytes."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(b"\x00" * 1000))
        + png_chunk(b"IEND", b"")
    )
