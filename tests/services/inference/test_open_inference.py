"""The Open Inference Protocol as its users meet it: through the client that PyPI has, unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from inspectbus.api.oip import open_inference_pb2
from inspectbus.api.v1.decision_pb2 import Verdict
from inspectbus.api.v1.inference_pb2 import InferRequest
from inspectbus.imaging.pixels import to_pixels
from inspectbus.networks.scorer import Scorer
from inspectbus.networks.trained import load_trained
from inspectbus.stores.models import read_card
from tests.doubles.inference_service import PATIENCE_S, Running, TouchyEngine
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.tiny_model import BRIGHT, DARK, SIDE, flat_image, tiny_version
from tests.doubles.triton import RefusedError, TritonClient, fields_of

Open = Callable[..., Running]
README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
LEVELS = (DARK, 90, 127, 160, BRIGHT)


@pytest.fixture(scope="module")
def triton() -> Iterator[TritonClient]:
    with TritonClient() as client:
        yield client


@pytest.fixture
def line(start: Open, version: Path) -> Running:
    line = start(model_dir=version)
    line.wait_ready()
    return line


def batch(*levels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, H, W, 3)."""
    return np.stack([flat_image(level) for level in levels])


def test_our_copy_of_the_contract_has_the_names_numbers_and_types_of_the_standard(triton: TritonClient) -> None:
    theirs, calls = triton.contract()
    ours = fields_of(open_inference_pb2.DESCRIPTOR)
    assert ours == {name: theirs[name] for name in ours}
    service = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.full_name for method in service.methods} <= set(calls)


def test_it_is_live_before_there_is_a_model_and_ready_with_one(
    start: Open, version: Path, triton: TritonClient
) -> None:
    address = start(model="nobody").door.address
    assert triton.ask(address, "is_server_live")
    assert not triton.ask(address, "is_server_ready")
    assert not triton.ask(address, "is_model_ready", "nobody")
    for call in (
        lambda: triton.ask(address, "get_model_metadata", "nobody"),
        lambda: triton.infer(address, batch(DARK), model="nobody"),
    ):
        with pytest.raises(RefusedError, match="no model is loaded") as refused:
            call()
        assert refused.value.status == "StatusCode.UNAVAILABLE"

    line = start(model_dir=version)
    line.wait_ready()
    address = line.door.address
    assert triton.ask(address, "is_server_ready")
    assert triton.ask(address, "is_model_ready", "tiny")
    assert triton.ask(address, "is_model_ready", "tiny", version.name)
    assert not triton.ask(address, "is_model_ready", "tiny", "1")
    assert not triton.ask(address, "is_model_ready", "other")


def test_metadata_tell_what_the_model_takes_and_gives(line: Running, version: Path, triton: TritonClient) -> None:
    server = triton.ask(line.door.address, "get_server_metadata")
    assert server["name"] == "inspectbus"
    assert server["version"]
    for asked in ("", version.name):
        assert triton.ask(line.door.address, "get_model_metadata", "tiny", asked) == {
            "name": "tiny",
            "versions": [version.name],
            "platform": "inspectbus_modelversion",
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": ["-1", str(SIDE), str(SIDE), "3"]}],
            "outputs": [
                {"name": "score", "datatype": "FP32", "shape": ["-1"]},
                {"name": "verdict", "datatype": "BYTES", "shape": ["-1"]},
                {"name": "heatmap", "datatype": "FP32", "shape": ["-1", "-1", "-1"]},
            ],
        }


@pytest.mark.parametrize("levels", [(BRIGHT,), LEVELS * 4], ids=["one image", "twenty images"])
def test_images_get_the_scores_and_verdicts_that_the_bus_and_infer_give(
    start: Open, version: Path, triton: TritonClient, levels: tuple[int, ...]
) -> None:
    # given what the bus and InferenceService say of the same pixels, by batches of one size: others round differently
    line = start(model_dir=version, max_batch_size=1)
    line.wait_ready()
    calls = [InferRequest(pixels=to_pixels(flat_image(level))) for level in levels]
    expected = [line.stub.Infer(call, timeout=PATIENCE_S).judgement for call in calls]
    decided = line.judge(*[prepared_frame(level) for level in levels])
    assert [(each.score, each.verdict) for each in decided] == [(each.score, each.verdict) for each in expected]
    # when
    message, tensors = triton.infer(line.door.address, batch(*levels), request_id="4711")
    # then
    assert tensors["score"].dtype == np.float32
    assert tensors["score"].tolist() == [each.score for each in expected]
    words = [Verdict.Name(each.verdict).removeprefix("VERDICT_").encode() for each in expected]
    assert tensors["verdict"].tolist() == words
    assert {b"DEFECTIVE"} <= set(words) <= {b"DEFECTIVE", b"QUALIFIED"}
    assert (message["model_name"], message["model_version"], message["id"]) == ("tiny", version.name, "4711")
    card = read_card(version)
    assert message["parameters"] == {
        "threshold": {"double_param": card.threshold},
        "preparation_hash": {"string_param": card.preparation.hash},
    }
    assert line.decided.empty(), "a call makes no record"


def test_outputs_come_as_they_are_asked_for_and_are_the_networks(
    line: Running, version: Path, triton: TritonClient
) -> None:
    images, card = batch(DARK, BRIGHT), read_card(version)
    network = Scorer(load_trained(version, card.architecture, card.normalisation), card.calibration).eval()
    with torch.inference_mode():
        scores, heatmaps = network(torch.from_numpy(images))
    message, tensors = triton.infer(line.door.address, images, outputs={"heatmap": {}, "score": {}})
    assert [output["name"] for output in message["outputs"]] == ["heatmap", "score"]
    np.testing.assert_allclose(tensors["heatmap"], heatmaps.numpy(), atol=1e-4, strict=True)
    np.testing.assert_allclose(tensors["score"], scores.numpy(), atol=1e-6, strict=True)


def test_a_band_is_told_and_a_score_in_it_is_held(start: Open, tmp_path: Path, triton: TritonClient) -> None:
    line = start(model_dir=tiny_version(tmp_path, threshold=0.98, qualified_below=0.02))
    line.wait_ready()
    message, tensors = triton.infer(line.door.address, batch(DARK, 127, BRIGHT))
    assert tensors["verdict"].tolist() == [b"QUALIFIED", b"HOLD", b"DEFECTIVE"]
    assert message["parameters"]["qualified_below"] == {"double_param": 0.02}


ONE = (1, SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("images", "how", "status", "words"),
    [
        (np.zeros(ONE, np.uint8), {"model": "other"}, "NOT_FOUND", "no model 'other' here; tiny is loaded"),
        (np.zeros(ONE, np.uint8), {"model_version": "1"}, "NOT_FOUND", "no version '1' of tiny here"),
        (np.zeros(ONE, np.uint8), {"name": "pixels"}, "INVALID_ARGUMENT", "inputs[0].name is 'pixels'"),
        (
            np.zeros(ONE, np.float32),
            {"datatype": "FP32"},
            "INVALID_ARGUMENT",
            "inputs[0].datatype is 'FP32'; images is UINT8",
        ),
        (
            np.zeros((1, 3, SIDE, SIDE), np.uint8),
            {},
            "INVALID_ARGUMENT",
            "inputs[0].shape is [1, 3, 32, 32]; tiny takes [-1, 32, 32, 3], channels last",
        ),
        (np.zeros(ONE[1:], np.uint8), {}, "INVALID_ARGUMENT", "inputs[0].shape is [32, 32, 3]"),
        (np.zeros((0, *ONE[1:]), np.uint8), {}, "INVALID_ARGUMENT", "from 1 to 128 images"),
        (np.zeros((129, *ONE[1:]), np.uint8), {}, "INVALID_ARGUMENT", "from 1 to 128 images"),
        (
            np.zeros(ONE, np.uint8),
            {"shape": [2, SIDE, SIDE, 3]},
            "INVALID_ARGUMENT",
            "raw_input_contents[0] has 3072 bytes; [2, 32, 32, 3] takes 6144",
        ),
        (
            np.zeros(ONE, np.uint8),
            {"outputs": {"score": {}, "boxes": {}}},
            "INVALID_ARGUMENT",
            "outputs[1].name is 'boxes'; tiny gives score, verdict, heatmap",
        ),
        (
            np.zeros(ONE, np.uint8),
            {"outputs": {"score": {"class_count": 2}}},
            "INVALID_ARGUMENT",
            "outputs[0].parameters has 'classification'",
        ),
        (np.zeros(ONE, np.uint8), {"sequence_id": 7}, "INVALID_ARGUMENT", "parameters has 'sequence_"),
        (
            np.zeros(ONE, np.uint8),
            {"shared_memory": "region"},
            "INVALID_ARGUMENT",
            "inputs[0].parameters has 'shared_memory_",
        ),
        (
            np.zeros(ONE, np.uint8),
            {"parameters": {"preparation_hash": "0" * 16}},
            "FAILED_PRECONDITION",
            "the pixels went through preparation 0000000000000000",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_in_words(
    line: Running, triton: TritonClient, images: np.ndarray[Any, Any], how: dict[str, Any], status: str, words: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        triton.infer(line.door.address, images, **how)
    assert refused.value.status == f"StatusCode.{status}"
    assert words in refused.value.message


def test_a_preparation_that_is_named_and_right_is_taken(line: Running, version: Path, triton: TritonClient) -> None:
    known = {"preparation_hash": read_card(version).preparation.hash}
    assert len(triton.infer(line.door.address, batch(DARK), parameters=known).tensors["score"]) == 1


def test_a_model_that_is_not_here_has_no_metadata(line: Running, triton: TritonClient) -> None:
    for name, asked in (("other", ""), ("tiny", "1")):
        with pytest.raises(RefusedError) as refused:
            triton.ask(line.door.address, "get_model_metadata", name, asked)
        assert refused.value.status == "StatusCode.NOT_FOUND"


def test_streaming_is_told_to_be_no_part_of_the_standard(line: Running, triton: TritonClient) -> None:
    with pytest.raises(RefusedError, match=r"(?i)method not found|unimplemented"):
        triton.open_stream(line.door.address)


def test_a_batch_waits_as_long_as_its_deadline_and_a_full_queue_takes_none_of_it(
    start: Open, version: Path, touchy: Queue[TouchyEngine], triton: TritonClient
) -> None:
    # given an engine held at its work
    line = start(model_dir=version, max_batch_size=1, prefetch=1, queue_limit=4)
    line.wait_ready()
    engine = touchy.get(timeout=PATIENCE_S)
    while engine.entered.acquire(blocking=False):
        pass
    engine.seen.clear()
    engine.gate.clear()
    first = line.stub.Infer.future(InferRequest(pixels=to_pixels(flat_image(1))), timeout=PATIENCE_S)
    assert engine.entered.acquire(timeout=PATIENCE_S)
    # when batches come, one that has less time than that takes, and one for which there is no room beside another call
    with pytest.raises(RefusedError) as late:
        triton.infer(line.door.address, batch(10, 11), client_timeout=0.5)
    assert line.waits(0), "images that nobody waits for kept their places"
    second = line.stub.Infer.future(InferRequest(pixels=to_pixels(flat_image(2))), timeout=PATIENCE_S)
    assert line.waits(1)
    with pytest.raises(RefusedError) as full:
        triton.infer(line.door.address, batch(20, 21, 22, 23))
    assert line.waits(1)
    # then both are told so, and nothing of them is computed
    assert late.value.status == "StatusCode.DEADLINE_EXCEEDED"
    assert full.value.status == "StatusCode.RESOURCE_EXHAUSTED"
    assert "no room for 4 more" in full.value.message
    engine.gate.set()
    assert second.result(PATIENCE_S).judgement.model == first.result(PATIENCE_S).judgement.model == "tiny"
    assert len(triton.infer(line.door.address, batch(30, 31)).tensors["score"]) == 2
    assert engine.seen == [1, 2, 30, 31]


def test_a_tensor_beyond_the_message_limit_is_refused_in_words_and_the_next_is_judged(
    start: Open, version: Path, triton: TritonClient
) -> None:
    line = start(model_dir=version, max_message_bytes=100_000)
    line.wait_ready()
    with pytest.raises(RefusedError, match="larger than max") as refused:
        triton.infer(line.door.address, batch(*[DARK] * 40))
    assert refused.value.status == "StatusCode.RESOURCE_EXHAUSTED"
    assert len(triton.infer(line.door.address, batch(*[DARK] * 30)).tensors["score"]) == 30


def test_calls_are_counted_with_their_status(line: Running, triton: TritonClient) -> None:
    method = "/inference.GRPCInferenceService/ModelInfer"
    triton.infer(line.door.address, batch(DARK))
    with pytest.raises(RefusedError):
        triton.infer(line.door.address, batch(DARK), model="other")
    assert line.metric("inspectbus_rpc_calls_total", method=method, code=grpc.StatusCode.OK.name) == 1
    assert line.metric("inspectbus_rpc_calls_total", method=method, code=grpc.StatusCode.NOT_FOUND.name) == 1


def test_the_program_of_the_readme_does_what_it_says(line: Running, triton: TritonClient) -> None:
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "triton" in block)
    # Where the README has a line and its model, the test has another.
    program = program.replace("127.0.0.1:50053", line.door.address).replace('"parts"', '"tiny"')
    words, *scores = triton.run(program, prepared=batch(DARK, BRIGHT)).split(" [")
    assert words == "[b'QUALIFIED' b'DEFECTIVE']"
    assert len(scores[0].strip("]\n").split()) == 2
