"""A model version without a network, and the engine that runs it: its score is brightness, its passes last as told.

Neither needs torch, so a process with it starts in a second.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import cv2
import numpy as np

from inspectbus.domain.model_version import (
    WEIGHTS_FILE,
    Architecture,
    DataFingerprint,
    ModelCard,
    Normalisation,
    PinnedImage,
)
from inspectbus.domain.preparation import Preparation
from inspectbus.inference.engine import Images, Output, Scores
from inspectbus.stores.models import write_card
from tests.doubles.marked_parts import BRIGHT, DARK, fault_of_pixels, suffer

NAME = "stub"


def stub_version(parent: Path, side: int = 32) -> tuple[Path, ModelCard]:
    """Writes parent/<version>, for prepared pictures of side x side pixels."""
    folder = parent / "unfinished"
    (folder / "pinned").mkdir(parents=True)
    (folder / WEIGHTS_FILE).write_bytes(b"none")
    pinned = []
    for level in (DARK, BRIGHT):
        file = f"pinned/{level}.png"
        cv2.imwrite(str(folder / file), np.full((side, side, 3), level, np.uint8))
        pinned.append(PinnedImage(file=file, score=level / 255))
    none = hashlib.sha256(b"none").hexdigest()
    card = ModelCard(
        name=NAME,
        architecture=Architecture(backbone="none"),
        preparation=Preparation(width=side, height=side),
        normalisation=Normalisation(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)),
        threshold=0.5,
        validation_scores={},
        data=DataFingerprint(
            name="none",
            sha256=none,
            train_good=0,
            train_defective=0,
            validation_good=0,
            validation_defective=0,
            split="none",
        ),
        seed=0,
        code_revision="test",
        created_at="2026-01-01T00:00:00+00:00",
        files={
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
        pinned=tuple(pinned),
    )
    write_card(folder, card)
    return folder.rename(parent / card.version), card


class StubEngine:
    """Scores a picture by its mean level. A marked one does to this process what its colour says."""

    name = "stub"
    device = "none"
    streams = 1
    best_batch = None

    def __init__(self, batch_ms: float) -> None:
        self._batch_s = batch_ms / 1000
        self._pace = threading.Event()
        self._device = threading.Lock()

    def infer(self, images: Images) -> Output:
        if self._batch_s:
            with self._device:  # a second run waits for the first, as on a card
                self._pace.wait(self._batch_s)
        for image in images:
            suffer(fault_of_pixels(image))
        scores: Scores = (images.reshape(len(images), -1).mean(axis=1) / 255).astype(np.float32)
        return Output(scores)
