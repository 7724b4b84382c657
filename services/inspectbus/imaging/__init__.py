"""Pictures: encoded bytes become RGB arrays, are corrected, measured, and prepared for a network.

bytes ── decoding ──> RGB ── geometry ──> corrected ─┬─ quality ──> report, perhaps a HOLD
                                                     └─ preparation ──> uint8 (height, width, 3) ── pixels ──> message
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
"""(height, width, 3), uint8, RGB."""
