"""PyTorch as an engine: on the processor or on CUDA, weights from safetensors only.

images (N, H, W, 3) uint8 ─> device ─> Classifier (channels-last, autocast on CUDA) ─> logit ─> calibration ─> score
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from inspectbus.domain.model_version import WEIGHTS_FILE, ModelCard
from inspectbus.errors import BadField, CorruptModel, NotPossibleNow
from inspectbus.inference.engine import Images, Scores
from inspectbus.networks.classifier import Classifier, build


class TorchEngine:
    def __init__(self, folder: Path, card: ModelCard, device: Literal["auto", "cpu", "cuda"], threads: int) -> None:
        self._device = chosen_device(device)
        if threads:
            # For the whole process; each thread looks once, before its first computation.
            torch.set_num_threads(threads)
        self._network = _network(folder, card).to(self._device)
        self._calibration = card.calibration

    @property
    def name(self) -> str:
        return f"torch {torch.__version__}"

    @property
    def device(self) -> str:
        return f"cuda: {torch.cuda.get_device_name(self._device)}" if self._device.type == "cuda" else "cpu"

    def infer(self, images: Images) -> Scores:
        on_cuda = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=on_cuda):
            logits = self._network(torch.from_numpy(images).to(self._device))
        # Outside autocast: half precision is for the network, not for the score that meets a threshold.
        scores: Scores = torch.sigmoid(logits / self._calibration.temperature + self._calibration.bias).cpu().numpy()
        return scores


def chosen_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that is meant. Raises NotPossibleNow when it is not there."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NotPossibleNow("device cuda was asked for, and torch sees no CUDA here", field="device")
    return torch.device("cuda")


def _network(folder: Path, card: ModelCard) -> Classifier:
    try:
        network = build(card.architecture, card.normalisation)
        weights = load_file(folder / WEIGHTS_FILE)
        network.load_state_dict(weights, strict=True)
    except BadField as error:
        raise CorruptModel(f"the card's architecture is unknown here: {error.message}", field="backbone") from error
    except (SafetensorError, RuntimeError) as error:
        reason = str(error)[:500]
        raise CorruptModel(
            f"{WEIGHTS_FILE} does not fit {card.architecture.backbone}: {reason}", field=WEIGHTS_FILE
        ) from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CorruptModel(f"{WEIGHTS_FILE} holds values that are no numbers, in {name}", field=WEIGHTS_FILE)
    return network.eval()
