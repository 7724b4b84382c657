"""What an engine runs: uint8 pixels in, a calibrated score and a heatmap out, and nothing left for the engine to know.

uint8 (N, H, W, 3) RGB ─> Classifier ─┬─> logit ─> Calibrated ─> score, float32 (N,), 0 to 1
                                      └─────────────────────────> heatmap, float32 (N, h, w), in logits

The torch engine runs this module; model.onnx is this module, written down.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inspectbus.domain.model_version import Calibration
from inspectbus.networks.classifier import Classifier

IMAGES, SCORE, HEATMAP = "images", "score", "heatmap"
"""Names of the export's input and outputs."""


class Calibrated(nn.Module):
    """float32 logits (N,) to scores (N,): sigmoid(logit / temperature + bias).

    A further monotone map of scores belongs behind the sigmoid, as buffers and plain operations that ONNX has.
    """

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.temperature = calibration.temperature
        self.bias = calibration.bias

    def forward(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits / self.temperature + self.bias)


class Scorer(nn.Module):
    """(scores, heatmaps) of a batch, or (scores,) alone where the network has no heatmap."""

    def __init__(self, network: Classifier, calibration: Calibration) -> None:
        super().__init__()
        self.network = network
        self.calibrated = Calibrated(calibration)

    def forward(self, images: Tensor) -> tuple[Tensor] | tuple[Tensor, Tensor]:
        logits, heatmaps = self.network.explained(images)
        # Also under autocast: logits are float32 again, and half precision never meets a threshold.
        scores = self.calibrated(logits)
        return (scores,) if heatmaps is None else (scores, heatmaps)
