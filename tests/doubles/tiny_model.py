"""A real model version, small enough to make in a test: a tiny timm network that calls bright images defective."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import (
    EXPORT_FILE,
    WEIGHTS_FILE,
    Architecture,
    Calibration,
    DataFingerprint,
    Export,
    ModelCard,
    Normalisation,
    PinnedImage,
)
from inspectbus.domain.preparation import Preparation
from inspectbus.networks.classifier import Classifier, build
from inspectbus.stores.datasets import Item
from inspectbus.stores.models import write_card
from inspectbus.training.export import OPSET, export
from inspectbus.training.validation import write_validation

SIDE = 32
"""Pixels; the smallest a preparation allows."""
DARK, BRIGHT = 40, 215
"""Grey levels of images it is sure about: QUALIFIED and DEFECTIVE."""


def tiny_version(
    parent: Path,
    name: str = "tiny",
    *,
    seed: int = 0,
    threshold: float = 0.5,
    qualified_below: float | None = None,
    preparation: Preparation | None = None,
    calibration: Calibration | None = None,
    misjudged: int = 0,
    images: str = "flat images",
    validation: Sequence[tuple[str, float]] | None = None,
    exported: bool = False,
    backbone: str = "test_efficientnet",
) -> Path:
    """Writes a whole version to parent/<version>, ready for `ModelStore.publish`, and gives that folder.

    It says of `misjudged` of its twenty defective validation images, of twenty good ones beside, that they are good;
    `images` names the set they come from. Or else `validation` has label and score of each; none, as before they were
    kept. Only where it is `exported`, which takes a second or two, other engines than torch can run it.
    """
    preparation = preparation or Preparation(width=SIDE, height=SIDE)
    calibration = calibration or Calibration()
    architecture = Architecture(backbone=backbone, dropout=0.5)
    normalisation = Normalisation(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
    network = _sure_of_brightness(architecture, normalisation, preparation, seed)

    folder = parent / f"unfinished-{name}-{seed}"
    (folder / "pinned").mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / WEIGHTS_FILE)
    pinned = []
    for number, level in enumerate((DARK, BRIGHT)):
        image = flat_image(level, preparation.width, preparation.height)
        cv2.imwrite(str(folder / f"pinned/{number}.png"), image[:, :, ::-1])
        pinned.append(PinnedImage(file=f"pinned/{number}.png", score=_score(network, image, calibration)))
    _write_validation(folder, _flat_validation(misjudged) if validation is None else validation, images)
    heatmap = export(network, backbone, calibration, preparation, folder / EXPORT_FILE) if exported else None
    card = ModelCard(
        name=name,
        architecture=architecture,
        preparation=preparation,
        normalisation=normalisation,
        calibration=calibration,
        threshold=threshold,
        qualified_below=qualified_below,
        validation_scores={"precision": 1.0, "recall": 1.0, "f1": 1.0, "average_precision": 1.0},
        data=DataFingerprint(
            name=images,
            sha256=hashlib.sha256(images.encode()).hexdigest(),
            train_good=1,
            train_defective=1,
            validation_good=20,
            validation_defective=20,
            split="none: two flat images",
        ),
        seed=seed,
        code_revision="test",
        created_at=datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        files={
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
        pinned=tuple(pinned),
        export=Export(opset=OPSET, heatmap=heatmap, images=2, deviation=0) if exported else None,
    )
    write_card(folder, card)
    return folder.rename(parent / card.version)


def flat_image(level: int, width: int = SIDE, height: int = SIDE) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of one grey level."""
    return np.full((height, width, 3), level, np.uint8)


def _flat_validation(misjudged: int) -> list[tuple[str, float]]:
    scores = np.linspace(0.1, 0.4, 40)
    scores[20:] += 0.5
    scores[20 : 20 + misjudged] = 0.05
    return list(zip(["good"] * 20 + ["defective"] * 20, scores.tolist(), strict=True))


def _write_validation(folder: Path, validation: Sequence[tuple[str, float]], images: str) -> None:
    if not validation:
        return
    items = [Item(f"{number}.png", Path(images) / f"{number}.png", None) for number in range(len(validation))]
    contents = [hashlib.sha256(str(item.path).encode()).hexdigest() for item in items]
    labels = np.array([word == "defective" for word, _ in validation], dtype=np.int64)
    scores = np.array([score for _, score in validation])
    write_validation(folder, list(zip(items, contents, strict=True)), labels, scores)


def _sure_of_brightness(
    architecture: Architecture, normalisation: Normalisation, preparation: Preparation, seed: int
) -> Classifier:
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        network = build(architecture, normalisation).eval()
        ends = np.stack([flat_image(level, preparation.width, preparation.height) for level in (DARK, BRIGHT)])
        dark, bright = network.backbone(network.normalise(torch.from_numpy(ends)))
        # The head measures how far an image lies on the way from dark to bright: -4 at one end, +4 at the other.
        way = bright - dark
        weight = 8 * way / way.dot(way)
        network.head.weight.copy_(weight[None])
        network.head.bias.fill_(-4 - weight.dot(dark))
    return network


def _score(network: Classifier, image: NDArray[np.uint8], calibration: Calibration) -> float:
    with torch.inference_mode():
        logits = network(torch.from_numpy(image[None])).numpy()
    return float(scored(logits, calibration)[0])
