"""One service, several models and a canary: each frame is judged by the version that it is for."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from inspectbus.api.oip.open_inference_pb2 import ModelInferRequest, ModelMetadataRequest, ModelReadyRequest
from inspectbus.api.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from inspectbus.api.v1.decision_pb2 import HOLD_REASON_NO_MODEL, VERDICT_HOLD
from inspectbus.api.v1.inference_pb2 import GetEngineRequest, InferRequest, InferStreamRequest
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus import Lane, topics
from inspectbus.bus.messages import prepared_message
from inspectbus.domain.model_version import ModelCard
from inspectbus.domain.preparation import Preparation
from inspectbus.imaging.pixels import to_pixels
from inspectbus.inference import loader
from inspectbus.inference.batcher import Batcher
from inspectbus.inference.canary import falls_in
from inspectbus.inference.engine import Images, Output
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.streams import Streams
from inspectbus.runtime.watchdog import Watchdog
from tests.doubles.inference_service import PATIENCE_S, Running, comes_true, field_of
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.production import Production, SignedLoads, production
from tests.doubles.tiny_model import DARK, SIDE, flat_image, tiny_version

OTHER = Preparation(width=SIDE, height=SIDE, colour="grey")
NEVER_S = 3600.0

Start = Callable[..., Running]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """By name of the model: three versions of one, the last with another preparation, and one each of two more."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    tiny = [tiny_version(folder, seed=seed) for seed in range(2)]
    return {
        "tiny": [*tiny, tiny_version(folder, preparation=OTHER)],
        "second": [tiny_version(folder, "second", seed=3), tiny_version(folder, "second", seed=4)],
        "third": [tiny_version(folder, "third", seed=5)],
    }


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Production]:
    with production(tmp_path / "store") as owner:
        yield owner


@pytest.fixture
def cards(owner: Production, made: dict[str, list[Path]]) -> dict[str, list[ModelCard]]:
    """Of the versions, all in the store. Production names the first of each model."""
    cards = {name: [owner.put(folder) for folder in folders] for name, folders in made.items()}
    for first, *_ in cards.values():
        owner.name(first)
    return cards


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[SignedLoads]:
    loads = SignedLoads()
    monkeypatch.setattr(loader, "chosen_engine", loads)
    yield loads
    loads.gate.set()


@pytest.fixture
def serve(start: Start, owner: Production, cards: dict[str, list[ModelCard]], loads: SignedLoads) -> Start:
    """A service whose default model, tiny, judges already."""

    def serve(**how: Any) -> Running:
        told = {"model": "tiny", "models_address": owner.address, "model_store_url": owner.url, "model_poll_s": NEVER_S}
        line = start(**{**told, **how})
        assert line.comes_to_judge(cards["tiny"][0].version), line.engine().detail
        return line

    return serve


def infer(line: Running, model: str = "") -> str:
    """The version that judges."""
    request = InferRequest(pixels=to_pixels(flat_image(DARK)), model=model)
    return line.stub.Infer(request, timeout=PATIENCE_S).judgement.model_version


def test_frames_of_each_model_are_judged_by_its_own_version(
    serve: Start, cards: dict[str, list[ModelCard]], loads: SignedLoads
) -> None:
    line = serve()
    names = ["tiny", "second", "third", "second", "tiny"]
    decisions = line.judge(*(prepared_frame(DARK, model=name) for name in names))
    for name, decision in zip(names, decisions, strict=True):
        version = cards[name][0].version
        assert (decision.model, decision.model_version, decision.model_alias) == (name, version, "production")
        assert decision.score == loads.score(version)
    assert loads.begun.count(cards["second"][0].version) == 1
    served = [(each.model, each.alias, each.ready) for each in line.engine().served]
    assert served == [(name, "production", True) for name in ("tiny", "second", "third")]
    for name in ("tiny", "second", "third"):
        facts = {"model": name, "version": cards[name][0].version, "alias": "production"}
        assert line.metric("inspectbus_inference_version_info", **facts, engine="signed", device="here") == 1


def test_calls_reach_each_model_by_its_name_and_the_default_one_by_none(
    serve: Start, cards: dict[str, list[ModelCard]], loads: SignedLoads
) -> None:
    line = serve(models=["second"])
    first, second = cards["tiny"][0].version, cards["second"][0].version
    assert line.comes_to_serve("second", "production", second)
    assert (infer(line), infer(line, "tiny"), infer(line, "second")) == (first, first, second)
    asked = [InferStreamRequest(pixels=to_pixels(flat_image(DARK)), model=name) for name in ("second", "")]
    answers = line.stub.InferStream(iter(asked), timeout=PATIENCE_S)
    assert {each.position: each.judgement.model_version for each in answers} == {0: second, 1: first}
    engine = line.engine("second")
    assert (engine.model, engine.model_version) == ("second", second)
    with grpc.insecure_channel(line.door.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for name, version in (("tiny", first), ("second", second)):
            request = ModelInferRequest(model_name=name)
            request.inputs.add(name="images", datatype="UINT8", shape=[1, SIDE, SIDE, 3])
            request.raw_input_contents.append(flat_image(DARK).tobytes())
            answer = stub.ModelInfer(request, timeout=PATIENCE_S)
            assert (answer.model_name, answer.model_version) == (name, version)
            metadata = stub.ModelMetadata(ModelMetadataRequest(name=name), timeout=PATIENCE_S)
            assert (metadata.name, list(metadata.versions)) == (name, [version])
            assert stub.ModelReady(ModelReadyRequest(name=name, version=version), timeout=PATIENCE_S).ready
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(ModelInferRequest(model_name="third"), timeout=PATIENCE_S)
    assert (caught.value.code(), field_of(caught.value)) == (grpc.StatusCode.NOT_FOUND, "model_name")


def test_a_call_opens_no_model_and_is_told_which_there_are(serve: Start, cards: dict[str, list[ModelCard]]) -> None:
    line = serve()
    with pytest.raises(grpc.RpcError, match="no model 'second' here; tiny is loaded") as caught:
        infer(line, "second")
    assert (caught.value.code(), field_of(caught.value)) == (grpc.StatusCode.NOT_FOUND, "model")
    with pytest.raises(grpc.RpcError) as caught:
        line.stub.GetEngine(GetEngineRequest(model="second"), timeout=PATIENCE_S)
    assert (caught.value.code(), field_of(caught.value)) == (grpc.StatusCode.NOT_FOUND, "model")
    assert len(line.engine().served) == 1


def test_frames_of_a_model_that_nobody_knows_are_held_and_keep_no_other_waiting(
    serve: Start, cards: dict[str, list[ModelCard]]
) -> None:
    line = serve(model_patience_s=0.2)
    held, judged = line.judge(prepared_frame(DARK, model="nobody"), prepared_frame(DARK))
    assert (held.verdict, held.hold.reason) == (VERDICT_HOLD, HOLD_REASON_NO_MODEL)
    assert "nobody@production" in held.hold.detail
    assert (held.model, held.model_version, held.model_alias) == ("nobody", "", "")
    assert judged.model_version == cards["tiny"][0].version


def test_frames_of_a_model_that_is_being_loaded_wait_for_it_and_others_do_not(
    serve: Start, cards: dict[str, list[ModelCard]], loads: SignedLoads
) -> None:
    line = serve()
    assert loads.entered.acquire(timeout=PATIENCE_S)
    loads.gate.clear()
    early = prepared_frame(DARK, model="second")
    confirmed = line.bus.publish(topics.PREPARED, prepared_message(early, "test", Lane.LIVE))
    assert loads.entered.acquire(timeout=PATIENCE_S)
    (between,) = line.judge(prepared_frame(DARK))
    assert between.model == "tiny"
    assert not confirmed.done()
    loads.gate.set()
    confirmed.result(PATIENCE_S)
    decision = line.decided.get(timeout=PATIENCE_S)
    assert (decision.frame_id, decision.model_version) == (early.frame.frame_id, cards["second"][0].version)


def test_at_the_limit_a_frame_of_one_more_model_is_held_and_says_so(serve: Start) -> None:
    line = serve(models_limit=2)
    second, third = line.judge(prepared_frame(DARK, model="second"), prepared_frame(DARK, model="third"))
    assert second.model_version
    assert (third.verdict, third.hold.reason) == (VERDICT_HOLD, HOLD_REASON_NO_MODEL)
    assert "no room for third@production" in third.hold.detail
    assert "models_limit is 2" in third.hold.detail


def test_at_the_limit_the_model_that_is_idle_is_let_go_and_comes_back_when_it_is_asked_for(
    serve: Start, cards: dict[str, list[ModelCard]], loads: SignedLoads
) -> None:
    line = serve(models_limit=2, model_idle_s=1e-6)
    for name in ("second", "third", "second"):
        (decision,) = line.judge(prepared_frame(DARK, model=name))
        assert decision.model_version == cards[name][0].version
        # the one before has gone, memory and all; the default one is never let go
        gone = {"second": "third", "third": "second"}[name]
        assert [each.model for each in line.engine().served] == ["tiny", name]
        if cards[gone][0].version in loads.begun:
            assert comes_true(partial(lambda version: loads.alive(version) is None, cards[gone][0].version))
    assert Counter(loads.begun) == {
        cards["tiny"][0].version: 1,
        cards["second"][0].version: 2,
        cards["third"][0].version: 1,
    }


def test_a_name_that_nobody_knows_keeps_no_model_out(serve: Start, cards: dict[str, list[ModelCard]]) -> None:
    line = serve(models_limit=2, model_patience_s=0.2)
    (held,) = line.judge(prepared_frame(DARK, model="nobody"))
    assert held.hold.reason == HOLD_REASON_NO_MODEL
    version = cards["second"][0].version
    # a load may take longer than the patience of one frame
    assert comes_true(lambda: line.judge(prepared_frame(DARK, model="second"))[0].model_version == version)


def test_each_model_follows_its_own_alias(
    serve: Start, owner: Production, cards: dict[str, list[ModelCard]], loads: SignedLoads
) -> None:
    line = serve(models=["second"])
    before, after = cards["second"]
    assert line.comes_to_serve("second", "production", before.version)
    owner.name(after, news_to=line.bus)
    assert line.comes_to_serve("second", "production", after.version)
    first, second = line.judge(prepared_frame(DARK), prepared_frame(DARK, model="second"))
    assert (first.model_version, second.model_version) == (cards["tiny"][0].version, after.version)


def test_a_recipe_may_ask_for_a_model_by_another_alias(
    serve: Start, owner: Production, cards: dict[str, list[ModelCard]]
) -> None:
    line = serve()
    owner.name(cards["tiny"][1], alias="night-shift")
    frame = prepared_frame(DARK)
    frame.model_alias = "night-shift"
    night, day = line.judge(frame, prepared_frame(DARK))
    assert (night.model_version, night.model_alias) == (cards["tiny"][1].version, "night-shift")
    assert (day.model_version, day.model_alias) == (cards["tiny"][0].version, "production")


class CostlyEngine:
    """Each run takes so long, by a clock that moves only here."""

    name = "costly"
    device = "here"
    streams = 1
    best_batch = None

    def __init__(self, name: str, cost_s: float, clock: list[float], runs: list[str], gate: threading.Event) -> None:
        self._who, self._cost_s, self._clock, self._runs, self._gate = name, cost_s, clock, runs, gate
        self.entered = threading.Semaphore(0)

    def infer(self, images: Images) -> Output:
        self.entered.release()
        assert self._gate.wait(PATIENCE_S)
        self._clock[0] += self._cost_s
        self._runs.append(self._who)
        return Output(np.zeros(len(images), np.float32))


def test_two_models_with_images_have_the_same_time_of_the_engines_and_not_as_many_turns() -> None:
    # given a model whose runs last nine times as long as the other's, and images of both that wait
    clock, gate = [0.0], threading.Event()
    runs: list[str] = []
    streams = Streams(1, lambda: clock[0])
    costs = {"slow": 9.0, "fast": 1.0}
    engines = {name: CostlyEngine(name, cost_s, clock, runs, gate) for name, cost_s in costs.items()}
    counts = {"slow": 10, "fast": 90}
    with ExitStack() as house:
        house.callback(gate.set)
        batchers = {
            name: house.enter_context(
                Batcher(
                    engine,
                    SIDE,
                    SIDE,
                    BatcherMetrics(CollectorRegistry(), 1),
                    Watchdog(60.0),
                    max_batch_size=1,
                    max_batch_wait_s=0.0,
                    queue_limit=100,
                    drain_s=PATIENCE_S,
                    flow=streams.flow(),
                )
            )
            for name, engine in engines.items()
        }
        first = batchers["slow"].call(flat_image(DARK))
        assert engines["slow"].entered.acquire(timeout=PATIENCE_S)
        asked = [batchers[name].call(flat_image(DARK)) for name, count in counts.items() for _ in range(count)]
        assert comes_true(lambda: streams.crowd == 2)
        # when the engines go on
        gate.set()
        for future in [first, *asked]:
            future.result(PATIENCE_S)
    # then at each moment neither was ahead by more than a run or two of the slow one
    given = dict.fromkeys(costs, 0.0)
    for name in runs[1:]:
        given[name] += costs[name]
        if all(given[each] < counts[each] * costs[each] for each in costs):
            assert abs(given["slow"] - given["fast"]) <= 2 * costs["slow"], given
    assert given == {"slow": 90.0, "fast": 90.0}


def with_station(frame: PreparedFrame, station: str) -> PreparedFrame:
    frame.frame.station = station
    return frame


def test_a_canary_takes_its_share_of_the_frames_and_the_same_ones_again(
    serve: Start, owner: Production, cards: dict[str, list[ModelCard]], loads: SignedLoads
) -> None:
    line = serve(canary_share=0.5)
    canary = cards["tiny"][1]
    owner.name(canary, news_to=line.bus, alias="canary")
    assert line.comes_to_serve("tiny", "canary", canary.version)
    frames = [prepared_frame(DARK) for _ in range(24)]
    decisions = line.judge(*frames)
    for decision in decisions:
        taken = falls_in(decision.frame_id, 0.5, "canary")
        expected = (canary.version, "canary") if taken else (cards["tiny"][0].version, "production")
        assert (decision.model_version, decision.model_alias) == expected
        assert decision.score == loads.score(decision.model_version)
    assert len({decision.model_version for decision in decisions}) == 2
    # when they come again, they go the same way
    assert [each.model_version for each in line.judge(*frames)] == [each.model_version for each in decisions]
    # and calls, which are no frames, are production's
    assert infer(line, "tiny") == cards["tiny"][0].version


def test_a_canary_takes_all_frames_of_named_stations_and_may_be_replaced(
    serve: Start, owner: Production, cards: dict[str, list[ModelCard]]
) -> None:
    line = serve(canary_stations=["line-1/side"])

    def by_station() -> list[str]:
        frames = [with_station(prepared_frame(DARK), station) for station in ("top", "side", "top", "side")]
        return [each.model_version for each in line.judge(*frames)]

    old, new = cards["tiny"][0].version, cards["tiny"][1].version
    # none is named yet, so nothing changes
    assert by_station() == [old] * 4
    owner.name(cards["tiny"][1], news_to=line.bus, alias="canary")
    assert line.comes_to_serve("tiny", "canary", new)
    assert by_station() == [old, new, old, new]
    # when production gets the canary's version and the canary another
    owner.name(cards["tiny"][1], news_to=line.bus)
    owner.name(cards["tiny"][0], news_to=line.bus, alias="canary")
    assert line.comes_to_serve("tiny", "canary", old)
    assert line.comes_to_serve("tiny", "production", new)
    assert by_station() == [new, old, new, old]


def test_a_canary_with_another_preparation_judges_none_and_the_engine_says_why(
    serve: Start, owner: Production, cards: dict[str, list[ModelCard]]
) -> None:
    line = serve(canary_share=1)
    canary = cards["tiny"][2]
    owner.name(canary, news_to=line.bus, alias="canary")
    assert line.comes_to_serve("tiny", "canary", canary.version)
    assert {each.model_version for each in line.judge(*(prepared_frame(DARK) for _ in range(4)))} == {
        cards["tiny"][0].version
    }
    detail = line.served("tiny", "canary").detail
    assert f"expects preparation {canary.preparation.hash}" in detail
    assert "judges none" in detail
    assert line.served("tiny", "production").detail == ""


def test_a_share_is_what_it_says_and_shares_for_different_purposes_do_not_meet_the_same_frames() -> None:
    ids = [str(uuid.UUID(int=number)) for number in range(4000)]
    taken = {purpose: {each for each in ids if falls_in(each, 0.25, purpose)} for purpose in ("canary", "shadow")}
    for each in taken.values():
        assert abs(len(each) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert abs(len(taken["canary"] & taken["shadow"]) - 250) < 5 * (4000 * 0.0625 * 0.9375) ** 0.5
    assert not any(falls_in(each, 0.0, "canary") for each in ids)
    assert all(falls_in(each, 1.0, "canary") for each in ids)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"model_dir": "/models/0f3a", "models": ["second"]}, "model_dir is one version"),
        ({"model_dir": "/models/0f3a", "canary_share": 0.1}, "model_dir is one version"),
        ({"model_dir": "/models/0f3a", "shadow_share": 0.1}, "model_dir is one version"),
        ({"models": ["a", "b", "c", "d"]}, "models_limit is 4"),
        ({"canary_share": 1.5}, "canary_share"),
        ({"canary_stations": ["line-1"]}, "canary_stations"),
        ({"models": ["No Name"]}, "models"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(how: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        InferenceSettings(**how)
