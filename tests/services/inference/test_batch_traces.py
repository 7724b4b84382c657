"""A pass of the engine is one span that links each of its frames; a log line on one image names its frame."""

from __future__ import annotations

import uuid
from pathlib import Path
from queue import Queue

from structlog.testing import capture_logs

from inspectbus import spans
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus import Lane, topics
from inspectbus.bus.messages import prepared_message
from tests.doubles.inference_service import PATIENCE_S, TouchyEngine
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.taken_spans import spans_taken
from tests.doubles.tiny_model import BRIGHT, DARK
from tests.services.inference.conftest import Open


def ids(*frames: PreparedFrame) -> set[int]:
    return {uuid.UUID(frame.frame.frame_id).int for frame in frames}


def test_a_batch_links_the_step_of_each_of_its_frames(start: Open, version: Path, touchy: Queue[TouchyEngine]) -> None:
    with spans_taken() as taken:
        line = start(model_dir=version, max_batch_size=2)
        line.wait_ready()
        engine = touchy.get(timeout=PATIENCE_S)
        while engine.entered.acquire(blocking=False):
            pass
        # given an engine that computes a first frame, while two others come
        engine.gate.clear()
        frames = [prepared_frame(DARK) for _ in range(3)]
        messages = [prepared_message(frame, "test", Lane.LIVE) for frame in frames]
        published = [line.bus.publish(topics.PREPARED, messages[0])]
        assert engine.entered.acquire(timeout=PATIENCE_S)
        published += [line.bus.publish(topics.PREPARED, message) for message in messages[1:]]
        assert line.waits(2)
        # when it goes on
        engine.gate.set()
        for future in published:
            future.result(PATIENCE_S)
        found = taken.all()

    # then each pass links the judge step of what was in it, and of nobody else
    judged = {span.context.span_id: span.context.trace_id for span in found if span.name == "judge" and span.context}
    passes = [{judged[link.context.span_id] for link in span.links} for span in found if span.name == "infer"]
    assert passes[-2:] == [ids(frames[0]), ids(*frames[1:])]
    assert [span.attributes for span in found if span.name == "infer"][-1] == {"inspectbus.images": 2}


def test_an_image_that_the_engine_fails_on_is_named_by_its_frame(
    start: Open, version: Path, touchy: Queue[TouchyEngine]
) -> None:
    line = start(model_dir=version)
    line.wait_ready()
    touchy.get(timeout=PATIENCE_S).poison = {BRIGHT}
    frame = prepared_frame(BRIGHT)
    with capture_logs([spans.on_log_line]) as told:
        line.bus.publish(topics.PREPARED, prepared_message(frame, "test", Lane.LIVE)).result(PATIENCE_S)

    failed = [row for row in told if row["event"] == "the engine failed on an image"]
    assert failed
    for row in failed:
        assert row["frame_id"] == frame.frame.frame_id
        assert row["trace_id"] == uuid.UUID(frame.frame.frame_id).hex
        assert (row["line"], row["station"]) == (frame.frame.line, frame.frame.station)
