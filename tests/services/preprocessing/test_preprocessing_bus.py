"""What becomes of frames that come by the bus?"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from queue import Queue
from urllib.request import urlopen

import cv2
import grpc
import numpy as np
import pytest

from inspectbus.api.v1 import preprocessing_pb2 as pb
from inspectbus.api.v1.decision_pb2 import (
    HOLD_REASON_ERROR,
    HOLD_REASON_NO_MODEL,
    HOLD_REASON_UNUSABLE_IMAGE,
    VERDICT_HOLD,
)
from inspectbus.api.v1.frame_pb2 import LABEL_GOOD, Claim, Frame
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.api.v1.preprocessing_pb2_grpc import PreprocessingServiceStub
from inspectbus.bus import Bus, Delivery, Lane, Message, topics
from inspectbus.errors import BadField, StorageAway, StorageFull
from inspectbus.imaging import Image
from inspectbus.imaging.decoding import DecodeLimits, decode
from inspectbus.imaging.pixels import from_pixels
from inspectbus.imaging.preparation import prepare
from inspectbus.imaging.quality import measure
from inspectbus.preprocessing.recipes import Recipes
from inspectbus.preprocessing.service import open_service
from inspectbus.preprocessing.settings import PreprocessingSettings
from inspectbus.stores.frames import FrameStore, default_url, original_key
from tests.doubles.model_owner import ModelOwner
from tests.doubles.pictures import encoded, header_bomb, textured
from tests.services.preprocessing.conftest import PATIENCE_S, PREPARATION, Line, a_frame

POISON = {
    "a truncated JPEG": (encoded(textured(), ".jpg")[:-300], "cut short"),
    "an empty file": (b"", "empty"),
    "a 1x1 image": (encoded(np.zeros((1, 1, 3), np.uint8)), "1x1"),
    "a header bomb": (header_bomb(), "30000x30000"),
    "a text file named .png": (b"this is no image", "not a PNG"),
}


def test_a_usable_frame_goes_on_prepared_as_its_model_expects(line: Line) -> None:
    line.put_recipe("name: cells\nmodel: cells\nthreshold: 0.25\n")
    picture = textured()
    frame = a_frame(encoded(picture))

    line.send(frame)

    message, prepared = line.prepared.get(timeout=PATIENCE_S)
    assert prepared.frame == frame
    np.testing.assert_array_equal(from_pixels(prepared.pixels), prepare(picture, PREPARATION))
    assert prepared.quality == measure(picture)
    assert prepared.preparation_hash == PREPARATION.hash
    assert (prepared.recipe, prepared.recipe_version) == ("cells", 1)
    assert (prepared.model, prepared.model_alias) == ("cells", "production")
    assert prepared.threshold_override == 0.25
    assert prepared.received_at.ToNanoseconds() <= prepared.prepared_at.ToNanoseconds()
    assert (message.key, message.subject, message.lane) == (("line-1", "top"), frame.frame_id, Lane.LIVE)
    assert line.decisions.empty()


def test_a_recipe_without_a_threshold_overrides_nothing(line: Line) -> None:
    line.put_recipe()

    line.send(a_frame())

    prepared = line.prepared.get(timeout=PATIENCE_S)[1]
    assert not prepared.HasField("threshold_override")
    assert not prepared.HasField("qualified_below_override")


def test_a_recipes_band_goes_with_the_frame(line: Line) -> None:
    line.put_recipe("name: cells\nmodel: cells\nthreshold: 0.75\nqualified_below: 0.25\n")

    line.send(a_frame())

    prepared = line.prepared.get(timeout=PATIENCE_S)[1]
    assert (prepared.qualified_below_override, prepared.threshold_override) == (0.25, 0.75)


def test_a_frame_of_the_backlog_stays_in_the_backlog(line: Line) -> None:
    line.put_recipe()

    line.send(a_frame(), Lane.BACKLOG)

    assert line.prepared.get(timeout=PATIENCE_S)[0].lane is Lane.BACKLOG


def test_the_newest_recipe_counts(line: Line) -> None:
    line.put_recipe()
    line.send(a_frame())
    line.put_recipe("name: cells\nmodel: cells\ngeometry: {crop: {x: 0, y: 0, width: 100, height: 90}}\n")

    line.send(a_frame())

    assert [line.prepared.get(timeout=PATIENCE_S)[1].recipe_version for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("spoil", ["blurred", "black", "burnt"])
def test_an_unusable_frame_is_held_with_its_measure_and_its_original(line: Line, spoil: str) -> None:
    line.put_recipe()
    picture = textured()
    spoilt, measure_name, limit = {
        "blurred": (cv2.GaussianBlur(picture, (0, 0), 9), "sharpness", 3.0),
        "black": ((picture * 0.02).astype(np.uint8), "brightness", 10.0),
        "burnt": (np.full_like(picture, 254), "brightness", 245.0),
    }[spoil]
    frame = a_frame(encoded(spoilt))

    line.send(frame)

    message, decision = line.decisions.get(timeout=PATIENCE_S)
    assert decision.verdict == VERDICT_HOLD
    assert decision.hold.reason == HOLD_REASON_UNUSABLE_IMAGE
    assert (decision.hold.measure, decision.hold.limit) == (measure_name, limit)
    assert decision.hold.value == getattr(measure(spoilt), measure_name) == getattr(decision.quality, measure_name)
    assert measure_name in decision.hold.detail
    assert message.key == ("line-1", "top", "hold")
    assert (decision.frame_id, decision.truth) == (frame.frame_id, LABEL_GOOD)
    assert (decision.recipe, decision.recipe_version, decision.model) == ("cells", 1, "cells")
    assert decision.timings.HasField("preparing_at")
    assert line.store.get(decision.evidence.original_key) == frame.image
    assert line.prepared.empty()
    assert line.dead.empty()


def test_a_frame_whose_model_is_not_ready_is_held_and_not_lost(line: Line) -> None:
    line.put_recipe("name: cells\nmodel: unborn\n")

    line.send(a_frame())

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_NO_MODEL
    assert "unborn@production" in decision.hold.detail
    assert decision.evidence.original_key
    assert line.dead.empty()


@pytest.mark.parametrize("name", POISON)
def test_an_unreadable_image_is_parked_with_its_decision_and_the_next_frame_goes_on(line: Line, name: str) -> None:
    line.put_recipe()
    image, words = POISON[name]
    frame = a_frame(image)

    line.send(frame)

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.frame_id == frame.frame_id
    assert decision.hold.reason == HOLD_REASON_ERROR
    assert words in decision.hold.detail
    assert line.dead.get(timeout=PATIENCE_S).body == frame.SerializeToString()
    if image:
        assert line.store.get(decision.evidence.original_key) == image
    else:
        assert decision.evidence.original_key == ""
    line.send(a_frame())
    line.prepared.get(timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": "unheard-of"}, "unheard-of"),
        ({"recipe": "cells.top"}, "not a name"),
        ({"recipe": ""}, "not a name"),
    ],
)
def test_a_frame_of_an_unknown_recipe_is_parked_with_its_decision(
    line: Line, change: dict[str, str], words: str
) -> None:
    line.put_recipe()

    line.send(a_frame(**change))

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_ERROR
    assert words in decision.hold.detail
    line.dead.get(timeout=PATIENCE_S)


def test_a_picture_the_recipes_crop_does_not_fit_is_parked_with_its_decision(line: Line) -> None:
    line.put_recipe("name: cells\nmodel: cells\ngeometry: {crop: {x: 0, y: 0, width: 4000, height: 30}}\n")

    line.send(a_frame())

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_ERROR
    assert "geometry.crop" in decision.hold.detail


@pytest.mark.parametrize("change", [{"line": "line.1"}, {"station": "top#"}, {"frame_id": "seven"}])
def test_a_frame_whose_names_could_break_a_key_is_parked_without_a_decision(line: Line, change: dict[str, str]) -> None:
    line.put_recipe()

    line.send(a_frame(**change))

    line.dead.get(timeout=PATIENCE_S)
    line.send(a_frame())
    line.prepared.get(timeout=PATIENCE_S)
    assert line.decisions.empty()


@pytest.mark.parametrize("body", [b"", b"\xff\xff\xff", b"not protobuf at all"])
def test_a_body_that_is_no_frame_is_parked_and_takes_no_worker_down(line: Line, body: bytes) -> None:
    line.put_recipe()

    for _ in range(4):  # more than there are workers
        line.bus.publish(topics.FRAMES, Message(body, ("line-1", "top"), "test")).result(PATIENCE_S)

    assert [line.dead.get(timeout=PATIENCE_S).body for _ in range(4)] == [body] * 4
    line.send(a_frame())
    line.prepared.get(timeout=PATIENCE_S)


def test_a_frame_is_done_only_when_its_prepared_frame_is(line: Line) -> None:
    line.put_recipe()
    line.inference.close()
    taken: Queue[Delivery] = Queue()
    line.bus.subscribe(topics.PREPARED, "inference", taken.put)

    future = line.bus.publish(topics.FRAMES, _message(a_frame()))

    delivery = taken.get(timeout=PATIENCE_S)
    assert not future.done()
    delivery.done()
    future.result(PATIENCE_S)


def test_a_fault_of_ours_is_retried_and_at_last_held(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.put_recipe()
    attempts: list[bytes] = []

    def broken(image: bytes, *_: object) -> None:
        attempts.append(image)
        raise RuntimeError("a wire came loose")

    monkeypatch.setattr("inspectbus.preprocessing.preparer.decode", broken)

    line.send(a_frame())

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_ERROR
    assert "a wire came loose" in decision.hold.detail
    assert len(attempts) > 1


def test_a_frame_store_that_fails_for_a_moment_costs_a_retry_and_no_evidence(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.put_recipe()
    put = type(line.store).put
    calls: list[str] = []

    def once_full(self: object, key: str, data: bytes) -> None:
        calls.append(key)
        if len(calls) == 1:
            raise StorageFull("the frame store takes no more: No space left on device")
        put(line.store, key, data)

    monkeypatch.setattr(type(line.store), "put", once_full)
    frame = a_frame(encoded(np.zeros((40, 40, 3), np.uint8)))

    line.send(frame)

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_UNUSABLE_IMAGE
    assert len(calls) == 2
    assert line.store.get(decision.evidence.original_key) == frame.image


def test_a_dead_frame_store_still_lets_poison_be_decided(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.put_recipe()

    def full(self: object, key: str, data: bytes) -> None:
        raise StorageFull("the frame store takes no more: No space left on device")

    monkeypatch.setattr(type(line.store), "put", full)

    line.send(a_frame(b"no image"))

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_ERROR
    assert decision.evidence.original_key == ""


def test_a_database_that_is_away_does_not_stop_a_line_whose_recipe_is_known(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.put_recipe()
    line.send(a_frame())
    monkeypatch.setattr(Recipes, "get", _away)

    line.send(a_frame())

    assert [line.prepared.get(timeout=PATIENCE_S)[1].recipe_version for _ in range(2)] == [1, 1]


def test_many_frames_at_once_all_arrive_once(line: Line) -> None:
    line.put_recipe()
    frames = [a_frame() for _ in range(60)]

    futures = [line.bus.publish(topics.FRAMES, _message(frame)) for frame in frames]
    for future in futures:
        future.result(PATIENCE_S)

    arrived = sorted(line.prepared.get(timeout=PATIENCE_S)[1].frame.frame_id for _ in frames)
    assert arrived == sorted(frame.frame_id for frame in frames)
    assert line.prepared.empty()


def test_leaving_the_service_finishes_what_is_in_hand_and_leaves_the_rest_on_the_bus(
    bus: Bus, settings: PreprocessingSettings, models: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_hand, go_on = threading.Event(), threading.Event()

    def slow(image: bytes, *rest: DecodeLimits) -> Image:
        in_hand.set()
        assert go_on.wait(PATIENCE_S)
        return decode(image, *rest)

    monkeypatch.setattr("inspectbus.preprocessing.preparer.decode", slow)
    prepared: Queue[Message] = Queue()

    def infer(delivery: Delivery) -> None:
        prepared.put(delivery.message)
        delivery.done()

    bus.subscribe(topics.PREPARED, "inference", infer)
    house = ExitStack()
    door = house.enter_context(open_service(settings, bus))
    with grpc.insecure_channel(door.address) as channel:
        recipe = pb.PutRecipeRequest(yaml="{name: cells, model: cells}")
        PreprocessingServiceStub(channel).PutRecipe(recipe, timeout=PATIENCE_S)
    # given a frame in a worker's hand
    first = bus.publish(topics.FRAMES, _message(a_frame()))
    assert in_hand.wait(PATIENCE_S)

    leaving = threading.Thread(target=house.close, name="leaving")
    leaving.start()
    leaving.join(1.0)
    assert leaving.is_alive(), "the service left a frame behind"
    go_on.set()
    leaving.join(PATIENCE_S)
    second = bus.publish(topics.FRAMES, _message(a_frame()))

    first.result(PATIENCE_S)
    assert prepared.qsize() == 1
    assert bus.depth(topics.FRAMES, "preprocessing") == 1
    assert not second.done()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("preprocessing")]


def test_what_happens_is_counted(line: Line) -> None:
    line.put_recipe()
    line.send(a_frame())
    line.send(a_frame(encoded(np.zeros((40, 40, 3), np.uint8))))
    line.send(a_frame(b"junk"))

    with urlopen(f"http://{line.door.metrics_address}/metrics", timeout=PATIENCE_S) as page:
        metrics = page.read().decode()

    assert "inspectbus_preprocessing_prepared_total 1.0" in metrics
    assert 'inspectbus_preprocessing_holds_total{measure="brightness",reason="unusable_image"} 1.0' in metrics
    assert 'inspectbus_preprocessing_holds_total{measure="",reason="error"} 1.0' in metrics
    assert 'inspectbus_preprocessing_step_seconds_count{step="decode"} 3.0' in metrics
    assert 'inspectbus_preprocessing_step_seconds_count{step="prepare"} 2.0' in metrics


def test_a_16_bit_tiff_arrives_as_its_pixels(line: Line) -> None:
    line.put_recipe()
    deep = textured().astype(np.uint16) * 257
    frame = a_frame(encoded(deep, ".tif"))

    line.send(frame)

    prepared = line.prepared.get(timeout=PATIENCE_S)[1]
    np.testing.assert_array_equal(from_pixels(prepared.pixels), prepare(decode(frame.image), PREPARATION))
    np.testing.assert_array_equal(from_pixels(prepared.pixels), prepare(textured(), PREPARATION))


def test_the_settings_and_the_decoder_agree_on_what_is_too_large() -> None:
    # settings are read where no OpenCV is installed, so they spell the numbers themselves
    settings, limits = PreprocessingSettings.load(), DecodeLimits()

    assert (settings.max_image_bytes, settings.max_image_pixels) == (limits.max_bytes, limits.max_pixels)


def test_a_setting_without_an_address_is_refused() -> None:
    with pytest.raises(BadField) as refused:
        PreprocessingSettings.load(models_address="")
    assert refused.value.field == "models_address"


def _message(frame: Frame) -> Message:
    return Message(frame.SerializeToString(), ("line-1", "top"), "test", frame.frame_id)


def _away(*_: object, **__: object) -> None:
    raise StorageAway("the database does not answer")


def _claimed(line: Line, **fields: str) -> Frame:
    """A frame whose image rests in the store."""
    frame = a_frame(**fields)
    frame.claim.CopyFrom(line.store.claim(original_key(frame, frame.image), frame.image))
    frame.ClearField("image")
    return frame


def test_a_claimed_image_is_prepared_like_one_that_travelled_and_its_claim_goes_on(line: Line) -> None:
    line.put_recipe()
    inline = a_frame()
    line.send(inline)
    expected = line.prepared.get(timeout=PATIENCE_S)[1]
    frame = _claimed(line)

    line.send(frame)

    prepared = line.prepared.get(timeout=PATIENCE_S)[1]
    assert prepared.frame == frame
    assert prepared.pixels == expected.pixels
    assert prepared.quality == expected.quality


def test_a_held_frames_claim_is_its_evidence_and_nothing_is_copied(line: Line, settings: PreprocessingSettings) -> None:
    line.put_recipe("name: cells\nmodel: unborn\n")
    frame = _claimed(line)
    before = sorted((settings.state_dir / "frames").rglob("*"))

    line.send(frame)

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_NO_MODEL
    assert decision.image_key == decision.evidence.original_key == frame.claim.key
    assert sorted((settings.state_dir / "frames").rglob("*")) == before


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "no object"),
        ("changed", "changed"),
        ("too large", "at most"),
        ("another's", "no frame-store key of frame"),
        ("a path", "no frame-store key of frame"),
        ("a URL", "no frame-store key of frame"),
        ("no hash", "sha256"),
        ("doubled", "an image and a claim"),
    ],
)
def test_a_claim_that_cannot_be_trusted_parks_its_frame_with_the_reason(line: Line, fault: str, words: str) -> None:
    line.put_recipe()
    frame = _claimed(line)
    key = frame.claim.key
    if fault == "missing":
        line.store.delete(key)
    elif fault == "changed":
        line.store.put(key, bytes(frame.claim.size))
    elif fault == "too large":
        frame.claim.size = 2**50
    elif fault == "no hash":
        frame.claim.sha256 = b""
    elif fault == "doubled":
        frame.image = b"another image"
    else:
        frame.claim.key = {
            "another's": _claimed(line).claim.key,
            "a path": "../../etc/passwd",
            "a URL": "http://example.org/image.png",
        }[fault]

    line.send(frame)

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_ERROR
    assert words in decision.hold.detail
    assert decision.evidence.original_key == ""
    assert line.dead.get(timeout=PATIENCE_S).body == frame.SerializeToString()
    line.send(_claimed(line))
    line.prepared.get(timeout=PATIENCE_S)
    assert line.decisions.empty()
    assert line.dead.empty()


def test_poison_behind_a_sound_claim_keeps_its_original_as_evidence(line: Line) -> None:
    line.put_recipe()
    frame = _claimed(line, recipe="unheard-of")

    line.send(frame)

    decision = line.decisions.get(timeout=PATIENCE_S)[1]
    assert decision.hold.reason == HOLD_REASON_ERROR
    assert decision.evidence.original_key == frame.claim.key


def test_a_store_that_is_away_for_a_moment_costs_a_claimed_frame_a_retry(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.put_recipe()
    frame = _claimed(line)
    fetch, calls = FrameStore.fetch, []

    def away_at_first(self: FrameStore, claim: Claim, limit_bytes: int) -> bytes:
        calls.append(claim.key)
        if len(calls) == 1:
            raise StorageAway("the frame store does not answer")
        return fetch(self, claim, limit_bytes)

    monkeypatch.setattr(FrameStore, "fetch", away_at_first)

    line.send(frame)

    line.prepared.get(timeout=PATIENCE_S)
    assert len(calls) == 2
    assert line.dead.empty()


def test_pixels_too_large_for_a_message_rest_in_the_store(
    bus: Bus, settings: PreprocessingSettings, models: tuple[ModelOwner, str]
) -> None:
    exact = PREPARATION.width * PREPARATION.height * 3
    arrived: Queue[PreparedFrame] = Queue()

    def infer(delivery: Delivery) -> None:
        arrived.put(PreparedFrame.FromString(delivery.message.body))
        delivery.done()

    bus.subscribe(topics.PREPARED, "inference", infer)
    picture = textured()
    for limit in (exact, exact - 1):
        told = settings.model_copy(update={"inline_max_bytes": limit})
        with open_service(told, bus) as door, grpc.insecure_channel(door.address) as channel:
            PreprocessingServiceStub(channel).PutRecipe(pb.PutRecipeRequest(yaml="name: cells\nmodel: cells\n"))
            bus.publish(topics.FRAMES, _message(a_frame(encoded(picture)))).result(PATIENCE_S)
    inline, claimed = arrived.get(timeout=PATIENCE_S), arrived.get(timeout=PATIENCE_S)

    assert len(inline.pixels.data) == exact
    assert not inline.pixels.HasField("claim")
    assert claimed.pixels.data == b""
    assert claimed.pixels.claim.key.endswith(f"{claimed.frame.frame_id}-prepared.rgb")
    assert FrameStore(default_url(settings.state_dir)).fetch(claimed.pixels.claim) == inline.pixels.data
