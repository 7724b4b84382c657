"""A part's trace: one id from capture to gate outcome, on each form of the bus and between processes."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from inspectbus.api.v1.acquisition_pb2 import InspectRequest, Shot
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.api.v1.preprocessing_pb2 import PutRecipeRequest
from inspectbus.api.v1.preprocessing_pb2_grpc import PreprocessingServiceStub
from inspectbus.line import open_line
from inspectbus.stores.models import read_card
from inspectbus_client import Shot as Picture
from tests.doubles.line_processes import LINE, LineProcesses
from tests.doubles.marked_parts import Fault, fails_preprocessing, name, picture
from tests.doubles.model_owner import model_owner
from tests.doubles.rabbitmq import Broker
from tests.doubles.records import await_records
from tests.doubles.taken_spans import collector, spans_taken
from tests.doubles.tiny_model import BRIGHT, DARK, flat_image, tiny_version

PATIENCE_S = 60.0
STEPS = {"part", "publish", "prepare", "judge", "record", "record outcome", "gate"}
CALL = "inspectbus.api.v1.AcquisitionService/Inspect"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A trace of the caller's own; the example of the W3C recommendation."""


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def bus_url(request: pytest.FixtureRequest) -> str:
    if request.param == "embedded":
        return f"embedded://traces-{uuid.uuid4()}"
    url: str = request.getfixturevalue("rabbitmq_vhost").url
    return url


def test_a_part_has_one_trace_from_capture_to_gate_outcome_and_a_batch_links_its_frames(
    bus_url: str, tmp_path: Path
) -> None:
    folder = tiny_version(tmp_path / "versions")
    images = [cv2.imencode(".png", flat_image(level))[1].tobytes() for level in (DARK, BRIGHT)]
    ids = [str(uuid.uuid4()) for _ in images]
    with model_owner() as (owner, models_address), spans_taken() as taken:
        owner.cards["tiny", "production"] = read_card(folder)
        # A batch begins when both are there, if they come together.
        inference = {"model": "tiny", "model_dir": folder, "threads": 1, "max_batch_size": 2, "max_batch_wait_s": 1}
        services = ("results", "inference", "preprocessing", "acquisition")
        forced = {"bus_url": bus_url, "state_dir": tmp_path, "models_address": models_address, "port": 0}
        with open_line(services, {"inference": inference}, metrics_port=0, **forced) as doors:
            with grpc.insecure_channel(doors["preprocessing"].address) as channel:
                recipe = (
                    "name: default\nmodel: tiny\n"
                    "quality: {min_sharpness: null, min_brightness: null, max_brightness: null, max_glare: null}\n"
                )
                PreprocessingServiceStub(channel).PutRecipe(PutRecipeRequest(yaml=recipe), timeout=PATIENCE_S)
            with grpc.insecure_channel(doors["acquisition"].address) as channel:
                inspector = AcquisitionServiceStub(channel)
                calls = [
                    inspector.Inspect.future(
                        InspectRequest(shot=Shot(image=image, frame_id=frame_id)),
                        timeout=PATIENCE_S,
                        metadata=(("traceparent", CALLER),),
                    )
                    for frame_id, image in zip(ids, images, strict=True)
                ]
                for call in calls:
                    call.result()
            taken.wait_for(lambda spans: all(set(steps_of(spans, frame_id)) >= STEPS for frame_id in ids))

    everything = taken.all()
    for frame_id in ids:
        steps = steps_of(everything, frame_id)
        assert set(steps) == STEPS
        part = steps["part"]
        assert part.parent is None
        assert context(part).span_id == uuid.UUID(frame_id).int & (2**64 - 1)
        assert {named.parent.span_id for step, named in steps.items() if step != "part" and named.parent} == {
            context(part).span_id
        }
        assert all(span.attributes and span.attributes["inspectbus.frame_id"] == frame_id for span in steps.values())
        assert all(span.end_time is not None for span in steps.values())
    batches = [span for span in everything if span.name == "infer"]
    judged = [context(steps_of(everything, frame_id)["judge"]) for frame_id in ids]
    linked = [link.context for batch in batches for link in batch.links]
    assert sorted(each.span_id for each in linked) == sorted(each.span_id for each in judged)
    assert {each.trace_id for each in linked} == {uuid.UUID(frame_id).int for frame_id in ids}
    assert not {context(batch).trace_id for batch in batches} & {each.trace_id for each in linked}
    inspected = [span for span in everything if span.name == CALL]
    assert [f"{context(span).trace_id:032x}" for span in inspected] == [CALLER.split("-")[1]] * 2
    by_parts = [link.context.span_id for frame_id in ids for link in steps_of(everything, frame_id)["part"].links]
    assert sorted(by_parts) == sorted(context(span).span_id for span in inspected)


def steps_of(spans: Sequence[ReadableSpan], frame_id: str) -> dict[str, ReadableSpan]:
    """The spans of the frame's trace by name, of which there is one each."""
    mine = [span for span in spans if context(span).trace_id == uuid.UUID(frame_id).int]
    assert max(Counter(span.name for span in mine).values(), default=0) <= 1, [span.name for span in mine]
    return {span.name: span for span in mine}


def context(span: ReadableSpan) -> SpanContext:
    found: SpanContext | None = span.context
    assert found is not None
    return found


@pytest.mark.rabbitmq
@pytest.mark.slow
def test_processes_export_one_trace_a_part_and_their_log_lines_name_it(
    rabbitmq: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database_url = f"sqlite:///{tmp_path / 'ledger.db'}"
    station = {"name": "side", "source": {"kind": "push"}, "gate": {"outputs": [{"kind": "log"}]}}
    parts = [(name(number, number % 2 == 1), picture(number, number % 2 == 1)) for number in range(3)]
    parts.append(("poison", fails_preprocessing(Fault.RAISE)))
    with collector() as taking:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{taking.address}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        bus_url = f"{rabbitmq.url(rabbitmq.new_vhost())}?retry_delay_s=0.1"
        with LineProcesses(tmp_path / "line", bus_url, database_url, [station]) as line, line.client() as client:
            shots = [Picture(image, part_id=item) for item, image in parts]
            frames = [each.shot.frame_id for each in client.publish_frames(shots, line=LINE, station="side")]
            await_records(database_url, lambda records: not records.lost(frames), PATIENCE_S)
            *good, poison = frames
            wanted = {(uuid.UUID(frame_id).bytes, step) for frame_id in good for step in STEPS}
            spans = taking.wait_for(lambda spans: wanted <= {(span.trace_id, span.name) for _, span in spans})
            line["acquisition-0"].await_event("gate")
            logs = {process.name: lines_of(process.log) for process in line.of("acquisition", "preprocessing")}

    told = {(service, span.name) for service, span in spans if span.trace_id == uuid.UUID(good[0]).bytes}
    assert told == {
        *(("inspectbus-acquisition", step) for step in ("part", "publish", "gate")),
        ("inspectbus-preprocessing", "prepare"),
        ("inspectbus-inference", "judge"),
        *(("inspectbus-results", step) for step in ("record", "record outcome")),
    }
    named = {"line": LINE, "station": "side"}
    acted = {row["frame_id"]: row for row in logs["acquisition-0"] if row["event"] == "gate"}
    for frame_id in good:
        assert acted[frame_id].items() >= {**named, "trace_id": uuid.UUID(frame_id).hex}.items()
    parked = [row for row in logs["preprocessing-0"] if row["event"] in ("retrying", "parked")]
    assert {row["event"] for row in parked} == {"retrying", "parked"}
    for told_of in parked:
        assert told_of.items() >= {**named, "frame_id": poison, "trace_id": uuid.UUID(poison).hex}.items()


def lines_of(log: Path) -> list[dict[str, Any]]:
    rows = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(row) for row in rows if row.startswith("{")]
