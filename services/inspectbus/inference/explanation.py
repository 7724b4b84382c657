"""A heatmap for people: painted over the prepared image, with its numbers in the same file.

heatmap (h, w), in logits ─> what speaks for DEFECTIVE ─> smoothed to the image's size ─> colours over the image ─> PNG
"""

from __future__ import annotations

import json
import struct
import zlib

import cv2
import numpy as np

from inspectbus.imaging import Image
from inspectbus.inference.engine import Heatmap

FULL_LOGITS = 4.0
"""What is painted in the strongest colour speaks at least so much for DEFECTIVE: enough to take a score from 0.12 to
0.88. Without it the hottest place of a sound part would glow as brightly as a crack."""
OPACITY = 0.6
"""Of the strongest colour: the part must be seen beneath."""
STRONGEST = 0.85
"""Place of the strongest colour on OpenCV's scale: a bright red; it ends in one too dark to see on dark parts."""
KEYWORD = "heatmap"
"""Of the PNG's text chunk: {"unit": "logit", "rows": [[...], ...]}."""


def painted(image: Image, heatmap: Heatmap) -> bytes:
    """A PNG of the image's size, from blue to red. What speaks for a sound part, or for nothing, stays as it is."""
    height, width = image.shape[:2]
    strength = np.maximum(heatmap, 0) / max(float(heatmap.max()), FULL_LOGITS)
    heat = cv2.resize(strength.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.rint(255 * STRONGEST * heat).astype(np.uint8), cv2.COLORMAP_TURBO)
    cover = OPACITY * heat[:, :, None]
    picture = np.rint(cv2.cvtColor(image, cv2.COLOR_RGB2BGR) * (1 - cover) + colours * cover).astype(np.uint8)
    _, encoded = cv2.imencode(".png", picture)
    rows = [[round(value, 4) for value in row] for row in heatmap.tolist()]
    return _with_text(encoded.tobytes(), KEYWORD, json.dumps({"unit": "logit", "rows": rows}))


def _with_text(png: bytes, keyword: str, text: str) -> bytes:
    """The PNG with a tEXt chunk before its end (W3C PNG, section 11.3.3.2), which OpenCV cannot write."""
    body = b"tEXt" + keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    # The last chunk, IEND, is empty: length, name, checksum.
    return png[:-12] + chunk + png[-12:]
