"""A shadow judges the same frames and is only compared: it costs production neither a frame nor a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch

from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_QUALIFIED
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.bus import Delivery, Lane, topics
from inspectbus.bus.messages import prepared_message
from inspectbus.domain.model_version import ModelCard
from inspectbus.domain.preparation import Preparation
from inspectbus.inference import loader
from inspectbus.inference.canary import falls_in
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.shadow import UNCONFIRMED
from tests.doubles.inference_service import PATIENCE_S, Running, comes_true
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.production import Production, SignedLoads, production
from tests.doubles.tiny_model import BRIGHT, DARK, SIDE, tiny_version

OTHER = Preparation(width=SIDE, height=SIDE, colour="grey")
NEVER_S = 3600.0

Start = Callable[..., Running]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three versions of one preparation, and one of another."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shadows")
    return [*(tiny_version(folder, seed=seed) for seed in range(3)), tiny_version(folder, preparation=OTHER)]


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Production]:
    with production(tmp_path / "store") as owner:
        yield owner


@pytest.fixture
def cards(owner: Production, made: list[Path]) -> list[ModelCard]:
    cards = [owner.put(folder) for folder in made]
    owner.name(cards[0])
    owner.name(cards[1], alias="shadow")
    return cards


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[SignedLoads]:
    loads = SignedLoads()
    monkeypatch.setattr(loader, "chosen_engine", loads)
    yield loads
    loads.gate.set()


@pytest.fixture
def serve(start: Start, owner: Production, cards: list[ModelCard]) -> Start:
    """A service whose first version judges already, with its shadow."""

    def serve(shadow: int = 1, **how: Any) -> Running:
        told = {
            "model": "tiny",
            "models_address": owner.address,
            "model_store_url": owner.url,
            "model_poll_s": NEVER_S,
            "max_batch_size": 1,
            "shadow_share": 1.0,
        }
        line = start(**{**told, **how})
        assert line.comes_to_judge(cards[0].version), line.engine().detail
        assert line.comes_to_serve("tiny", "shadow", cards[shadow].version)
        return line

    return serve


def said_on(line: Running) -> Queue[ShadowDecision]:
    """What the shadow says from now on, taken as results takes it."""
    said: Queue[ShadowDecision] = Queue()

    def take(delivery: Delivery) -> None:
        message = delivery.message
        shadow = ShadowDecision.FromString(message.body)
        assert message.key == (shadow.line, shadow.station)
        assert message.id == f"{shadow.frame_id}:shadow:{shadow.model_version}"
        said.put(shadow)
        delivery.done()

    line.bus.subscribe(topics.SHADOWS, "shadows", take)
    return said


def dropped(line: Running, reason: str) -> float:
    return line.metric("inspectbus_inference_shadows_dropped_total", model="tiny", reason=reason)


def test_what_the_shadow_says_of_a_frame_goes_its_own_way(serve: Start, cards: list[ModelCard]) -> None:
    # given real engines
    line = serve(engine="torch")
    said = said_on(line)
    bright = prepared_frame(BRIGHT)
    bright.threshold_override = 0.75
    frames = {each.frame.frame_id: each for each in (prepared_frame(DARK), bright)}
    # when
    decisions = {each.frame_id: each for each in line.judge(*frames.values())}
    # then each frame has its decision by production, and one shadow
    shadows = {(each := said.get(timeout=PATIENCE_S)).frame_id: each for _ in frames}
    assert shadows.keys() == decisions.keys() == frames.keys()
    for frame_id, shadow in shadows.items():
        decision = decisions[frame_id]
        assert (decision.model_version, decision.model_alias) == (cards[0].version, "production")
        assert (shadow.model, shadow.model_version) == ("tiny", cards[1].version)
        assert (shadow.line, shadow.station) == ("line-1", "top")
        assert (shadow.recipe, shadow.recipe_version) == ("flat", 3)
        assert shadow.preparation_hash == cards[1].preparation.hash
        assert shadow.verdict == decision.verdict
        # Two networks that were made from different seeds: near each other, and not the same.
        assert shadow.score == pytest.approx(decision.score, abs=0.05)
        assert shadow.inferred_at.seconds > 0
    assert {shadow.verdict for shadow in shadows.values()} == {VERDICT_DEFECTIVE, VERDICT_QUALIFIED}
    assert shadows[bright.frame.frame_id].threshold == 0.75
    assert line.metric("inspectbus_inference_shadows_total", model="tiny") == 2


def test_under_load_shadows_are_dropped_first_and_wait_until_production_has_no_images(
    serve: Start, cards: list[ModelCard], loads: SignedLoads
) -> None:
    # given production in the middle of a frame, and more that wait
    line = serve(shadow_queue_limit=4)
    said = said_on(line)
    engine = loads.engine(cards[0].version)
    engine.gate.clear()
    frames = [prepared_frame(DARK) for _ in range(10)]
    confirmed = [line.bus.publish(topics.PREPARED, prepared_message(each, "test", Lane.LIVE)) for each in frames]
    assert engine.entered.acquire(timeout=PATIENCE_S)
    # then there is room for four shadows, and the others are dropped
    assert comes_true(lambda: dropped(line, "queue_full") == 6)
    assert line.served("tiny", "shadow").waiting == 4
    # when production goes on
    engine.gate.set()
    for future in confirmed:
        future.result(PATIENCE_S)
    # then every frame is decided before any shadow is computed
    decided = {line.decided.get(timeout=PATIENCE_S).frame_id for _ in frames}
    assert decided == {each.frame.frame_id for each in frames}
    shadows = {said.get(timeout=PATIENCE_S).frame_id for _ in range(4)}
    assert shadows < decided
    assert loads.runs == [cards[0].version] * 10 + [cards[1].version] * 4
    assert said.empty()


def test_a_frame_never_waits_for_its_shadow(serve: Start, cards: list[ModelCard], loads: SignedLoads) -> None:
    # given a shadow that hangs in the middle of a frame; the other stream is production's
    line = serve(streams=2)
    engine = loads.engine(cards[1].version)
    engine.gate.clear()
    line.judge(prepared_frame(DARK))
    assert engine.entered.acquire(timeout=PATIENCE_S)
    # then frames are decided and acknowledged all the same
    for decision in line.judge(*(prepared_frame(DARK) for _ in range(5))):
        assert decision.score == loads.score(cards[0].version)
    engine.gate.set()


def test_a_shadow_that_waits_too_long_is_dropped(serve: Start, cards: list[ModelCard], loads: SignedLoads) -> None:
    line = serve(shadow_patience_s=0.05)
    engine = loads.engine(cards[0].version)
    engine.gate.clear()
    confirmed = line.bus.publish(topics.PREPARED, prepared_message(prepared_frame(DARK), "test", Lane.LIVE))
    assert engine.entered.acquire(timeout=PATIENCE_S)
    assert comes_true(lambda: dropped(line, "too_late") == 1)
    engine.gate.set()
    confirmed.result(PATIENCE_S)
    assert loads.runs == [cards[0].version]


def test_shadows_that_cannot_be_published_are_dropped_and_hold_no_frame(serve: Start, loads: SignedLoads) -> None:
    # given a bus on which nobody settles what shadows say
    line = serve()
    kept: list[Delivery] = []
    line.bus.subscribe(topics.SHADOWS, "shadows", kept.append, prefetch=100)
    # when more frames are judged than may be unconfirmed
    for _ in range(UNCONFIRMED + 3):
        line.judge(prepared_frame(DARK))
    # then the rest is dropped, and when the bus has gone on there is room again
    assert comes_true(lambda: dropped(line, "unpublished") == 3)
    assert comes_true(lambda: len(kept) == UNCONFIRMED)
    for delivery in list(kept):
        delivery.done()
    assert comes_true(lambda: line.metric("inspectbus_inference_shadows_total", model="tiny") == UNCONFIRMED)
    line.judge(prepared_frame(DARK))
    assert comes_true(lambda: len(kept) == UNCONFIRMED + 1)
    kept[-1].done()


def test_a_shadow_judges_its_share_and_no_frame_that_is_replayed(serve: Start, loads: SignedLoads) -> None:
    line = serve(shadow_share=0.5)
    said = said_on(line)

    def replayed(frame: PreparedFrame) -> PreparedFrame:
        frame.frame.revision = 1
        return frame

    frames = [prepared_frame(DARK) for _ in range(16)]
    line.judge(*frames, *(replayed(prepared_frame(DARK)) for _ in range(8)))
    wanted = {each.frame.frame_id for each in frames if falls_in(each.frame.frame_id, 0.5, "shadow")}
    assert {said.get(timeout=PATIENCE_S).frame_id for _ in wanted} == wanted
    assert said.empty()


def test_a_shadow_with_another_preparation_judges_none_and_the_engine_says_why(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    owner.name(cards[3], alias="shadow")
    line = serve(shadow=3)
    line.judge(*(prepared_frame(DARK) for _ in range(3)))
    assert comes_true(lambda: dropped(line, "preparation") == 3)
    assert "judges none" in line.served("tiny", "shadow").detail
    assert loads.runs == [cards[0].version] * 3


def test_a_shadow_may_be_replaced(serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads) -> None:
    line = serve()
    said = said_on(line)
    owner.name(cards[2], news_to=line.bus, alias="shadow")
    assert line.comes_to_serve("tiny", "shadow", cards[2].version)
    (decision,) = line.judge(prepared_frame(DARK))
    assert decision.model_version == cards[0].version
    shadow = said.get(timeout=PATIENCE_S)
    assert (shadow.model_version, shadow.score) == (cards[2].version, loads.score(cards[2].version))


def test_without_a_version_that_shadow_names_frames_are_decided_and_it_is_counted(
    start: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    told = {"model": "tiny", "models_address": owner.address, "model_store_url": owner.url, "model_poll_s": NEVER_S}
    del owner._owner.cards["tiny", "shadow"]
    line = start(**told, shadow_share=1.0)
    assert line.comes_to_judge(cards[0].version)
    line.judge(prepared_frame(DARK))
    assert comes_true(lambda: dropped(line, "no_model") == 1)


@pytest.mark.parametrize(("bus_url", "has"), [("embedded://line", True), ("amqp://broker/", True), ("solo://7", False)])
def test_what_is_worked_on_alone_has_no_shadow_to_die_of(bus_url: str, has: bool) -> None:
    assert InferenceSettings(shadow_share=1.0, bus_url=bus_url).has_shadow == has
