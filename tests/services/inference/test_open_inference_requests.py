"""The Open Inference Protocol without a client that minds its manners: typed contents, and whatever can be sent."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inspectbus.api.oip.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
    ServerLiveRequest,
)
from inspectbus.api.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from inspectbus.domain.model_version import Export
from inspectbus.errors import BadField, TooLarge
from inspectbus.inference.batcher import Scored
from inspectbus.inference.oip.request import Asked, images_of, output_names, read
from inspectbus.inference.oip.response import response_of
from inspectbus.inference.oip.tensors import HEATMAP, IMAGES, SCORE, outputs_of
from inspectbus.networks import scorer
from inspectbus.runtime.loop_server import LARGE_BYTES
from inspectbus.stores.models import read_card
from tests.doubles.inference_service import PATIENCE_S, Running, TouchyEngine, comes_true, field_of
from tests.doubles.silent_client import SilentClient
from tests.doubles.tiny_model import BRIGHT, DARK, SIDE, flat_image

Open = Callable[..., Running]
Pixels = ModelInferRequest.InferInputTensor
Wanted = ModelInferRequest.InferRequestedOutputTensor
SIZE = SIDE * SIDE * 3
METHOD = "/inference.GRPCInferenceService/ModelInfer"
BETWEEN = 127


def pixels(count: int = 1, **how: Any) -> Pixels:
    return Pixels(**{"name": "images", "datatype": "UINT8", "shape": [count, SIDE, SIDE, 3], **how})


def raw(*levels: int, **how: Any) -> ModelInferRequest:
    images = b"".join(flat_image(level).tobytes() for level in levels)
    tensor = pixels(len(levels))
    return ModelInferRequest(**{"model_name": "tiny", "inputs": [tensor], "raw_input_contents": [images], **how})


def typed(*levels: int, **how: Any) -> ModelInferRequest:
    contents = InferTensorContents(uint_contents=[level for level in levels for _ in range(SIZE)])
    return ModelInferRequest(**{"model_name": "tiny", "inputs": [pixels(len(levels), contents=contents)], **how})


@pytest.fixture
def line(start: Open, version: Path) -> Running:
    line = start(model_dir=version)
    line.wait_ready()
    return line


def infer(line: Running, request: ModelInferRequest) -> ModelInferResponse:
    with grpc.insecure_channel(line.door.address) as channel:
        return GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE_S)


def refused(line: Running, request: ModelInferRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        infer(line, request)
    return caught.value


def test_typed_contents_are_answered_by_typed_contents_and_say_the_same(start: Open, version: Path) -> None:
    line = start(model_dir=version, max_batch_size=1)
    line.wait_ready()
    by_raw, by_typed = (infer(line, request(DARK, BETWEEN, BRIGHT)) for request in (raw, typed))

    score, verdict, heatmap = by_typed.outputs
    assert not by_typed.raw_output_contents
    assert not any(output.HasField("contents") for output in by_raw.outputs)
    assert np.array(score.contents.fp32_contents, np.float32).tobytes() == by_raw.raw_output_contents[0]
    words = [b"QUALIFIED", list(verdict.contents.bytes_contents)[1], b"DEFECTIVE"]
    assert list(verdict.contents.bytes_contents) == words
    assert by_raw.raw_output_contents[1] == b"".join(len(word).to_bytes(4, "little") + word for word in words)
    assert np.array(heatmap.contents.fp32_contents, np.float32).tobytes() == by_raw.raw_output_contents[2]
    assert np.prod(heatmap.shape) == len(heatmap.contents.fp32_contents)


NO_STRING = InferParameter(int64_param=7)
UNKNOWN = {"speed": InferParameter(bool_param=True)}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ModelInferRequest(model_name="tiny"), "inputs"),
        (raw(DARK, inputs=[pixels(), pixels()]), "inputs"),
        (raw(DARK, inputs=[pixels(name="")]), "inputs[0].name"),
        (raw(DARK, inputs=[pixels(), pixels(name="mask")]), "inputs[1].name"),
        (raw(DARK, inputs=[pixels(datatype="uint8")]), "inputs[0].datatype"),
        (raw(DARK, inputs=[pixels(shape=[])]), "inputs[0].shape"),
        (raw(DARK, inputs=[pixels(shape=[-1, SIDE, SIDE, 3])]), "inputs[0].shape"),
        (raw(DARK, inputs=[pixels(shape=[2**62, SIDE, SIDE, 3])]), "inputs[0].shape"),
        (raw(DARK, inputs=[pixels(shape=[1, -SIDE, -SIDE, 3])]), "inputs[0].shape"),
        (raw(DARK, inputs=[pixels(shape=[1] * 100_000)]), "inputs[0].shape"),
        (raw(DARK, inputs=[pixels(parameters=UNKNOWN)]), "inputs[0].parameters"),
        (raw(DARK, raw_input_contents=[]), "raw_input_contents"),
        (raw(DARK, raw_input_contents=[b""]), "raw_input_contents[0]"),
        (raw(DARK, raw_input_contents=[bytes(SIZE - 1)]), "raw_input_contents[0]"),
        (raw(DARK, raw_input_contents=[bytes(SIZE + 1)]), "raw_input_contents[0]"),
        (raw(DARK, raw_input_contents=[bytes(SIZE), b""]), "raw_input_contents"),
        (raw(DARK, inputs=[pixels(contents=InferTensorContents())]), "inputs[0].contents"),
        (typed(DARK, raw_input_contents=[bytes(SIZE)]), "inputs[0].contents"),
        (typed(256), "inputs[0].contents.uint_contents"),
        (typed(2**32 - 1), "inputs[0].contents.uint_contents"),
        (typed(DARK, inputs=[pixels(2, contents=typed(DARK).inputs[0].contents)]), "inputs[0].contents.uint_contents"),
        (
            typed(inputs=[pixels(contents=InferTensorContents(int_contents=[DARK] * SIZE))]),
            "inputs[0].contents.int_contents",
        ),
        (
            typed(inputs=[pixels(contents=InferTensorContents(bytes_contents=[bytes(SIZE)]))]),
            "inputs[0].contents.bytes_contents",
        ),
        (raw(DARK, outputs=[Wanted(name="")]), "outputs[0].name"),
        (raw(DARK, outputs=[Wanted(name="score")] * 2), "outputs[1].name"),
        (raw(DARK, outputs=[Wanted(name="score", parameters=UNKNOWN)]), "outputs[0].parameters"),
        (raw(DARK, parameters=UNKNOWN), "parameters"),
        (raw(DARK, parameters={"preparation_hash": NO_STRING}), "parameters[preparation_hash]"),
        (raw(DARK, inputs=[pixels(name="x" * 100_000)]), "inputs[0].name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_request_is_refused_by_the_field_at_fault(
    line: Running, request_: ModelInferRequest, field: str
) -> None:
    error = refused(line, request_)

    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(error) == field
    assert field in str(error.details())
    assert infer(line, raw(BRIGHT)).model_name == "tiny"


@pytest.mark.parametrize("how", [{"model_name": ""}, {"model_version": "x" * 100_000}], ids=["no name", "long version"])
def test_a_model_that_is_not_here_is_not_found(line: Running, how: dict[str, str]) -> None:
    error = refused(line, raw(DARK, **how))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert field_of(error) == next(iter(how))


def test_bytes_that_are_no_message_end_that_call_only(line: Running) -> None:
    with grpc.insecure_channel(line.door.address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError, match="1000 bytes received are no message of this call") as broken:
            call(b"\xff" * 1000, timeout=PATIENCE_S)
        assert broken.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary(f"{METHOD}Later", request_serializer=bytes)(b"", timeout=PATIENCE_S)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert infer(line, raw(DARK)).model_name == "tiny"


@pytest.mark.parametrize(("hurt", "words"), [("poison", "out of memory"), ("nonsense", "nan")])
def test_one_image_that_cannot_be_judged_leaves_its_batch_without_an_answer(
    start: Open, version: Path, touchy: Queue[TouchyEngine], hurt: str, words: str
) -> None:
    line = start(model_dir=version)
    line.wait_ready()
    setattr(touchy.get(timeout=PATIENCE_S), hurt, {BETWEEN})

    # also where nobody asks for the verdict
    error = refused(line, raw(DARK, BETWEEN, BRIGHT, outputs=[Wanted(name="heatmap")]))

    assert error.code() == grpc.StatusCode.INTERNAL
    assert words in str(error.details())
    assert len(infer(line, raw(DARK, BRIGHT)).outputs) == 3


def test_a_caller_who_hangs_up_gives_all_places_back(start: Open, version: Path, touchy: Queue[TouchyEngine]) -> None:
    # given an engine held at the first image of a batch
    line = start(model_dir=version, max_batch_size=1)
    line.wait_ready()
    engine = touchy.get(timeout=PATIENCE_S)
    while engine.entered.acquire(blocking=False):
        pass
    engine.seen.clear()
    engine.gate.clear()
    with grpc.insecure_channel(line.door.address) as channel:
        call = GRPCInferenceServiceStub(channel).ModelInfer.future(raw(*range(1, 21)), timeout=PATIENCE_S)
        assert engine.entered.acquire(timeout=PATIENCE_S)
        assert line.waits(19)
        # when
        call.cancel()
        # then
        assert line.waits(0), "images that nobody waits for kept their places"
    engine.gate.set()
    infer(line, raw(77))
    assert engine.seen == [1, 77]


def test_images_of_raw_contents_are_views_of_one_copy(version: Path) -> None:
    request, card = raw(*range(100)), read_card(version)
    tracemalloc.start()
    try:
        images = images_of(request, card, 100)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [int(image[0, 0, 0]) for image in images] == list(range(100))
    assert not any(image.flags.owndata or image.flags.writeable for image in images)
    size = 100 * SIZE
    assert size < held <= peak < 1.2 * size


def test_more_images_than_a_call_may_have_are_refused_before_any_is_copied(version: Path) -> None:
    request, card = raw(*range(100)), read_card(version)
    tracemalloc.start()
    try:
        with pytest.raises(BadField, match="from 1 to 99 images"):
            images_of(request, card, 99)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < SIZE * 10


def test_a_heatmap_is_named_where_the_card_says_there_is_one(version: Path) -> None:
    card = read_card(version)
    with_map, without = (
        card.model_copy(update={"export": Export(opset=18, heatmap=heatmap, images=1, deviation=0.0)})
        for heatmap in ((4, 5), None)
    )
    assert [list(output.shape) for output in outputs_of(with_map)] == [[-1], [-1], [-1, 4, 5]]
    assert [output.name for output in outputs_of(without)] == ["score", "verdict"]

    asked = raw(DARK, outputs=[Wanted(name="heatmap")])
    assert output_names(asked, with_map) == output_names(asked, card) == ["heatmap"]
    with pytest.raises(BadField, match="'heatmap'; tiny gives score, verdict"):
        output_names(asked, without)
    # a card from before there were exports does not say, and then the engine does
    unexplained = [Scored(0.25, 0.0, 0.0)]
    assert [output.name for output in response_of(asked, [], card, unexplained).outputs] == ["score", "verdict"]
    with pytest.raises(BadField, match="gives no heatmap"):
        response_of(asked, ["heatmap"], card, unexplained)


def test_tensors_have_the_names_that_the_export_gives_them() -> None:
    assert (IMAGES, SCORE, HEATMAP) == (scorer.IMAGES, scorer.SCORE, scorer.HEATMAP)


def test_reflection_and_health_know_the_service(line: Running) -> None:
    name = "inference.GRPCInferenceService"
    with grpc.insecure_channel(line.door.address) as channel:
        stubs: Any = (health_pb2_grpc.HealthStub(channel), reflection_pb2_grpc.ServerReflectionStub(channel))
        health = stubs[0].Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=name),
        ]
        listed, described = stubs[1].ServerReflectionInfo(iter(asked), timeout=PATIENCE_S)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert name in {service.name for service in listed.list_services_response.service}
    assert len(described.file_descriptor_response.file_descriptor_proto) == 1


def test_of_a_thousand_calls_at_once_those_beyond_the_limit_are_told_so(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    # given an engine that is held
    line = start(model_dir=version, rpc_threads=8, rpc_waiting=4)
    line.wait_ready()
    engine = touchy.get(timeout=PATIENCE_S)
    while engine.entered.acquire(blocking=False):
        pass
    engine.gate.clear()
    ended: Queue[Any] = Queue()
    with grpc.insecure_channel(line.door.address) as channel:
        # when
        infer = GRPCInferenceServiceStub(channel).ModelInfer
        calls = [infer.future(raw(DARK), timeout=PATIENCE_S) for _ in range(1000)]
        for call in calls:
            call.add_done_callback(ended.put)
        # then all but those in hand are refused while it is held, and these are answered afterwards
        early = [ended.get(timeout=PATIENCE_S) for _ in range(988)]
        assert {call.code() for call in early} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        engine.gate.set()
        late = [ended.get(timeout=PATIENCE_S).code() for _ in range(12)]
        # Who asked whether it is ready may have held a place for a moment longer.
        assert late.count(grpc.StatusCode.OK) >= 11
        assert infer(raw(BRIGHT), timeout=PATIENCE_S).model_name == "tiny"


def test_a_large_batch_whose_caller_hangs_up_gives_its_places_back(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line = start(model_dir=version, max_batch_size=1)
    line.wait_ready()
    engine = touchy.get(timeout=PATIENCE_S)
    while engine.entered.acquire(blocking=False):
        pass
    engine.gate.clear()
    request = raw(*[DARK] * 100)
    assert request.ByteSize() > LARGE_BYTES  # so it is worked on beside the loop
    with grpc.insecure_channel(line.door.address) as channel:
        call = GRPCInferenceServiceStub(channel).ModelInfer.future(request, timeout=PATIENCE_S)
        assert engine.entered.acquire(timeout=PATIENCE_S)
        assert line.waits(99)

        call.cancel()

        assert line.waits(0), "images that nobody waits for kept their places"
        engine.gate.set()
        assert infer(line, raw(DARK)).model_name == "tiny"


def test_a_large_request_that_is_refused_leaves_nothing_for_the_garbage_collector(line: Running) -> None:
    request = raw(*[DARK] * 100, model_name="unknown")
    assert request.ByteSize() > LARGE_BYTES  # so it is worked on beside the loop
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            assert "unknown" in str(refused(line, request))
        # the last one's refusal was perhaps quicker than its end
        assert comes_true(lambda: not [each for each in gc.get_objects() if type(each) is Asked])
    finally:
        gc.enable()


BEYOND = 20 << 20
INPUTS, CONTENTS, PARAMETERS, INT64S, BYTES = b"\x2a", b"\x2a", b"\x22", b"\x1a", b"\x42"


def field(number: bytes, data: bytes) -> bytes:
    """As protobuf writes one of bytes."""
    size, told = len(data), b""
    while size > 0x7F:
        told, size = told + bytes([size & 0x7F | 0x80]), size >> 7
    return number + told + bytes([size]) + data


@pytest.mark.parametrize(
    "message",
    [
        (INPUTS + b"\0") * (BEYOND // 2),
        (PARAMETERS + b"\0") * (BEYOND // 2),
        field(INPUTS, (PARAMETERS + b"\0") * (BEYOND // 2)),
        field(INPUTS, field(CONTENTS, (BYTES + b"\0") * (BEYOND // 2))),
        field(INPUTS, field(CONTENTS, field(INT64S, b"\1" * BEYOND))),
        b"\x3a\0" * (BEYOND // 2),
        b"\x08\1" * (BEYOND // 2),
        field(b"\x0a", b"n" * BEYOND),
    ],
    ids=["inputs", "parameters", "of an input", "texts", "numbers", "pixels of nothing", "unknown fields", "a name"],
)
def test_a_request_of_words_is_refused_before_it_is_made_of_them(message: bytes) -> None:
    with pytest.raises(TooLarge, match="beside its pixels"):
        read(message)


@pytest.mark.parametrize(
    "message", [b"\x0b" * BEYOND, b"\xff" * BEYOND, b"\x2a" + b"\xff" * BEYOND], ids=["group", "tag", "size"]
)
def test_a_large_request_that_is_none_is_told_so(message: bytes) -> None:
    with pytest.raises(DecodeError):
        read(message)


def test_pixels_are_no_words_however_many_and_in_whatever_way_they_are_written() -> None:
    for request in (raw(*[DARK] * 100), typed(*[DARK] * 100)):
        data = request.SerializeToString()
        assert len(data) > LARGE_BYTES
        assert read(data).message == request


def test_of_calls_whose_answers_are_never_read_no_pixels_are_kept(line: Running) -> None:
    request = raw(*[DARK] * 100).SerializeToString()
    with SilentClient(line.door.address) as silent:
        silent.wait_answered(silent.call(METHOD, request))
        tracemalloc.start()
        try:
            for _ in range(50):
                silent.wait_answered(silent.call(METHOD, request))
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(silent.answered) == 51
        assert kept < 10 * len(request)
        assert infer(line, raw(DARK)).model_name == "tiny"


def test_a_tensor_of_a_gigabyte_is_refused_by_its_size(line: Running) -> None:
    with grpc.insecure_channel(line.door.address, [("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(1 << 30), timeout=PATIENCE_S)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in str(caught.value.details())
        assert GRPCInferenceServiceStub(channel).ServerLive(ServerLiveRequest(), timeout=PATIENCE_S).live
