"""The seam between the batcher and whatever runs the network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.model_version import ModelCard

Images = NDArray[np.uint8]
"""(N, H, W, 3) uint8 RGB, prepared."""
Scores = NDArray[np.float32]
"""(N,) float32 in [0, 1]: calibrated score of being defective."""
Heatmap = NDArray[np.float32]
"""(h, w) float32: what each place of the image adds to the logit, which is the mean plus a constant of the network."""
Heatmaps = NDArray[np.float32]
"""(N, h, w)."""


class Output(NamedTuple):
    """Of one forward pass."""

    scores: Scores
    heatmaps: Heatmaps | None = None
    """None where the network has none; see `Classifier.explains`."""


class Engine(Protocol):
    """Runs one model version. Called by one thread at a time; stateless between calls."""

    @property
    def name(self) -> str:
        """What runs it, with its version: "torch 2.13.0"."""

    @property
    def device(self) -> str:
        """Where: "cpu", "cuda: NVIDIA H100"."""

    def infer(self, images: Images) -> Output:
        """One score and heatmap per image, in order. Keeps no reference to `images`. May raise anything."""


def open_engine(folder: Path, card: ModelCard, device: Literal["auto", "cpu", "cuda"], threads: int) -> Engine:
    """An engine for a verified version folder. Raises CorruptModel when the weights do not fit the architecture,
    NotPossibleNow when the device is not there.
    """
    from inspectbus.inference.torch_engine import TorchEngine

    return TorchEngine(folder, card, device, threads)
