"""The bus door of inference: every prepared frame gets one decision, and never a silent OK."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from inspectbus.api.v1.decision_pb2 import (
    HOLD_REASON_ERROR,
    HOLD_REASON_NO_MODEL,
    HOLD_REASON_UNCERTAIN_SCORE,
    VERDICT_DEFECTIVE,
    VERDICT_HOLD,
    VERDICT_QUALIFIED,
    Decision,
    Evidence,
    HoldReason,
)
from inspectbus.api.v1.frame_pb2 import LABEL_DEFECTIVE, Claim
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus import Delivery, Lane, Message, connect, topics
from inspectbus.bus.messages import prepared_message
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import StorageAway
from inspectbus.inference import evidence
from inspectbus.inference.explanation import painted
from inspectbus.inference.service import open_service
from inspectbus.inference.settings import InferenceSettings
from inspectbus.stores.frames import FrameStore, evidence_key, original_key
from inspectbus.stores.models import read_card
from tests.doubles.inference_service import PATIENCE_S, Running, TouchyEngine, running
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.tiny_model import BRIGHT, DARK, SIDE, tiny_version

Open = Callable[..., Running]
BETWEEN = 127
"""A grey level whose score lies somewhere between those of DARK and BRIGHT."""


def held(decision: Decision, reason: HoldReason.ValueType, *words: str) -> bool:
    assert decision.verdict == VERDICT_HOLD
    assert decision.hold.reason == reason, decision.hold
    assert all(word in decision.hold.detail for word in words), decision.hold.detail
    return True


def test_a_prepared_frame_becomes_a_decision_that_knows_where_it_comes_from(start: Open, version: Path) -> None:
    line = start(model_dir=version)
    frames = [prepared_frame(DARK), prepared_frame(BRIGHT)]
    frames[1].frame.truth = LABEL_DEFECTIVE
    dark, bright = line.judge(*frames)

    card = read_card(version)
    assert (dark.verdict, bright.verdict) == (VERDICT_QUALIFIED, VERDICT_DEFECTIVE)
    assert bright.score == pytest.approx(card.pinned[1].score, abs=1e-3)
    assert bright.threshold == card.threshold
    assert (bright.model, bright.model_version) == ("tiny", version.name)
    assert (bright.recipe, bright.recipe_version) == ("flat", 3)
    assert bright.preparation_hash == card.preparation.hash
    assert bright.quality == frames[1].quality
    assert bright.truth == LABEL_DEFECTIVE
    assert (bright.line, bright.station, bright.part_id) == ("line-1", "top", "part-1")
    hops = bright.timings
    moments = [hops.captured_at, hops.preparing_at, hops.prepared_at, hops.queued_at, hops.inferred_at, hops.decided_at]
    assert [moment.ToNanoseconds() for moment in moments] == sorted(moment.ToNanoseconds() for moment in moments)
    assert hops.captured_at.seconds > 0
    assert not bright.HasField("hold")


def test_decisions_travel_under_line_station_and_verdict_with_an_id_that_repeats(start: Open, version: Path) -> None:
    line = start(model_dir=version)
    heard: Queue[Message] = Queue()
    line.bus.follow(topics.DECISIONS, heard.put, key=("line-1", "top", "defective"))
    frame = prepared_frame(BRIGHT)
    line.judge(frame, prepared_frame(DARK))
    line.judge(frame)
    first, again = heard.get(timeout=PATIENCE_S), heard.get(timeout=PATIENCE_S)
    assert heard.empty()
    assert first.id == again.id
    assert first.subject == frame.frame.frame_id


def test_both_lanes_are_judged(start: Open, version: Path) -> None:
    line = start(model_dir=version)
    frames = [prepared_frame(level) for level in (DARK, BRIGHT)]
    assert [one.verdict for one in line.judge(*frames, lane=Lane.BACKLOG)] == [VERDICT_QUALIFIED, VERDICT_DEFECTIVE]


def test_the_recipes_threshold_wins_and_is_recorded(start: Open, version: Path) -> None:
    line = start(model_dir=version)
    strict, lenient = prepared_frame(DARK), prepared_frame(BRIGHT)
    strict.threshold_override, lenient.threshold_override = 0.001, 0.999
    decisions = line.judge(strict, lenient)
    assert [one.verdict for one in decisions] == [VERDICT_DEFECTIVE, VERDICT_QUALIFIED]
    assert [one.threshold for one in decisions] == [0.001, 0.999]


def test_a_score_between_the_versions_thresholds_is_held_as_uncertain_with_all_that_was_measured(
    start: Open, tmp_path: Path
) -> None:
    version = tiny_version(tmp_path, threshold=0.98, qualified_below=0.02)
    frame = prepared_frame(BETWEEN)
    dark, between, bright = start(model_dir=version).judge(prepared_frame(DARK), frame, prepared_frame(BRIGHT))

    assert (dark.verdict, bright.verdict) == (VERDICT_QUALIFIED, VERDICT_DEFECTIVE)
    assert held(between, HOLD_REASON_UNCERTAIN_SCORE, f"{between.score:.4f}", "0.98", "qualified below 0.02")
    assert 0.02 <= between.score < 0.98
    assert between.evidence.prepared_key == evidence_key("line-1", "top", frame.frame.frame_id, "prepared", "png")
    for decision in (dark, between, bright):
        assert (decision.qualified_below, decision.threshold) == (0.02, 0.98)
        assert decision.model_version == version.name
        assert decision.timings.decided_at.ToNanoseconds() >= decision.timings.inferred_at.ToNanoseconds() > 0


def test_without_a_band_no_lower_threshold_is_recorded(start: Open, version: Path) -> None:
    (decision,) = start(model_dir=version).judge(prepared_frame(BETWEEN))
    assert not decision.HasField("qualified_below")


def test_the_recipes_band_wins_and_its_threshold_alone_leaves_no_band(start: Open, tmp_path: Path) -> None:
    line = start(model_dir=tiny_version(tmp_path, threshold=0.98, qualified_below=0.02))
    narrow, lone = prepared_frame(BETWEEN), prepared_frame(BETWEEN)
    narrow.qualified_below_override, narrow.threshold_override = 0.0, 0.001
    lone.threshold_override = 0.99
    of_narrow, of_lone = line.judge(narrow, lone)
    assert (of_narrow.verdict, of_narrow.qualified_below, of_narrow.threshold) == (VERDICT_DEFECTIVE, 0.0, 0.001)
    assert (of_lone.verdict, of_lone.HasField("qualified_below")) == (VERDICT_QUALIFIED, False)


@pytest.mark.parametrize(
    ("lower", "upper", "words"),
    [
        (0.6, 0.5, "above the threshold 0.5"),
        (float("nan"), 0.5, "qualified_below_override"),
        (-0.1, 0.5, "qualified_below_override"),
        (0.2, 1.5, "threshold_override"),
        (0.2, None, "stands alone"),
    ],
)
def test_a_band_that_is_none_holds_the_frame(
    start: Open, version: Path, lower: float, upper: float | None, words: str
) -> None:
    frame = prepared_frame(DARK)
    frame.qualified_below_override = lower
    if upper is not None:
        frame.threshold_override = upper
    (decision,) = start(model_dir=version).judge(frame)
    assert held(decision, HOLD_REASON_ERROR, words)


@pytest.mark.parametrize("threshold", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_threshold_that_is_none_holds_the_frame(start: Open, version: Path, threshold: float) -> None:
    frame = prepared_frame(DARK)
    frame.threshold_override = threshold
    (decision,) = start(model_dir=version).judge(frame)
    assert held(decision, HOLD_REASON_ERROR, "threshold_override")


def test_pixels_of_another_preparation_are_held_and_say_which(start: Open, version: Path) -> None:
    other = prepared_frame(DARK, preparation=Preparation(width=32, height=32, denoise="median"))
    unnamed = prepared_frame(DARK)
    unnamed.preparation_hash = ""
    decisions = start(model_dir=version).judge(other, unnamed)
    assert held(decisions[0], HOLD_REASON_ERROR, other.preparation_hash, version.name)
    assert held(decisions[1], HOLD_REASON_ERROR, "unnamed")
    assert not decisions[0].HasField("score")


def _shorten(frame: PreparedFrame) -> None:
    frame.pixels.data = frame.pixels.data[:-1]


def _enlarge(frame: PreparedFrame) -> None:
    frame.pixels.height *= 2
    frame.pixels.data *= 2


@pytest.mark.parametrize("spoil", [_shorten, _enlarge, lambda frame: frame.ClearField("pixels")])
def test_pixels_that_do_not_add_up_are_held(start: Open, version: Path, spoil: Callable[[PreparedFrame], None]) -> None:
    frame = prepared_frame(DARK)
    spoil(frame)
    (decision,) = start(model_dir=version).judge(frame)
    assert held(decision, HOLD_REASON_ERROR, "pixels")


def test_a_recipe_that_asks_for_another_model_is_held_for_want_of_it(start: Open, version: Path) -> None:
    (decision,) = start(model_dir=version).judge(prepared_frame(DARK, model="elsewhere"))
    assert held(decision, HOLD_REASON_NO_MODEL, "elsewhere", "tiny")
    assert (decision.model, decision.model_version) == ("elsewhere", "")


def test_without_a_model_frames_are_held_after_one_patience_and_not_one_each(start: Open) -> None:
    line = start(model_patience_s=0.5)
    begun = time.monotonic()
    decisions = line.judge(*(prepared_frame(DARK) for _ in range(30)))
    assert 0.4 < time.monotonic() - begun < 30 * 0.5 / 2
    assert all(held(decision, HOLD_REASON_NO_MODEL, "no model") for decision in decisions)
    engine = line.engine()
    assert not engine.ready
    assert "tiny" not in engine.detail
    assert line.metric("inspectbus_inference_load_failures_total", reason="ModelNotReady") >= 1
    assert line.metric("inspectbus_inference_decisions_total", verdict="hold", reason="no_model") == 30


def test_a_worker_that_has_no_model_yet_leaves_frames_to_one_that_has(version: Path, tmp_path: Path) -> None:
    decided: Queue[Decision] = Queue()

    def record(delivery: Delivery) -> None:
        decided.put(Decision.FromString(delivery.message.body))
        delivery.done()

    def settings(name: str, **more: Any) -> InferenceSettings:
        return InferenceSettings(port=0, metrics_port=0, state_dir=tmp_path / name, threads=1, runs_ahead=0, **more)

    with connect(f"embedded://{tmp_path.name}") as bus, ExitStack() as house:
        bus.subscribe(topics.DECISIONS, "results", record)
        starting = settings("starting", models_address="127.0.0.1:1", model_patience_s=10 * PATIENCE_S)
        house.enter_context(open_service(starting, bus))
        house.enter_context(open_service(settings("running", model_dir=version), bus))
        frames = [prepared_frame(DARK) for _ in range(8)]
        for frame in frames:
            bus.publish(topics.PREPARED, prepared_message(frame, "test", Lane.LIVE))

        decisions = [decided.get(timeout=PATIENCE_S) for _ in frames]

    assert {decision.frame_id for decision in decisions} == {frame.frame.frame_id for frame in frames}
    assert all(decision.verdict == VERDICT_QUALIFIED for decision in decisions)


def test_a_network_that_gives_no_number_holds_the_frame_and_only_that_one(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line = start(model_dir=version)
    touchy.get(timeout=PATIENCE_S).nonsense = {BETWEEN}
    decisions = line.judge(prepared_frame(DARK), prepared_frame(BETWEEN), prepared_frame(BRIGHT))
    assert [one.verdict for one in decisions] == [VERDICT_QUALIFIED, VERDICT_HOLD, VERDICT_DEFECTIVE]
    assert held(decisions[1], HOLD_REASON_ERROR, "nan")
    assert not decisions[1].HasField("score")


def test_an_image_that_breaks_the_engine_is_tried_again_then_parked_with_its_hold(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line = start(model_dir=version)
    dead: Queue[Message] = Queue()

    def bury(delivery: Delivery) -> None:
        dead.put(delivery.message)
        delivery.done()

    line.bus.subscribe(topics.DEAD, "dead", bury)
    engine = touchy.get(timeout=PATIENCE_S)
    engine.poison = {BETWEEN}
    frames = [prepared_frame(DARK), prepared_frame(BETWEEN), prepared_frame(BRIGHT)]
    decisions = line.judge(*frames)
    assert [one.verdict for one in decisions] == [VERDICT_QUALIFIED, VERDICT_HOLD, VERDICT_DEFECTIVE]
    assert held(decisions[1], HOLD_REASON_ERROR, "out of memory")
    assert dead.get(timeout=PATIENCE_S).subject == frames[1].frame.frame_id
    assert line.judge(prepared_frame(DARK))[0].verdict == VERDICT_QUALIFIED


def test_an_engine_that_recovers_costs_a_retry_and_no_hold(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line = start(model_dir=version)
    engine = touchy.get(timeout=PATIENCE_S)
    line.wait_ready()
    while engine.entered.acquire(blocking=False):
        pass
    engine.gate.clear()
    engine.poison = {BRIGHT}
    published = line.bus.publish(topics.PREPARED, prepared_message(prepared_frame(BRIGHT), "test", Lane.LIVE))
    assert engine.entered.acquire(timeout=PATIENCE_S)
    engine.gate.set()  # the first attempt fails...
    assert engine.entered.acquire(timeout=PATIENCE_S)
    engine.poison = set()  # ...and a later one does not
    published.result(PATIENCE_S)
    assert line.decided.get(timeout=PATIENCE_S).verdict == VERDICT_DEFECTIVE


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"", PreparedFrame().SerializeToString()])
def test_a_body_that_is_no_prepared_frame_is_parked_and_the_next_is_judged(
    start: Open, version: Path, body: bytes
) -> None:
    line = start(model_dir=version)
    line.bus.publish(topics.PREPARED, Message(body, ("line-1", "top"), "test")).result(PATIENCE_S)
    assert line.bus.depth(topics.DEAD, "dead") == 1
    assert line.judge(prepared_frame(DARK))[0].verdict == VERDICT_QUALIFIED


@pytest.mark.parametrize("station", ["top.left", "#", "", "Top", "../top"])
def test_a_frame_of_a_station_that_is_no_name_is_parked(start: Open, version: Path, station: str) -> None:
    line = start(model_dir=version)
    frame = prepared_frame(DARK)
    frame.frame.station = station
    line.bus.publish(topics.PREPARED, Message(frame.SerializeToString(), ("line-1", "top"), "test")).result(PATIENCE_S)
    assert line.bus.depth(topics.DEAD, "dead") == 1
    assert line.decided.empty()


def test_defective_and_held_frames_leave_their_images_and_qualified_ones_none(
    start: Open, version: Path, tmp_path: Path
) -> None:
    line = start(model_dir=version)
    frames = [prepared_frame(DARK), prepared_frame(BRIGHT), prepared_frame(BRIGHT, model="elsewhere")]
    qualified, defective, hold = line.judge(*frames)
    assert qualified.evidence == Evidence()
    store = FrameStore(f"file://{tmp_path}/state/frames")
    for decision, frame in ((defective, frames[1]), (hold, frames[2])):
        assert store.get(decision.evidence.original_key) == frame.frame.image
        kept = cv2.imdecode(np.frombuffer(store.get(decision.evidence.prepared_key), np.uint8), cv2.IMREAD_COLOR)
        assert kept is not None
        assert kept[:, :, ::-1].tobytes() == frame.pixels.data
    assert not [file for file in (tmp_path / "state/frames").rglob("*") if qualified.frame_id in file.name]


def test_a_judged_frame_that_leaves_evidence_leaves_its_heatmap_too(
    start: Open, version: Path, tmp_path: Path, touchy: Queue[TouchyEngine]
) -> None:
    line = start(model_dir=version, evidence_share=1.0)
    touchy.get(timeout=PATIENCE_S).nonsense = {BETWEEN}
    frames = [prepared_frame(DARK), prepared_frame(BRIGHT), prepared_frame(BETWEEN), prepared_frame(DARK, model="none")]
    sampled, defective, unjudged, unread = line.judge(*frames)
    store = FrameStore(f"file://{tmp_path}/state/frames")
    bias = float(load_file(version / "weights.safetensors")["head.bias"][0])
    for decision in (sampled, defective):
        assert decision.evidence.heatmap_key == decision.evidence.prepared_key.replace("prepared", "heatmap")
        with Image.open(io.BytesIO(store.get(decision.evidence.heatmap_key))) as picture:
            assert picture.size == (SIDE, SIDE)
            picture.load()
            heatmap = json.loads(picture.text["heatmap"])["rows"]  # type: ignore[attr-defined] # of PNG images
        assert 1 / (1 + np.exp(-(np.mean(heatmap) + bias))) == pytest.approx(decision.score, abs=1e-3)
    # What got no score has nothing to explain
    assert held(unjudged, HOLD_REASON_ERROR, "nan")
    assert held(unread, HOLD_REASON_NO_MODEL)
    assert unjudged.evidence.prepared_key
    assert (unjudged.evidence.heatmap_key, unread.evidence.heatmap_key) == ("", "")


def test_a_heatmap_is_painted_for_evidence_alone(start: Open, version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, ...]] = []

    def paint(image: np.ndarray, heatmap: np.ndarray) -> bytes:
        shown.append(heatmap.shape)
        return painted(image, heatmap)

    monkeypatch.setattr(evidence, "painted", paint)
    line = start(model_dir=version)
    line.judge(*(prepared_frame(level) for level in [DARK] * 10 + [BRIGHT]))
    assert shown == [(1, 1)]


def test_a_share_of_qualified_frames_is_kept_and_none_at_all_when_told_so(start: Open, version: Path) -> None:
    frames = [prepared_frame(DARK) for _ in range(40)]
    kept = [bool(one.evidence.original_key) for one in start(model_dir=version, evidence_share=0.5).judge(*frames)]
    assert 5 < sum(kept) < 35
    again = start(model_dir=version, evidence_share=0.5).judge(*frames)
    assert [bool(one.evidence.original_key) for one in again] == kept, "a repeated frame was chosen otherwise"
    (defective,) = start(model_dir=version, keep_evidence=False).judge(prepared_frame(BRIGHT))
    assert not defective.evidence.original_key


def test_a_store_that_takes_no_images_costs_the_evidence_and_not_the_decision(
    start: Open, version: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file where the store's folder should be")
    line = start(model_dir=version, frame_store_url=f"file://{tmp_path}/taken/frames")
    (decision,) = line.judge(prepared_frame(BRIGHT))
    assert decision.verdict == VERDICT_DEFECTIVE
    assert decision.evidence.original_key == ""
    assert line.metric("inspectbus_inference_evidence_failures_total") == 1


def test_a_model_folder_with_one_changed_byte_serves_nobody_and_says_which_file(
    start: Open, version: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(version, tmp_path / version.name))
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    line = start(model_dir=folder, model_patience_s=0.2)
    (decision,) = line.judge(prepared_frame(DARK))
    assert held(decision, HOLD_REASON_NO_MODEL, "weights.safetensors")
    assert line.metric("inspectbus_inference_load_failures_total", reason="CorruptModel") >= 1
    # and once the folder is whole again, it is loaded without a restart
    shutil.copy(version / "weights.safetensors", folder / "weights.safetensors")
    patient_until = time.monotonic() + PATIENCE_S
    while line.judge(prepared_frame(DARK))[0].verdict != VERDICT_QUALIFIED:
        assert time.monotonic() < patient_until, line.engine().detail


def test_a_frame_is_acknowledged_only_when_its_decision_is_recorded(version: Path, tmp_path: Path) -> None:
    settings = InferenceSettings(port=0, metrics_port=0, state_dir=tmp_path, model_dir=version)
    unrecorded: Queue[Delivery] = Queue()
    with connect(f"embedded://{tmp_path.name}") as bus:
        bus.subscribe(topics.DECISIONS, "results", unrecorded.put)
        with open_service(settings, bus):
            frame = prepared_frame(DARK)
            published = bus.publish(topics.PREPARED, prepared_message(frame, "test", Lane.LIVE))
            decision = unrecorded.get(timeout=PATIENCE_S)
            assert not wait([published], timeout=0.2).done
            decision.done()
            published.result(PATIENCE_S)


def test_leaving_finishes_the_frames_in_hand_and_leaves_none_half_done(
    version: Path, tmp_path: Path, touchy: Queue[TouchyEngine]
) -> None:
    settings = InferenceSettings(
        port=0,
        metrics_port=0,
        state_dir=tmp_path,
        model_dir=version,
        max_batch_size=1,
        runs_ahead=0,
        prefetch=2,
        drain_s=PATIENCE_S,
    )
    with ExitStack() as house:
        # given a service with two frames in hand, and more on the bus
        line = house.enter_context(running(settings))
        line.wait_ready()
        engine = touchy.get(timeout=PATIENCE_S)
        engine.seen.clear()
        engine.gate.clear()
        frames = [prepared_frame(BRIGHT) for _ in range(4)]
        published = [line.bus.publish(topics.PREPARED, prepared_message(frame, "test", Lane.LIVE)) for frame in frames]
        assert line.waits(1), "the second frame was not taken"
        # when it is told to end while it computes
        closing = threading.Thread(target=house.close)
        closing.start()
        assert not published[0].done()
        engine.gate.set()
        closing.join(PATIENCE_S)
    # then what it had taken is decided, and what it had not is somebody else's: none is half done
    confirmed = [future.exception(PATIENCE_S) is None for future in published]
    assert confirmed[:2] == [True, True]
    decided = {line.decided.get(timeout=PATIENCE_S).frame_id for _ in range(sum(confirmed))}
    assert decided == {frame.frame.frame_id for frame, sure in zip(frames, confirmed, strict=True) if sure}
    assert line.decided.empty()
    ours = {"inference-batcher", "inference-loader", "inference-decide_0", "inference-decide_1"}
    assert not ours & {thread.name for thread in threading.enumerate()}


def _by_claim(store: FrameStore, frame: PreparedFrame) -> PreparedFrame:
    """The same frame as it travels when image and pixels are too large for a message."""
    inner = frame.frame
    claimed = PreparedFrame()
    claimed.CopyFrom(frame)
    claimed.frame.claim.CopyFrom(store.claim(original_key(inner, inner.image), inner.image))
    claimed.frame.ClearField("image")
    key = evidence_key(inner.line, inner.station, inner.frame_id, "prepared", "rgb")
    claimed.pixels.claim.CopyFrom(store.claim(key, frame.pixels.data))
    claimed.pixels.ClearField("data")
    return claimed


@pytest.fixture
def frames_store(tmp_path: Path) -> FrameStore:
    return FrameStore(f"file://{tmp_path}/state/frames")


def test_claimed_pixels_are_judged_and_their_evidence_is_a_reference(
    start: Open, version: Path, tmp_path: Path, frames_store: FrameStore
) -> None:
    line = start(model_dir=version)
    frames = [_by_claim(frames_store, prepared_frame(level)) for level in (DARK, BRIGHT)]
    before = sorted((tmp_path / "state/frames").rglob("*"))

    dark, bright = line.judge(*frames)

    assert (dark.verdict, bright.verdict) == (VERDICT_QUALIFIED, VERDICT_DEFECTIVE)
    for frame, decision in zip(frames, (dark, bright), strict=True):
        assert (decision.image_key, decision.pixels_key) == (frame.frame.claim.key, frame.pixels.claim.key)
    assert (dark.evidence.original_key, dark.evidence.prepared_key) == ("", "")
    assert (bright.evidence.original_key, bright.evidence.prepared_key) == (bright.image_key, bright.pixels_key)
    made = set((tmp_path / "state/frames").rglob("*")) - set(before)
    assert [file.name for file in made] == [f"{bright.frame_id}-heatmap.png"], "a second copy was made"


@pytest.mark.parametrize("fault", ["missing", "changed", "another's", "path"])
def test_claimed_pixels_that_cannot_be_trusted_park_the_frame_with_its_reason(
    start: Open, version: Path, frames_store: FrameStore, fault: str
) -> None:
    line = start(model_dir=version)
    frame = _by_claim(frames_store, prepared_frame(BRIGHT))
    claim = frame.pixels.claim
    if fault == "missing":
        frames_store.delete(claim.key)
        words = "no object"
    elif fault == "changed":
        frames_store.put(claim.key, bytes(claim.size))
        words = "changed"
    else:
        claim.key = "../../etc/passwd" if fault == "path" else claim.key.replace("line-1", "line-2")
        words = "no frame-store key of frame"
    dead: Queue[Message] = Queue()
    line.bus.follow(topics.DEAD, dead.put)

    (decision,) = line.judge(frame)

    assert held(decision, HOLD_REASON_ERROR, words)
    assert dead.get(timeout=PATIENCE_S).body == frame.SerializeToString()
    assert decision.evidence.original_key == frame.frame.claim.key
    assert decision.evidence.prepared_key == ""
    assert line.judge(prepared_frame(BRIGHT))[0].verdict == VERDICT_DEFECTIVE


def test_a_store_that_is_away_for_a_moment_costs_claimed_pixels_a_retry(
    start: Open, version: Path, frames_store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = start(model_dir=version)
    frame = _by_claim(frames_store, prepared_frame(BRIGHT))
    fetch, calls = FrameStore.fetch, []

    def away_at_first(self: FrameStore, claim: Claim, limit_bytes: int) -> bytes:
        calls.append(claim.key)
        if len(calls) == 1:
            raise StorageAway("the frame store does not answer")
        return fetch(self, claim, limit_bytes)

    monkeypatch.setattr(FrameStore, "fetch", away_at_first)

    assert line.judge(frame)[0].verdict == VERDICT_DEFECTIVE
    assert len(calls) == 2
