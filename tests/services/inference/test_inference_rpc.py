"""The gRPC door of inference: the same judgement, no record, and every refusal by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Queue

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_HOLD, VERDICT_QUALIFIED
from inspectbus.api.v1.inference_pb2 import InferRequest, InferResponse, InferStreamRequest, Judgement
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.api.v1.prepared_frame_pb2 import Pixels
from inspectbus.bus import Lane, connect, topics
from inspectbus.bus.messages import prepared_message
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.imaging.pixels import to_pixels
from inspectbus.inference import rpc
from inspectbus.inference.admission import MARGIN
from inspectbus.inference.service import open_service
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.slots import SlotQueue
from inspectbus.runtime.open_streams import places_of
from inspectbus.stores.models import ModelStore, read_card
from tests.doubles.inference_service import PATIENCE_S, Running, TouchyEngine, field_of, running
from tests.doubles.model_owner import model_owner
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.tiny_model import BRIGHT, DARK, SIDE, flat_image, tiny_version

Open = Callable[..., Running]
BETWEEN = 127


def pixels(level: int) -> Pixels:
    return to_pixels(flat_image(level))


def infer(line: Running, level: int, **how: float) -> Judgement:
    return line.stub.Infer(InferRequest(pixels=pixels(level)), timeout=how.get("timeout", PATIENCE_S)).judgement


def test_an_image_is_judged_and_leaves_no_record(start: Open, version: Path) -> None:
    line = start(model_dir=version)
    line.wait_ready()
    bright, dark = infer(line, BRIGHT), infer(line, DARK)
    assert (bright.verdict, dark.verdict) == (VERDICT_DEFECTIVE, VERDICT_QUALIFIED)
    assert (bright.model, bright.model_version) == ("tiny", version.name)
    card = read_card(version)
    assert bright.threshold == card.threshold
    assert bright.score == pytest.approx(card.pinned[1].score, abs=1e-3)
    assert line.decided.empty()


def test_a_score_between_the_thresholds_is_held_and_the_engine_tells_both(start: Open, tmp_path: Path) -> None:
    line = start(model_dir=tiny_version(tmp_path, threshold=0.98, qualified_below=0.02))
    engine = line.wait_ready()
    dark, between, bright = (infer(line, level) for level in (DARK, 127, BRIGHT))
    assert [each.verdict for each in (dark, between, bright)] == [VERDICT_QUALIFIED, VERDICT_HOLD, VERDICT_DEFECTIVE]
    assert (engine.qualified_below, engine.threshold) == (between.qualified_below, between.threshold) == (0.02, 0.98)


def test_the_engine_tells_what_it_runs(start: Open, version: Path) -> None:
    line = start(model_dir=version, queue_limit=77)
    engine = line.wait_ready()
    assert (engine.model, engine.model_version) == ("tiny", version.name)
    assert engine.preparation_hash == Preparation(width=SIDE, height=SIDE).hash
    assert engine.threshold == 0.5
    assert not engine.HasField("qualified_below")
    assert engine.engine.startswith("torch ")
    assert engine.device == "cpu"
    assert engine.queue_limit == 77
    assert engine.detail == ""
    assert dict(engine.batches) == {1: 1}
    assert engine.loaded_at.seconds > 0


def test_calls_before_a_model_are_told_to_come_back_while_the_service_lives_and_is_not_ready(start: Open) -> None:
    line = start(model="nobody")
    with pytest.raises(grpc.RpcError) as refused:
        infer(line, DARK)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    engine = line.engine()
    assert not engine.ready
    assert engine.detail
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert health_of(line, "") == serving
    assert health_of(line, "inspectbus.api.v1.InferenceService") == not_serving


def test_a_service_with_its_model_is_ready(start: Open, version: Path) -> None:
    line = start(model="tiny", model_dir=version)
    line.wait_ready()

    assert health_of(line, "inspectbus.api.v1.InferenceService") == health_pb2.HealthCheckResponse.SERVING
    assert health_of(line, "inference.GRPCInferenceService") == health_pb2.HealthCheckResponse.SERVING


def health_of(line: Running, name: str) -> int:
    with grpc.insecure_channel(line.door.address) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        health = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S)  # type: ignore[attr-defined]
    return int(health.status)


def test_a_model_that_is_registered_later_is_picked_up(start: Open, version: Path, tmp_path: Path) -> None:
    with model_owner() as (owner, address):
        # given a service whose model does not exist yet, and a frame that waits for it
        line = start(model="tiny", models_address=address, model_patience_s=PATIENCE_S)
        frame = prepared_frame(BRIGHT)
        published = line.bus.publish(topics.PREPARED, prepared_message(frame, "test", Lane.LIVE))
        assert not line.engine().ready
        # when it is published and named
        store = ModelStore(f"file://{tmp_path}/state/models", tmp_path / "other-cache")
        owner.cards["tiny", "production"] = store.publish(version)
        # then it is loaded, and judges
        published.result(PATIENCE_S)
        assert line.decided.get(timeout=PATIENCE_S).model_version == version.name
    # and a service that starts while owner and store are away serves it from what this machine remembers
    (tmp_path / "state/models").rename(tmp_path / "state/away")
    assert start(model="tiny", models_address=address).wait_ready().model_version == version.name


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (InferRequest(), "pixels.channels"),
        (InferRequest(pixels=Pixels(height=SIDE, width=SIDE, channels=1, data=bytes(SIDE**2))), "pixels.channels"),
        (InferRequest(pixels=Pixels(height=0, width=SIDE, channels=3)), "pixels.height"),
        (InferRequest(pixels=Pixels(height=SIDE, width=SIDE, channels=3, data=b"short")), "pixels.data"),
        (InferRequest(pixels=Pixels(height=2**32 - 1, width=2**32 - 1, channels=3, data=b"x")), "pixels.data"),
        (InferRequest(pixels=Pixels(height=1, width=1, channels=3, data=bytes(3))), "pixels"),
    ],
    ids=str,
)
def test_pixels_that_do_not_fit_are_refused_by_field(
    start: Open, version: Path, request_: InferRequest, field: str
) -> None:
    line = start(model_dir=version)
    line.wait_ready()
    with pytest.raises(grpc.RpcError) as refused:
        line.stub.Infer(request_, timeout=PATIENCE_S)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(refused.value) == field


def test_another_preparation_is_refused_and_none_is_vouched_for(start: Open, version: Path) -> None:
    line = start(model_dir=version)
    ours = line.wait_ready().preparation_hash
    with pytest.raises(grpc.RpcError) as refused:
        line.stub.Infer(InferRequest(pixels=pixels(DARK), preparation_hash="0" * 16), timeout=PATIENCE_S)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert field_of(refused.value) == "preparation_hash"
    line.stub.Infer(InferRequest(pixels=pixels(DARK), preparation_hash=ours), timeout=PATIENCE_S)


def test_a_network_that_gives_no_number_is_an_error_and_no_verdict(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line = start(model_dir=version)
    line.wait_ready()
    touchy.get(timeout=PATIENCE_S).nonsense = {BETWEEN}
    with pytest.raises(grpc.RpcError) as refused:
        infer(line, BETWEEN)
    assert refused.value.code() == grpc.StatusCode.INTERNAL
    assert "nan" in str(refused.value.details())


def busy(
    start: Open, version: Path, touchy: Queue[TouchyEngine], **how: int
) -> tuple[Running, TouchyEngine, grpc.Future[InferResponse]]:
    """A service whose engine is held inside a batch of one, and the call it computes."""
    line = start(model_dir=version, max_batch_size=1, prefetch=1, **how)
    line.wait_ready()
    engine = touchy.get(timeout=PATIENCE_S)
    while engine.entered.acquire(blocking=False):
        pass
    engine.seen.clear()
    engine.gate.clear()
    first = line.stub.Infer.future(InferRequest(pixels=pixels(1)), timeout=PATIENCE_S)  # let go, it would be cancelled
    assert engine.entered.acquire(timeout=PATIENCE_S)
    return line, engine, first


def test_a_call_beyond_the_limit_is_refused_while_the_bus_gets_through(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line, engine, _first = busy(start, version, touchy, queue_limit=2)
    waiting = [line.stub.Infer.future(InferRequest(pixels=pixels(level)), timeout=PATIENCE_S) for level in (2, 3, 4)]
    ended: Queue[grpc.Future[InferResponse]] = Queue()
    for call in waiting:
        call.add_done_callback(ended.put)
    refused = ended.get(timeout=PATIENCE_S)
    with pytest.raises(grpc.RpcError) as full:
        refused.result(PATIENCE_S)
    assert full.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert line.engine().waiting == 2
    published = line.bus.publish(topics.PREPARED, prepared_message(prepared_frame(BRIGHT), "test", Lane.LIVE))
    engine.gate.set()
    published.result(PATIENCE_S)
    assert line.decided.get(timeout=PATIENCE_S).frame_id
    answered = [call for call in waiting if call is not refused]
    assert all(call.result(PATIENCE_S).judgement.model == "tiny" for call in answered)


def test_a_call_that_cannot_be_in_time_is_told_so_at_once_and_when_to_come_again(
    start: Open, version: Path, touchy: Queue[TouchyEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, engine, first = busy(start, version, touchy, queue_limit=10)
    monkeypatch.setattr("inspectbus.inference.batcher.answered_in_s", lambda *_, **__: 100.0)
    with pytest.raises(grpc.RpcError) as refused:
        infer(line, 5, timeout=80.0)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the call ends in" in str(refused.value.details())
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]  # a failed call is both error and call
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToTimedelta().total_seconds() == pytest.approx(100 * MARGIN - 80, abs=PATIENCE_S)
    assert line.metric("inspectbus_inference_dropped_total", reason="no_time", lane="live") == 1
    engine.gate.set()
    assert first.result(PATIENCE_S).judgement.model == "tiny"


def test_calls_that_hang_up_or_run_out_of_time_are_not_computed(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line, engine, _first = busy(start, version, touchy, queue_limit=10)
    with pytest.raises(grpc.RpcError) as late:
        infer(line, 5, timeout=1.5)  # longer than any pass before: sooner it would be refused
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    hung_up = line.stub.Infer.future(InferRequest(pixels=pixels(6)), timeout=PATIENCE_S)
    assert line.waits(1)
    hung_up.cancel()
    assert line.waits(0), "a caller who hung up kept its place"
    engine.gate.set()
    assert infer(line, 7).model == "tiny"
    assert engine.seen == [1, 7]


def test_a_stream_answers_each_image_and_goes_on_after_a_refused_one(start: Open, version: Path) -> None:
    line = start(model_dir=version, max_batch_size=2)
    line.wait_ready()
    bad = InferStreamRequest(pixels=Pixels(height=SIDE, width=SIDE, channels=3, data=b"short"))
    other = InferStreamRequest(pixels=pixels(DARK), preparation_hash="0" * 16)
    good = [InferStreamRequest(pixels=pixels(level)) for level in (DARK, BRIGHT) * 20]
    answers = {one.position: one for one in line.stub.InferStream(iter([bad, *good, other]), timeout=PATIENCE_S)}
    assert sorted(answers) == list(range(42))
    assert (answers[0].refusal.reason, answers[0].refusal.field) == ("BadField", "pixels.data")
    assert answers[41].refusal.field == "preparation_hash"
    assert answers[41].refusal.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    verdicts = [answers[position].judgement.verdict for position in range(1, 41)]
    assert verdicts == [VERDICT_QUALIFIED, VERDICT_DEFECTIVE] * 20


def test_an_empty_stream_ends_and_one_that_is_left_gives_its_places_back(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line, engine, _first = busy(start, version, touchy, queue_limit=10)
    assert list(line.stub.InferStream(iter([]), timeout=PATIENCE_S)) == []
    requests = (InferStreamRequest(pixels=pixels(level)) for level in range(10, 200))
    stream = line.stub.InferStream(requests, timeout=PATIENCE_S)
    assert line.waits(2), "the stream's images were not queued"
    stream.cancel()
    assert line.waits(0), "images that nobody waits for kept their places"
    engine.gate.set()
    assert infer(line, 7).model == "tiny"
    assert engine.seen == [1, 7]


def test_a_stream_that_is_cancelled_gives_its_place_back_at_once(
    start: Open, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "LEAVE_S", 10 * PATIENCE_S)
    line = start(model_dir=version, rpc_threads=4)
    line.wait_ready()
    requests: list[Queue[InferStreamRequest]] = [Queue() for _ in range(places_of(4))]
    streams = [line.stub.InferStream(iter(each.get, None)) for each in requests]
    for each, stream in zip(requests, streams, strict=True):
        each.put(InferStreamRequest(pixels=pixels(DARK)))
        assert next(stream).HasField("judgement")

    for stream in streams:
        stream.cancel()

    until_s = time.monotonic() + PATIENCE_S
    while (refusal := refused(line)) is not None:  # the service has to hear of it
        assert refusal is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert time.monotonic() < until_s, "a place was kept for nobody"


def test_a_stream_of_a_service_that_stops_is_answered_what_was_taken_and_told_to_send_the_rest_again(
    tmp_path: Path, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    settings = InferenceSettings(
        port=0, metrics_port=0, state_dir=tmp_path, model_dir=version, threads=1, drain_s=PATIENCE_S, max_batch_size=1
    )
    with ExitStack() as service, ThreadPoolExecutor(1) as closer:
        line = service.enter_context(running(settings))
        line.wait_ready()
        engine = touchy.get(timeout=PATIENCE_S)
        while engine.entered.acquire(blocking=False):
            pass
        engine.gate.clear()
        with grpc.insecure_channel(line.door.address) as channel:
            stub = InferenceServiceStub(channel)
            requests: list[Queue[InferStreamRequest]] = [Queue(), Queue()]
            idle, busy = (stub.InferStream(iter(each.get, None), timeout=PATIENCE_S) for each in requests)
            requests[1].put(InferStreamRequest(pixels=pixels(DARK)))
            assert engine.entered.acquire(timeout=PATIENCE_S)

            closing = closer.submit(service.close)

            with pytest.raises(grpc.RpcError) as ended:
                next(idle)
            engine.gate.set()
            assert next(busy).judgement.verdict == VERDICT_QUALIFIED
            with pytest.raises(grpc.RpcError) as left:
                next(busy)
            closing.result(PATIENCE_S)
    for each in (ended, left):
        assert each.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "send again what was not answered" in str(each.value.details())


def refused(line: Running) -> grpc.StatusCode | None:
    try:
        list(line.stub.InferStream(iter([]), timeout=PATIENCE_S))
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


def test_a_fault_of_ours_ends_a_stream_by_its_name(start: Open, version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = start(model_dir=version)
    line.wait_ready()

    def no_memory(self: object, item: object, lane: object) -> None:
        raise MemoryError

    monkeypatch.setattr(SlotQueue, "seat", no_memory)
    with pytest.raises(grpc.RpcError) as caught:
        list(line.stub.InferStream(iter([InferStreamRequest(pixels=pixels(1))]), timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "incident" in str(caught.value.details())


def test_a_sender_that_streams_faster_than_we_judge_is_slowed_and_not_refused(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line, engine, _first = busy(start, version, touchy, queue_limit=4)
    engine.gate.set()
    requests = (InferStreamRequest(pixels=pixels(level)) for level in range(100))
    answers = list(line.stub.InferStream(requests, timeout=PATIENCE_S))
    assert len(answers) == 100
    assert all(answer.HasField("judgement") for answer in answers)


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"prefetch": 64, "queue_limit": 64}, ""),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_batch_wait_s": float("nan")}, "max_batch_wait_s"),
        ({"model": "No Name"}, "model"),
        ({"models_address": ""}, "models_address"),
        ({"device": "tpu"}, "device"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(how: dict[str, object], field: str) -> None:
    with pytest.raises(BadField) as refused:
        InferenceSettings.load(how)
    assert refused.value.field == field


def test_a_service_whose_device_is_not_there_does_not_start(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    settings = InferenceSettings(device="cuda", port=0, metrics_port=0, state_dir=tmp_path)
    with (
        connect("embedded://no-device") as bus,
        pytest.raises(NotPossibleNow, match="cuda"),
        open_service(settings, bus),
    ):
        pass
