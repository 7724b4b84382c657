"""A heatmap for people: painted over the prepared image, with its numbers in the same file.

image, heatmap ─> overlaid ─> PNG, with the heatmap's numbers in a text chunk
"""

from __future__ import annotations

import json
import struct
import zlib

import cv2

from inspectbus.imaging import Image
from inspectbus.imaging.overlay import overlaid
from inspectbus.inference.engine import Heatmap

KEYWORD = "heatmap"
"""Of the PNG's text chunk: {"unit": "logit", "rows": [[...], ...]}."""


def painted(image: Image, heatmap: Heatmap) -> bytes:
    """A PNG of the image's size, as `overlaid` paints it."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(overlaid(image, heatmap), cv2.COLOR_RGB2BGR))
    rows = [[round(value, 4) for value in row] for row in heatmap.tolist()]
    return _with_text(encoded.tobytes(), KEYWORD, json.dumps({"unit": "logit", "rows": rows}))


def _with_text(png: bytes, keyword: str, text: str) -> bytes:
    """The PNG with a tEXt chunk before its end (W3C PNG, section 11.3.3.2), which OpenCV cannot write."""
    body = b"tEXt" + keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    # The last chunk, IEND, is empty: length, name, checksum.
    return png[:-12] + chunk + png[-12:]
