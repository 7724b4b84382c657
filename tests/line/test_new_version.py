"""Production names a version with another preparation, and the old one again, while parts go by: none is held."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest

from inspectbus.api.v1.acquisition_pb2 import InspectRequest, Shot
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_QUALIFIED, Decision
from inspectbus.api.v1.inference_pb2 import GetEngineRequest
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.api.v1.model_pb2 import RollbackRequest, SetAliasRequest
from inspectbus.api.v1.model_pb2_grpc import ModelServiceStub
from inspectbus.api.v1.preprocessing_pb2 import PutRecipeRequest
from inspectbus.api.v1.preprocessing_pb2_grpc import PreprocessingServiceStub
from inspectbus.domain.model_version import PRODUCTION, ModelCard
from inspectbus.domain.preparation import Preparation
from inspectbus.line import open_line
from inspectbus.stores.database import default_url, open_database, writing
from inspectbus.stores.models import ModelStore
from inspectbus.stores.models import default_url as default_store
from inspectbus.training.aliases import Aliases
from inspectbus.training.registry import Registry
from tests.doubles.inference_service import comes_true
from tests.doubles.tiny_model import BRIGHT, DARK, tiny_version

PATIENCE_S = 20.0
SERVICES = ("results", "training", "inference", "preprocessing", "acquisition")


def rough(level: int) -> bytes:
    """A PNG of this mean grey level that is no blank wall."""
    random = np.random.default_rng(level)
    picture = random.integers(level - 25, level + 25, (96, 96, 3), dtype=np.uint8)
    return cv2.imencode(".png", picture)[1].tobytes()


@pytest.fixture
def cards(tmp_path: Path) -> tuple[ModelCard, ModelCard]:
    """Two registered versions, the first in production."""
    other = Preparation(width=64, height=48, colour="grey")
    folders = (tiny_version(tmp_path / "made"), tiny_version(tmp_path / "made", seed=1, preparation=other))
    database = open_database(default_url(tmp_path), "training")
    store = ModelStore(default_store(tmp_path), tmp_path / "not-used")
    registry = Registry(database, store)
    old, new = (registry.publish(folder) for folder in folders)
    with writing(database) as connection:
        registry.record(connection, old)
        registry.record(connection, new)
    Aliases(database, store).set("tiny", PRODUCTION, old.version, "somebody")
    database.dispose()
    return old, new


def test_a_new_preparation_comes_and_goes_and_every_part_is_judged_by_the_version_it_was_prepared_for(
    tmp_path: Path, cards: tuple[ModelCard, ModelCard]
) -> None:
    old, new = cards
    images = {DARK: rough(DARK), BRIGHT: rough(BRIGHT)}
    right = {DARK: VERDICT_QUALIFIED, BRIGHT: VERDICT_DEFECTIVE}
    sections: dict[str, dict[str, Any]] = {
        "training": {"role": "door"},
        # Never asks by itself, so what it follows is the news.
        "inference": {"model": "tiny", "engine": "torch", "threads": 1, "model_retry_s": 0.1, "model_poll_s": 3600},
    }
    bus_url = f"embedded://new-version-{uuid.uuid4()}"
    with open_line(SERVICES, sections, state_dir=tmp_path, bus_url=bus_url, port=0, metrics_port=0) as doors:
        with grpc.insecure_channel(doors["preprocessing"].address) as channel:
            recipe = "name: default\nmodel: tiny\n"
            PreprocessingServiceStub(channel).PutRecipe(PutRecipeRequest(yaml=recipe), timeout=PATIENCE_S)
        with (
            grpc.insecure_channel(doors["acquisition"].address) as to_inspect,
            grpc.insecure_channel(doors["training"].address) as to_models,
            grpc.insecure_channel(doors["inference"].address) as to_engine,
        ):
            engine = InferenceServiceStub(to_engine)
            inspector, models = AcquisitionServiceStub(to_inspect), ModelServiceStub(to_models)

            def decided_until(card: ModelCard) -> list[Decision]:
                decided: list[Decision] = []
                until_s = time.monotonic() + PATIENCE_S
                while not decided or decided[-1].model_version != card.version:
                    assert time.monotonic() < until_s
                    for level, image in images.items():
                        request = InspectRequest(shot=Shot(image=image))
                        decision = inspector.Inspect(request, timeout=PATIENCE_S).decision
                        assert decision.verdict == right[level], decision
                        decided.append(decision)
                return decided

            decided = decided_until(old)
            models.SetAlias(SetAliasRequest(name="tiny", alias=PRODUCTION, version=new.version), timeout=PATIENCE_S)
            assert comes_true(
                lambda: engine.GetEngine(GetEngineRequest(), timeout=PATIENCE_S).model_version == new.version
            )
            decided += decided_until(new)
            models.Rollback(RollbackRequest(name="tiny", alias=PRODUCTION), timeout=PATIENCE_S)
            decided += decided_until(old)
    expected = {card.version: card.preparation.hash for card in cards}
    assert all(each.preparation_hash == expected[each.model_version] for each in decided)
