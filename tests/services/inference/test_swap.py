"""A new version takes the place of the one that judges while frames go on: none is lost, failed or misnamed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from inspectbus.api.oip.open_inference_pb2 import ModelInferRequest, ModelReadyRequest
from inspectbus.api.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from inspectbus.api.v1.decision_pb2 import HOLD_REASON_ERROR, VERDICT_DEFECTIVE, VERDICT_HOLD, VERDICT_QUALIFIED
from inspectbus.api.v1.inference_pb2 import InferRequest, InferResponse
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus import Lane, Message, topics
from inspectbus.bus.messages import prepared_message
from inspectbus.domain.model_version import WEIGHTS_FILE, ModelCard
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import CorruptModel, ModelNotReady
from inspectbus.imaging.pixels import to_pixels
from inspectbus.inference import loader, priority
from inspectbus.inference.settings import InferenceSettings
from inspectbus.stores.models import read_card, write_card
from tests.doubles.inference_service import PATIENCE_S, Running, comes_true, running
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.production import Production, SignedLoads, production
from tests.doubles.tiny_model import BRIGHT, DARK, SIDE, flat_image, tiny_version

OTHER = Preparation(width=SIDE, height=SIDE, colour="grey")
NEVER_S = 3600.0
"""A poll that does not come within a test: what the loader does then, it does for another reason."""

Start = Callable[..., Running]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three versions of one preparation, and one of another."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("versions")
    return [*(tiny_version(folder, seed=seed) for seed in range(3)), tiny_version(folder, preparation=OTHER)]


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Production]:
    with production(tmp_path / "store") as owner:
        yield owner


@pytest.fixture
def cards(owner: Production, made: list[Path]) -> list[ModelCard]:
    """Of the versions, all in the store. Production names the first."""
    cards = [owner.put(folder) for folder in made]
    owner.name(cards[0])
    return cards


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[SignedLoads]:
    """Services opened from here on load as the test says, and their engines sign what they judge."""
    loads = SignedLoads()
    monkeypatch.setattr(loader, "chosen_engine", loads)
    yield loads
    loads.gate.set()


@pytest.fixture
def serve(start: Start, owner: Production, cards: list[ModelCard]) -> Start:
    """A service whose first version judges already."""

    def serve(**how: Any) -> Running:
        told = {"model": "tiny", "models_address": owner.address, "model_store_url": owner.url, "model_poll_s": NEVER_S}
        line = start(**{**told, **how})
        assert line.comes_to_judge(cards[0].version), line.engine().detail
        return line

    return serve


def send(line: Running, *frames: PreparedFrame) -> list[Future[None]]:
    return [line.bus.publish(topics.PREPARED, prepared_message(frame, "test", Lane.LIVE)) for frame in frames]


def entered(gate: threading.Semaphore) -> bool:
    return gate.acquire(timeout=PATIENCE_S)


def swaps(line: Running, result: str) -> float:
    return line.metric("inspectbus_inference_swaps_total", result=result)


def infer(line: Running, level: int, **fields: Any) -> InferResponse:
    return line.stub.Infer(InferRequest(pixels=to_pixels(flat_image(level)), **fields), timeout=PATIENCE_S)


@pytest.mark.parametrize("carrier", ["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_an_alias_that_is_pointed_elsewhere_is_followed_at_once_and_back_again(
    request: pytest.FixtureRequest, carrier: str, serve: Start, owner: Production, cards: list[ModelCard]
) -> None:
    bus_url = request.getfixturevalue("rabbitmq_vhost").url if carrier == "rabbitmq" else ""
    line = serve(bus_url=bus_url, engine="torch")
    for card in (cards[1], cards[0]):
        # when
        owner.name(card, news_to=line.bus)
        # then
        assert line.comes_to_judge(card.version)
        good, bad = line.judge(prepared_frame(DARK), prepared_frame(BRIGHT))
        assert (good.verdict, bad.verdict) == (VERDICT_QUALIFIED, VERDICT_DEFECTIVE)
        assert {good.model_version, bad.model_version} == {card.version}
        facts = {"model": "tiny", "version": card.version, "alias": "production"}
        engine = line.engine()
        assert line.metric("inspectbus_inference_version_info", **facts, engine=engine.engine, device="cpu") == 1
        assert engine.detail == ""
    assert swaps(line, "done") == 2
    assert line.metric("inspectbus_inference_swap_seconds_count") == 2


def test_an_alias_whose_news_was_lost_is_found_by_asking(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve(model_poll_s=0.02)
    owner.name(cards[1])
    assert line.comes_to_judge(cards[1].version)


def test_news_of_other_aliases_and_news_that_is_none_are_passed_over(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve()
    other = cards[1].model_copy(update={"name": "another"})
    owner.name(other, news_to=line.bus)
    garbage = Message(b"\xff\xff", ("model", "alias-changed"), "test")
    line.bus.publish(topics.EVENTS, garbage).result(PATIENCE_S)
    owner.name(cards[1], news_to=line.bus)
    assert line.comes_to_judge(cards[1].version)
    assert loads.begun == [cards[0].version, cards[1].version]


def test_what_was_admitted_before_is_judged_by_the_old_version_which_then_is_gone(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    # given an old version in the middle of a batch, and frames and a call that wait for it
    line = serve(max_batch_size=1, streams=2)  # its engine holds one of them until the test lets it go
    old, new = cards[0].version, cards[1].version
    engine = loads.engine(old)
    engine.gate.clear()
    waiting = [prepared_frame(DARK) for _ in range(3)]
    confirmed = send(line, *waiting)
    assert entered(engine.entered)
    assert line.waits(2)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(infer, line, DARK)
        assert line.waits(3)
        # when the new version is there
        owner.name(cards[1], news_to=line.bus)
        assert line.comes_to_judge(new)
        # then what comes from now on is its own, though the old one is still busy
        (late,) = line.judge(prepared_frame(DARK))
        assert (late.model_version, late.score) == (new, loads.score(new))
        assert not any(future.done() for future in confirmed)
        # and the rest is answered by the one that took it
        gate = engine.gate
        del engine
        gate.set()
        decided = [line.decided.get(timeout=PATIENCE_S) for _ in waiting]
        answered = call.result(PATIENCE_S).judgement
    assert {each.frame_id for each in decided} == {each.frame.frame_id for each in waiting}
    assert {(each.model_version, each.score) for each in decided} == {(old, loads.score(old))}
    assert (answered.model_version, answered.score) == (old, loads.score(old))
    assert comes_true(lambda: loads.alive(old) is None)
    assert [thread.name for thread in threading.enumerate()].count("inference-batcher-timer") == 1


def test_fifty_swaps_under_load_lose_no_frame_fail_no_call_and_misname_nothing(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve()
    sent: list[Future[None]] = []
    called: list[str] = []
    over = threading.Event()

    def publish() -> None:
        while not over.is_set():
            batch = send(line, *(prepared_frame(DARK) for _ in range(4)))
            sent.extend(batch)
            batch[0].result(PATIENCE_S)  # the load is bounded by what is judged

    def call() -> None:
        while not over.is_set():
            judgement = infer(line, DARK).judgement
            assert judgement.score == loads.score(judgement.model_version)
            called.append(judgement.model_version)

    def went_on(before: tuple[int, int]) -> bool:
        return len(sent) > before[0] and len(called) > before[1]

    with ThreadPoolExecutor(2) as pool:
        frames, calls = pool.submit(publish), pool.submit(call)
        try:
            for number in range(50):
                card, before = cards[(number + 1) % 3], (len(sent), len(called))
                owner.name(card, news_to=line.bus)
                assert line.comes_to_judge(card.version), line.engine().detail
                assert comes_true(partial(went_on, before))
        finally:
            over.set()
        frames.result(PATIENCE_S)
        calls.result(PATIENCE_S)
    assert len(sent) >= 200
    for future in sent:
        future.result(PATIENCE_S)
    judged_by = set()
    for _ in sent:
        decision = line.decided.get(timeout=PATIENCE_S)
        assert decision.verdict != VERDICT_HOLD, decision.hold.detail
        assert decision.score == loads.score(decision.model_version)
        judged_by.add(decision.model_version)
    assert line.decided.empty()
    assert judged_by == {card.version for card in cards[:3]}
    assert swaps(line, "done") == 50


def test_a_load_gives_way_to_those_who_answer_and_beside_a_version_that_judges_to_those_who_compute(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve()
    owner.name(cards[1], news_to=line.bus)
    assert line.comes_to_judge(cards[1].version)
    beside = priority.LOADS if priority._can_be_undone() else priority.COMPUTES
    assert loads.niceness == [priority._level(priority.COMPUTES), priority._level(beside)]


def damaged(owner: Production, version: Path, tmp_path: Path) -> ModelCard:
    card = owner.put(version)
    file = owner.folder / card.name / card.version / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    return card


def drifted(owner: Production, version: Path, tmp_path: Path) -> ModelCard:
    """All hashes fit; but its pinned image got another score than it says."""
    folder = tiny_version(tmp_path / "drifted", seed=9)
    card = read_card(folder)
    first, second = card.pinned
    card = card.model_copy(update={"pinned": (first, second.model_copy(update={"score": 0.5}))})
    write_card(folder, card)
    return owner.put(folder.rename(folder.with_name(card.version)))


@pytest.mark.parametrize(
    ("spoil", "reason"), [(damaged, "is not the file that was tested"), (drifted, "pinned image pinned/1.png")]
)
def test_a_new_version_that_is_not_what_was_tested_is_refused_aloud_and_the_old_one_goes_on(
    serve: Start,
    owner: Production,
    cards: list[ModelCard],
    made: list[Path],
    tmp_path: Path,
    spoil: Callable[[Production, Path, Path], ModelCard],
    reason: str,
) -> None:
    line = serve(engine="torch")
    bad = spoil(owner, made[1], tmp_path)

    owner.name(bad, news_to=line.bus)

    assert comes_true(lambda: "is refused" in line.engine().detail)
    engine = line.engine()
    assert (engine.ready, engine.model_version) == (True, cards[0].version)
    assert f"version {bad.version} of tiny is refused, and {cards[0].version} goes on" in engine.detail
    assert reason in engine.detail
    assert swaps(line, "refused") == 1
    assert line.metric("inspectbus_inference_load_failures_total", reason="CorruptModel") == 1
    (decision,) = line.judge(prepared_frame(BRIGHT))
    assert (decision.verdict, decision.model_version) == (VERDICT_DEFECTIVE, cards[0].version)


def test_a_refused_version_is_not_tried_again_until_the_alias_has_moved(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve(model_poll_s=0.01)
    bad, good = cards[1], cards[2]
    loads.refused[bad.version] = CorruptModel("pinned image 0.png scores otherwise")
    owner.name(bad)
    assert comes_true(lambda: line.engine().detail.endswith("scores otherwise"))
    # when it is looked at again and again
    asked = owner.asked()
    assert comes_true(lambda: owner.asked() > asked + 10)
    # then it has been loaded once
    assert loads.begun == [cards[0].version, bad.version]
    # and when the alias has been elsewhere, once more
    owner.name(good)
    assert line.comes_to_judge(good.version)
    del loads.refused[bad.version]
    owner.name(bad)
    assert line.comes_to_judge(bad.version)
    assert line.engine().detail == ""


def test_a_refused_version_is_tried_again_after_a_long_pause(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve(model_poll_s=0.01, refused_pause_s=0.05)
    loads.refused[cards[1].version] = RuntimeError("out of memory, or so")
    owner.name(cards[1])
    assert comes_true(lambda: swaps(line, "refused") >= 2)
    loads.refused.clear()
    assert line.comes_to_judge(cards[1].version)


def test_a_version_whose_store_is_away_is_no_bad_one_and_tried_again_at_the_next_look(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve(model_poll_s=0.01, refused_pause_s=NEVER_S)
    loads.refused[cards[1].version] = ModelNotReady("the store does not answer")
    owner.name(cards[1])
    assert comes_true(lambda: swaps(line, "put_off") >= 2)
    assert comes_true(lambda: "cannot be loaded yet" in line.engine().detail)
    loads.refused.clear()
    assert line.comes_to_judge(cards[1].version)


def test_frames_prepared_for_a_version_we_do_not_know_yet_wait_for_it(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    # given preprocessing heard of the new alias first
    line = serve()
    new = cards[3].version
    loads.gate.clear()
    owner.name(cards[3])
    early = [prepared_frame(DARK, preparation=OTHER) for _ in range(3)]
    assert entered(loads.entered)
    confirmed = send(line, *early)
    # when their version is being loaded
    assert entered(loads.entered)
    # then others are judged meanwhile, and they are judged when it is there
    (between,) = line.judge(prepared_frame(DARK))
    assert between.model_version == cards[0].version
    assert not any(future.done() for future in confirmed)
    loads.gate.set()
    decided = [line.decided.get(timeout=PATIENCE_S) for _ in early]
    assert {each.frame_id for each in decided} == {each.frame.frame_id for each in early}
    assert {(each.model_version, each.score) for each in decided} == {(new, loads.score(new))}


def test_frames_prepared_for_the_old_version_are_its_own_while_it_stands_and_the_way_back_is_short(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve()
    old, new = cards[0], cards[3]
    owner.name(new, news_to=line.bus)
    assert line.comes_to_judge(new.version)
    # every door finds the version that the pixels are for
    before, after = line.judge(prepared_frame(DARK), prepared_frame(DARK, preparation=OTHER))
    assert (before.model_version, after.model_version) == (old.version, new.version)
    assert infer(line, DARK, preparation_hash=old.preparation.hash).judgement.model_version == old.version
    assert infer(line, DARK).judgement.model_version == new.version
    with grpc.insecure_channel(line.door.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        request = ModelInferRequest(model_name="tiny")
        request.inputs.add(name="images", datatype="UINT8", shape=[1, SIDE, SIDE, 3])
        request.raw_input_contents.append(flat_image(DARK).tobytes())
        assert stub.ModelInfer(request, timeout=PATIENCE_S).model_version == new.version
        request.model_version = old.version
        assert stub.ModelInfer(request, timeout=PATIENCE_S).model_version == old.version
        request.model_version = ""
        request.parameters["preparation_hash"].string_param = old.preparation.hash
        assert stub.ModelInfer(request, timeout=PATIENCE_S).model_version == old.version
        for card, ready in ((old, True), (new, True), (cards[1], False)):
            asked = ModelReadyRequest(name="tiny", version=card.version)
            assert stub.ModelReady(asked, timeout=PATIENCE_S).ready == ready
    # when production names the old one again
    owner.name(old, news_to=line.bus)
    assert line.comes_to_judge(old.version)
    # then nothing had to be loaded, and now the other one stands beside it
    assert loads.begun == [old.version, new.version]
    before, after = line.judge(prepared_frame(DARK), prepared_frame(DARK, preparation=OTHER))
    assert (before.model_version, after.model_version) == (old.version, new.version)


def test_frames_prepared_for_a_version_that_has_gone_are_held_and_say_so(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve(preparation_stands_s=0)
    owner.name(cards[3], news_to=line.bus)
    assert line.comes_to_judge(cards[3].version)
    for decision in line.judge(*(prepared_frame(DARK) for _ in range(3))):
        assert (decision.verdict, decision.hold.reason) == (VERDICT_HOLD, HOLD_REASON_ERROR)
        assert f"{cards[3].version} expects {OTHER.hash}" in decision.hold.detail


def test_frames_prepared_for_a_version_that_is_refused_are_held_with_the_reason(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    line = serve()
    loads.refused[cards[3].version] = CorruptModel("pinned image 0.png scores otherwise")
    owner.name(cards[3])
    held, judged = line.judge(prepared_frame(DARK, preparation=OTHER), prepared_frame(DARK))
    assert held.hold.reason == HOLD_REASON_ERROR
    assert "is refused" in held.hold.detail
    assert "scores otherwise" in held.hold.detail
    with pytest.raises(grpc.RpcError, match="scores otherwise"):
        infer(line, DARK, preparation_hash=OTHER.hash)
    assert judged.model_version == cards[0].version


@pytest.mark.parametrize("last", [2, 0], ids=["to a third", "and back"])
def test_an_alias_that_moves_on_during_a_load_is_followed_to_where_it_is(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads, last: int
) -> None:
    line = serve()
    assert entered(loads.entered)
    loads.gate.clear()
    owner.name(cards[1], news_to=line.bus)
    assert entered(loads.entered)
    # when it moves on
    owner.name(cards[last], news_to=line.bus)
    loads.gate.set()
    # then the version in between never judges
    assert comes_true(lambda: swaps(line, "overtaken") == 1)
    assert line.comes_to_judge(cards[last].version)
    (decision,) = line.judge(prepared_frame(DARK))
    assert decision.model_version == cards[last].version
    assert swaps(line, "done") == (1 if last else 0)
    assert loads.alive(cards[1].version) is None


def test_a_third_version_is_not_loaded_before_the_first_has_gone(
    serve: Start, owner: Production, cards: list[ModelCard], loads: SignedLoads
) -> None:
    # given a first version that still judges a frame, and the second in its place
    line = serve()
    engine = loads.engine(cards[0].version)
    engine.gate.clear()
    send(line, prepared_frame(DARK))
    assert entered(engine.entered)
    owner.name(cards[1], news_to=line.bus)
    assert line.comes_to_judge(cards[1].version)
    # when a third is wanted
    owner.name(cards[2], news_to=line.bus)
    assert comes_true(lambda: "once" in line.engine().detail)
    # then it waits, and comes when the first has gone
    assert loads.begun == [cards[0].version, cards[1].version]
    engine.gate.set()
    assert line.comes_to_judge(cards[2].version)
    assert line.decided.get(timeout=PATIENCE_S).model_version == cards[0].version


def test_a_service_that_ends_in_the_middle_of_a_load_finishes_its_frames_and_starts_nothing(
    owner: Production, cards: list[ModelCard], loads: SignedLoads, tmp_path: Path
) -> None:
    settings = InferenceSettings(
        port=0,
        metrics_port=0,
        state_dir=tmp_path / "state",
        model="tiny",
        models_address=owner.address,
        model_store_url=owner.url,
        drain_s=0.5,
    )
    with ExitStack() as house:
        line = house.enter_context(running(settings))
        assert line.comes_to_judge(cards[0].version)
        assert entered(loads.entered)
        loads.gate.clear()
        owner.name(cards[3], news_to=line.bus)
        assert entered(loads.entered)
        early = prepared_frame(DARK, preparation=OTHER)
        now, later = send(line, prepared_frame(DARK), early)
        now.result(PATIENCE_S)
        (thread,) = (each for each in threading.enumerate() if each.name == "inference-loader")
        house.close()
    # The one that waited for the new version is somebody else's to judge, and not held.
    assert line.decided.get_nowait().model_version == cards[0].version
    assert line.decided.empty()
    assert later.exception(PATIENCE_S) is not None
    loads.gate.set()
    thread.join(PATIENCE_S)
    assert comes_true(lambda: not [each for each in threading.enumerate() if each.name.startswith("inference-")])
