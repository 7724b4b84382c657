"""PyTorch as an engine: on the processor or on CUDA, weights from safetensors only.

images (N, H, W, 3) uint8 ─> device ─> Scorer (channels-last, autocast on CUDA) ─> scores and heatmaps
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import NotPossibleNow
from inspectbus.inference.engine import Images, Output
from inspectbus.networks.scorer import Scorer
from inspectbus.networks.trained import load_trained


class TorchEngine:
    def __init__(self, folder: Path, card: ModelCard, device: Literal["auto", "cpu", "cuda"], threads: int) -> None:
        self._device = chosen_device(device)
        if threads:
            # For the whole process; each thread looks once, before its first computation.
            torch.set_num_threads(threads)
        network = load_trained(folder, card.architecture, card.normalisation)
        self._scorer = Scorer(network, card.calibration).eval().to(self._device)

    @property
    def name(self) -> str:
        return f"torch {torch.__version__}"

    @property
    def device(self) -> str:
        return f"cuda: {torch.cuda.get_device_name(self._device)}" if self._device.type == "cuda" else "cpu"

    def infer(self, images: Images) -> Output:
        on_cuda = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=on_cuda):
            found = self._scorer(torch.from_numpy(images).to(self._device))
        return Output(*(each.cpu().numpy() for each in found))


def chosen_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that is meant. Raises NotPossibleNow when it is not there."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NotPossibleNow("device cuda was asked for, and torch sees no CUDA here", field="device")
    return torch.device("cuda")
