"""One image, every door: through the bus, `Infer`, `InferStream`, the Open Inference Protocol and `inspectbus inspect`
it gets the same verdict, whichever engine judges.

file ─┬─ inspectbus inspect ──────────────────────────────────> verdict, score
      └─ Prepare ─> pixels ─┬─ Infer, InferStream, ModelInfer ─> verdict, score
                            └─ PreparedFrame on the bus ───────> verdict, score
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import cv2
import grpc
import numpy as np
import pytest

from inspectbus.api.oip.open_inference_pb2 import ModelInferRequest
from inspectbus.api.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from inspectbus.api.v1.decision_pb2 import Decision, Verdict
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.inference_pb2 import InferRequest, InferStreamRequest
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.api.v1.preprocessing_pb2 import PrepareRequest, PrepareResponse
from inspectbus.api.v1.preprocessing_pb2_grpc import PreprocessingServiceStub
from inspectbus.bus import Lane, Message, connect, topics
from inspectbus.bus.messages import prepared_message
from inspectbus.cli.inspect import Form, inspect_files
from inspectbus.errors import InspectBusError, ModelNotReady, NotPossibleNow
from inspectbus.inference.engine import FORMS, check_engine
from inspectbus.line import open_line, wait_for_engine
from inspectbus.runtime.rpc_server import Door
from inspectbus.stores.datasets import open_dataset, split
from inspectbus.stores.models import read_card
from inspectbus_client import Client
from tests.doubles.model_owner import model_owner
from tests.doubles.tiny_model import tiny_version

PATIENCE_S = 120.0
TOGETHER = 8
"""Images in one ModelInfer: batches of many sizes are computed, as they come."""
VERSION = "INSPECTBUS_TEST_VERSION"
"""The folder of a trained version, <store>/<name>/<version>, for the whole ELPV test part."""
SAME = 1e-6
"""How far the scores of one image may lie apart, by what else was in its batch: an engine may choose another kernel."""
SAME_IN_HALF = 0.02
"""The same in bf16, whose numbers have eight bits where those of float32 have 24."""


class Said(NamedTuple):
    verdict: str
    score: float


Answers = Mapping[Path, Said]


@pytest.fixture
def house() -> Iterator[ExitStack]:
    with ExitStack() as house:
        yield house


@pytest.mark.parametrize("engine", FORMS)
def test_an_image_gets_the_same_verdict_at_every_door(house: ExitStack, engine: str, tmp_path: Path) -> None:
    skip_where_absent(engine)
    rng = np.random.default_rng(0)
    (tmp_path / "parts").mkdir()
    for level in range(35, 221, 15):
        image = rng.integers(level - 25, level + 25, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"parts/{level}.png"), image)
    version = tiny_version(tmp_path / "versions", threshold=0.9, qualified_below=0.1, exported=True)
    files = sorted((tmp_path / "parts").iterdir())
    apart, verdicts = compared(house, version, engine, files, tmp_path / "state")
    assert verdicts == {"QUALIFIED", "DEFECTIVE", "HOLD"}
    assert apart <= (SAME_IN_HALF if FORMS[engine].reduced else SAME)


@pytest.mark.soak
@pytest.mark.parametrize("engine", FORMS)
def test_every_image_of_the_elpv_test_part_gets_the_same_verdict_at_every_door(
    house: ExitStack, engine: str, tmp_path: Path
) -> None:
    skip_where_absent(engine)
    if not (told := os.environ.get(VERSION)):
        pytest.skip(f"{VERSION} names no trained version's folder")
    try:
        held_out = split(open_dataset("elpv")).held_out
    except InspectBusError as error:
        pytest.skip(f"the data set elpv is not there: {error.message}")
    try:
        files = [item.path for item in held_out.items]
        apart, verdicts = compared(house, Path(told).resolve(), engine, files, tmp_path / "state")
    except ModelNotReady as error:
        pytest.skip(f"{engine} did not pass the version's gate: {error.message}")
    assert {"QUALIFIED", "DEFECTIVE"} <= verdicts
    assert apart <= (SAME_IN_HALF if FORMS[engine].reduced else SAME)


def skip_where_absent(engine: str) -> None:
    try:
        check_engine(engine, "auto")
    except NotPossibleNow as error:
        pytest.skip(error.message)


def compared(
    house: ExitStack,
    version: Path,
    engine: str,
    files: Sequence[Path],
    state: Path,
) -> tuple[float, set[str]]:
    """Asserts that all doors give every image one verdict; how far its scores lie apart at most, and the verdicts."""
    card = read_card(version)
    owner, models_address = house.enter_context(model_owner())
    owner.cards[card.name, "production"] = card
    bus_url = f"embedded://{uuid.uuid4()}"
    sections: dict[str, dict[str, Any]] = {
        "inference": {"model": card.name, "model_dir": version, "engine": engine, "keep_evidence": False}
    }
    services = ("results", "inference", "preprocessing", "acquisition")
    everywhere = {"state_dir": state, "models_address": models_address, "port": 0, "metrics_port": 0}
    doors = house.enter_context(open_line(services, sections, bus_url=bus_url, **everywhere))
    client = house.enter_context(Client.connect({name: doors[name].address for name in services}))
    wait_for_engine(client, threading.Event(), PATIENCE_S)
    # Every image is judged, however dark it is.
    limits = "{min_sharpness: null, min_brightness: null, max_brightness: null, max_glare: null}"
    client.put_recipe(f"name: default\nmodel: {card.name}\nquality: {limits}\n")
    prepared = prepared_files(house, doors["preprocessing"], files)
    said = {
        "Infer": inferred(house, doors["inference"], prepared),
        "InferStream": streamed(house, doors["inference"], prepared),
        "ModelInfer": by_the_standard(house, doors["inference"], card.name, prepared),
        "bus": on_the_bus(bus_url, prepared),
        "inspect": inspected(client, files),
    }
    for door, answers in said.items():
        assert answers.keys() == set(files), door
    for file in files:
        assert len({answers[file].verdict for answers in said.values()}) == 1, {
            door: answers[file] for door, answers in said.items()
        }
    scores = np.array([[answers[file].score for answers in said.values()] for file in files])
    apart = float(np.ptp(scores, axis=1).max())
    sys.stdout.write(f"{engine}: {len(files)} images, one verdict each; scores at most {apart:.2e} apart\n")
    return apart, {each.verdict for each in said["bus"].values()}


def prepared_files(house: ExitStack, door: Door, files: Sequence[Path]) -> dict[Path, PrepareResponse]:
    stub = PreprocessingServiceStub(house.enter_context(grpc.insecure_channel(door.address)))
    return {
        file: stub.Prepare(PrepareRequest(recipe="default", image=file.read_bytes()), timeout=PATIENCE_S)
        for file in files
    }


def inferred(house: ExitStack, door: Door, prepared: Mapping[Path, PrepareResponse]) -> Answers:
    stub = InferenceServiceStub(house.enter_context(grpc.insecure_channel(door.address)))
    answers = {}
    for file, each in prepared.items():
        request = InferRequest(pixels=each.pixels, preparation_hash=each.preparation_hash, model=each.model)
        judgement = stub.Infer(request, timeout=PATIENCE_S).judgement
        answers[file] = Said(Verdict.Name(judgement.verdict).removeprefix("VERDICT_"), judgement.score)
    return answers


def streamed(house: ExitStack, door: Door, prepared: Mapping[Path, PrepareResponse]) -> Answers:
    stub = InferenceServiceStub(house.enter_context(grpc.insecure_channel(door.address)))
    files = list(prepared)
    requests = (
        InferStreamRequest(pixels=each.pixels, preparation_hash=each.preparation_hash, model=each.model)
        for each in prepared.values()
    )
    answers = {}
    for answer in stub.InferStream(requests, timeout=10 * PATIENCE_S):
        assert answer.HasField("judgement"), answer.refusal
        judgement = answer.judgement
        answers[files[answer.position]] = Said(
            Verdict.Name(judgement.verdict).removeprefix("VERDICT_"), judgement.score
        )
    return answers


def by_the_standard(house: ExitStack, door: Door, model: str, prepared: Mapping[Path, PrepareResponse]) -> Answers:
    stub = GRPCInferenceServiceStub(house.enter_context(grpc.insecure_channel(door.address)))
    answers: dict[Path, Said] = {}
    files = list(prepared)
    for at in range(0, len(files), TOGETHER):
        together = files[at : at + TOGETHER]
        pixels = [prepared[file].pixels for file in together]
        request = ModelInferRequest(model_name=model)
        shape = [len(together), pixels[0].height, pixels[0].width, 3]
        request.inputs.add(name="images", datatype="UINT8", shape=shape)
        request.raw_input_contents.append(b"".join(each.data for each in pixels))
        request.parameters["preparation_hash"].string_param = prepared[together[0]].preparation_hash
        answer = stub.ModelInfer(request, timeout=PATIENCE_S)
        raw = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
        scores = np.frombuffer(raw["score"], "<f4").tolist()
        for file, word, score in zip(together, words(raw["verdict"]), scores, strict=True):
            answers[file] = Said(word, score)
    return answers


def words(raw: bytes) -> list[str]:
    """As the standard packs BYTES: a length of four bytes before each."""
    found = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        found.append(raw[4:end].decode())
        raw = raw[end:]
    return found


def on_the_bus(bus_url: str, prepared: Mapping[Path, PrepareResponse]) -> Answers:
    decided: Queue[Message] = Queue()
    files: dict[str, Path] = {}
    answers = {}
    with connect(bus_url) as bus:
        # News, and so bounded: we read while we send.
        news = bus.follow(topics.DECISIONS, decided.put, key=("line-1", "identity"))
        for file, each in prepared.items():
            frame = Frame(frame_id=str(uuid.uuid4()), line="line-1", station="identity", recipe=each.recipe)
            files[frame.frame_id] = file
            message = PreparedFrame(
                frame=frame,
                pixels=each.pixels,
                recipe=each.recipe,
                recipe_version=each.recipe_version,
                model=each.model,
                model_alias=each.model_alias,
                preparation_hash=each.preparation_hash,
            )
            bus.publish(topics.PREPARED, prepared_message(message, "test", Lane.LIVE))
        for _ in files:
            decision = Decision.FromString(decided.get(timeout=PATIENCE_S).body)
            word = Verdict.Name(decision.verdict).removeprefix("VERDICT_")
            answers[files[decision.frame_id]] = Said(word, decision.score)
        news.close()
    return answers


def inspected(client: Client, files: Sequence[Path]) -> Answers:
    with redirect_stdout(io.StringIO()) as printed:
        inspect_files(client, list(files), form=Form.JSON, timeout_s=PATIENCE_S)
    # Whatever is logged meanwhile is no result.
    rows = [json.loads(line) for line in printed.getvalue().splitlines() if line.startswith("{")]
    return {Path(row["file"]): Said(row["verdict"], row["score"]) for row in rows}
