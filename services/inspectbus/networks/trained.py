"""The network of a model version: the empty one that its card describes, with the weights that lie beside the card."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from inspectbus.domain.model_version import WEIGHTS_FILE, Architecture, Normalisation
from inspectbus.errors import BadField, CorruptModel
from inspectbus.networks.classifier import Classifier, build


def load_trained(folder: Path, architecture: Architecture, normalisation: Normalisation) -> Classifier:
    """In evaluation mode, on the processor. Raises CorruptModel when the weights do not fit the architecture."""
    try:
        network = build(architecture, normalisation)
        weights = load_file(folder / WEIGHTS_FILE)
        network.load_state_dict(weights, strict=True)
    except BadField as error:
        raise CorruptModel(f"the card's architecture is unknown here: {error.message}", field="backbone") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        fault = str(error)[:500]
        raise CorruptModel(
            f"{WEIGHTS_FILE} does not fit {architecture.backbone}: {fault}", field=WEIGHTS_FILE
        ) from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CorruptModel(f"{WEIGHTS_FILE} holds values that are no numbers, in {name}", field=WEIGHTS_FILE)
    return network.eval()
