"""Prepared frames as preprocessing would publish them, for the tests of those who take them."""

from __future__ import annotations

import uuid

import cv2
import numpy as np

from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame, QualityReport
from inspectbus.domain.preparation import Preparation
from inspectbus.imaging.pixels import to_pixels
from tests.doubles.tiny_model import SIDE, flat_image


def prepared_frame(level: int, *, model: str = "tiny", preparation: Preparation | None = None) -> PreparedFrame:
    """A flat grey frame of line-1/top, with its original as PNG."""
    preparation = preparation or Preparation(width=SIDE, height=SIDE)
    image = flat_image(level, preparation.width, preparation.height)
    _, original = cv2.imencode(".png", np.ascontiguousarray(image))
    prepared = PreparedFrame(
        frame=Frame(
            frame_id=str(uuid.uuid4()),
            line="line-1",
            station="top",
            run_id="run-1",
            source_item=f"flat-{level}.png",
            sequence=level,
            part_id="part-1",
            recipe="flat",
            image=original.tobytes(),
        ),
        pixels=to_pixels(image),
        quality=QualityReport(sharpness=120.0, brightness=float(level)),
        recipe="flat",
        recipe_version=3,
        model=model,
        model_alias="production",
        preparation_hash=preparation.hash,
    )
    for moment in (prepared.frame.captured_at, prepared.received_at, prepared.prepared_at):
        moment.GetCurrentTime()
    return prepared
