"""A frame too large for a message: through the whole line by claim, recorded, and then gone unless it is evidence."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest

from inspectbus.api.v1.acquisition_pb2 import InspectRequest, Shot
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_QUALIFIED
from inspectbus.api.v1.preprocessing_pb2 import PutRecipeRequest
from inspectbus.api.v1.preprocessing_pb2_grpc import PreprocessingServiceStub
from inspectbus.api.v1.results_pb2 import WatchDecisionsRequest
from inspectbus.api.v1.results_pb2_grpc import ResultsServiceStub
from inspectbus.line import open_line
from inspectbus.stores.frames import INLINE_MAX_BYTES, FrameStore
from inspectbus.stores.models import read_card
from tests.doubles.buckets import bucket_server
from tests.doubles.model_owner import model_owner
from tests.doubles.tiny_model import BRIGHT, DARK, tiny_version

PATIENCE_S = 20.0
GRACE_S = 1.0


@pytest.fixture(params=["file", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/frames"
        return
    with bucket_server(monkeypatch) as server:
        yield f"{server.new_bucket()}/frames"


def rough(level: int) -> bytes:
    """A PNG of this mean grey level that cannot be packed."""
    random = np.random.default_rng(level)
    picture = random.integers(level - 25, level + 25, (600, 600, 3), dtype=np.uint8)
    return cv2.imencode(".png", picture)[1].tobytes()


def test_a_large_frame_is_recorded_and_after_the_grace_its_objects_are_gone_unless_they_are_evidence(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_version(tmp_path / "versions")
    images = {level: rough(level) for level in (DARK, BRIGHT)}
    assert all(len(image) > INLINE_MAX_BYTES for image in images.values())
    deleted: list[str] = []
    both_gone, delete = threading.Event(), FrameStore.delete

    def watched(self: FrameStore, key: str) -> None:
        delete(self, key)
        deleted.append(key)
        if len(deleted) == 2:
            both_gone.set()

    monkeypatch.setattr(FrameStore, "delete", watched)
    with model_owner() as (owner, models_address):
        owner.cards["tiny", "production"] = read_card(folder)
        sections: dict[str, dict[str, Any]] = {
            "results": {"claim_grace_s": GRACE_S, "sweep_period_s": 0.05},
            "inference": {"model": "tiny", "model_dir": folder, "threads": 1},
            # Smaller than the tiny network's pixels, so that they travel by claim too.
            "preprocessing": {"inline_max_bytes": 1024},
        }
        everywhere = {"state_dir": tmp_path, "frame_store_url": store_url, "models_address": models_address}
        bus_url = f"embedded://claims-{uuid.uuid4()}"
        services = ("results", "inference", "preprocessing", "acquisition")
        with open_line(services, sections, bus_url=bus_url, port=0, metrics_port=0, **everywhere) as doors:
            with grpc.insecure_channel(doors["preprocessing"].address) as channel:
                recipe = "name: default\nmodel: tiny\n"
                PreprocessingServiceStub(channel).PutRecipe(PutRecipeRequest(yaml=recipe), timeout=PATIENCE_S)
            with grpc.insecure_channel(doors["acquisition"].address) as channel:
                inspector = AcquisitionServiceStub(channel)
                for image in images.values():
                    inspector.Inspect(InspectRequest(shot=Shot(image=image)), timeout=PATIENCE_S)
            with grpc.insecure_channel(doors["results"].address) as channel:
                records = ResultsServiceStub(channel).WatchDecisions(WatchDecisionsRequest(after=0), timeout=PATIENCE_S)
                dark, bright = sorted((next(records).record.decision for _ in images), key=lambda one: one.score)
            assert both_gone.wait(PATIENCE_S)

    store = FrameStore(store_url)
    assert (dark.verdict, bright.verdict) == (VERDICT_QUALIFIED, VERDICT_DEFECTIVE)
    assert sorted(deleted) == sorted([dark.image_key, dark.pixels_key])
    assert (bright.evidence.original_key, bright.evidence.prepared_key) == (bright.image_key, bright.pixels_key)
    assert store.get(bright.evidence.original_key) == images[BRIGHT]
    assert store.size(bright.evidence.prepared_key) == 32 * 32 * 3
