"""PyTorch as an engine: on the processor or on CUDA, weights from safetensors only.

images (N, H, W, 3) uint8 ─> device ─> Scorer (channels-last, autocast to bf16 where told) ─> scores and heatmaps
"""

from __future__ import annotations

from pathlib import Path

import torch

from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import NotPossibleNow
from inspectbus.inference.engine import BEST_BATCH, Device, Images, Output, Place
from inspectbus.networks.scorer import Scorer
from inspectbus.networks.trained import load_trained


class TorchEngine:
    def __init__(self, folder: Path, card: ModelCard, place: Place, *, bf16: bool = False) -> None:
        self._device = chosen_device(place.device, bf16=bf16)
        self._bf16 = bf16
        if threads := place.threads_each:
            # For the whole process; each thread looks once, before its first computation.
            torch.set_num_threads(threads)
        self._streams = place.streams
        network = load_trained(folder, card.architecture, card.normalisation)
        self._scorer = Scorer(network, card.calibration).eval().to(self._device)

    @property
    def name(self) -> str:
        return f"torch {torch.__version__}" + (", bf16" if self._bf16 else "")

    @property
    def device(self) -> str:
        return f"cuda: {torch.cuda.get_device_name(self._device)}" if self._device.type == "cuda" else "cpu"

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def best_batch(self) -> int | None:
        return BEST_BATCH if self.device == "cpu" else None

    def infer(self, images: Images) -> Output:
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            # From pinned memory it does not wait for the copy; for the scores it does.
            found = self._scorer(torch.from_numpy(images).to(self._device, non_blocking=True))
        return Output(*(each.cpu().numpy() for each in found))


def chosen_device(device: Device, *, bf16: bool = False) -> torch.device:
    """The device that is meant. Raises NotPossibleNow when it is not there, or not for bf16."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if device == "cuda":
        raise NotPossibleNow("device cuda was asked for, and torch sees no CUDA here", field="device")
    if bf16:
        raise NotPossibleNow(
            "torch-bf16 is for CUDA: on a processor its autocast is slower than other engines are with float32",
            field="device",
        )
    return torch.device("cpu")
