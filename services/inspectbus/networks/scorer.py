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
    """float32 logits (N,) to scores (N,): what domain/calibration.py computes, in operations that every engine has.

    The lines between knots are the sum of ramps that `Calibration` writes down, one for each pair of neighbours.
    """

    start: Tensor
    width: Tensor
    rise: Tensor

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.temperature = calibration.temperature
        self.bias = calibration.bias
        self.knots = len(calibration.knots)
        if self.knots:
            at, becomes = torch.tensor(calibration.knots, dtype=torch.float64).T
            self.first = float(becomes[0])
            # Differences are taken before rounding: two knots may lie nearer than float32 can tell scores apart.
            ramps = {"start": at[:-1], "width": at.diff(), "rise": becomes.diff()}
            for name, values in ramps.items():
                self.register_buffer(name, values.float(), persistent=False)
            self.width.clamp_(min=torch.finfo(torch.float32).tiny)

    def forward(self, logits: Tensor) -> Tensor:
        scores = torch.sigmoid(logits / self.temperature + self.bias)
        if not self.knots:
            return scores
        ramps = ((scores[:, None] - self.start) / self.width).clamp(0, 1)
        # The sum of rounded rises may end a hair above 1, which would be no score.
        return (self.first + (ramps * self.rise).sum(1)).clamp(0, 1)


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
