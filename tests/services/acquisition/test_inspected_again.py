"""An image that is sent once more, because its first answer got lost: the answer is the record's, whoever made it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from queue import Queue

import grpc
import pytest
from prometheus_client import CollectorRegistry

from inspectbus.acquisition.inspections import Inspections
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1.acquisition_pb2 import InspectRequest, InspectStreamRequest, Shot
from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_QUALIFIED, Decision
from inspectbus.bus import Message
from tests.doubles.small_line import DEFECT, SmallLine
from tests.services.acquisition.conftest import OpenAcquisition

PATIENCE_S = 15.0


def sent() -> Future[None]:
    """As a bus that has confirmed the frame."""
    confirmed: Future[None] = Future()
    confirmed.set_result(None)
    return confirmed


def news(decision: Decision) -> Message:
    return Message(decision.SerializeToString(), ("line-1", "top", "verdict"), source="test")


@pytest.fixture
def inspections(line: SmallLine) -> Iterator[Inspections]:
    settings = AcquisitionSettings(results_address=line.address)
    with Inspections(settings, AcquisitionMetrics(CollectorRegistry())) as inspections:
        yield inspections


def test_what_is_recorded_already_is_answered_and_not_sent_on(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address)
    shot = Shot(image=b"picture", frame_id=str(uuid.uuid4()))
    first = stub.Inspect(InspectRequest(shot=shot), timeout=PATIENCE_S).decision

    again = Shot(image=b"a " + DEFECT, frame_id=shot.frame_id, sent_before=True)
    second = stub.Inspect(InspectRequest(shot=again), timeout=PATIENCE_S).decision

    assert second == first
    assert len(line.frames) == 1


def test_what_is_not_recorded_is_sent_on(acquisition: OpenAcquisition, line: SmallLine) -> None:
    stub = acquisition(results_address=line.address)
    shot = Shot(image=b"picture", frame_id=str(uuid.uuid4()), sent_before=True)

    decision = stub.Inspect(InspectRequest(shot=shot), timeout=PATIENCE_S).decision

    assert line.ledger == {shot.frame_id: decision}


def test_the_news_of_one_try_is_no_answer_while_another_may_be_recorded(
    inspections: Inspections, line: SmallLine
) -> None:
    frame_id = str(uuid.uuid4())
    ours = Decision(frame_id=frame_id, verdict=VERDICT_QUALIFIED, station="inspect-b")
    recorded = Decision(frame_id=frame_id, verdict=VERDICT_DEFECTIVE, station="inspect-a")
    inspection = inspections.begin(frame_id, sent, PATIENCE_S, own_id=True, sent_before=True)

    inspections.hear(news(ours))
    with pytest.raises(TimeoutError):
        inspection.result(timeout=0.3)
    line.ledger[frame_id] = recorded

    assert inspection.result(timeout=PATIENCE_S) == recorded


def test_whoever_joins_with_a_second_try_has_both_answered_by_the_record(
    inspections: Inspections, line: SmallLine
) -> None:
    frame_id = str(uuid.uuid4())
    recorded = Decision(frame_id=frame_id, verdict=VERDICT_DEFECTIVE)
    first = inspections.begin(frame_id, sent, PATIENCE_S, own_id=True)
    second = inspections.begin(frame_id, sent, PATIENCE_S, own_id=True, sent_before=True)

    inspections.hear(news(Decision(frame_id=frame_id, verdict=VERDICT_QUALIFIED)))
    line.ledger[frame_id] = recorded

    assert [each.result(timeout=PATIENCE_S) for each in (first, second)] == [recorded] * 2


def test_a_ledger_that_is_away_keeps_no_second_try_from_being_sent() -> None:
    published = threading.Event()

    def publish() -> Future[None]:
        published.set()
        return sent()

    settings = AcquisitionSettings(results_address="127.0.0.1:1")
    with Inspections(settings, AcquisitionMetrics(CollectorRegistry())) as inspections:
        inspection = inspections.begin(str(uuid.uuid4()), publish, PATIENCE_S, own_id=True, sent_before=True)

        assert published.is_set()
        assert not inspection.done()


def test_the_replica_of_the_ledger_that_is_there_is_asked(line: SmallLine) -> None:
    frame_id = str(uuid.uuid4())
    line.ledger[frame_id] = Decision(frame_id=frame_id, verdict=VERDICT_DEFECTIVE)
    settings = AcquisitionSettings(results_address=f"ipv4:127.0.0.1:1,{line.address}")

    with Inspections(settings, AcquisitionMetrics(CollectorRegistry())) as inspections:
        inspection = inspections.begin(frame_id, sent, PATIENCE_S, own_id=True, sent_before=True)

        assert inspection.result(timeout=0) == line.ledger[frame_id]


def test_a_service_that_stops_leaves_a_stream_s_undecided_images_to_be_sent_again(
    acquisition: OpenAcquisition, line: SmallLine, house: ExitStack
) -> None:
    stub = acquisition(results_address=line.address, drain_s=1.0)
    line.hold()
    requests: Queue[InspectStreamRequest | None] = Queue()
    answers = stub.InspectStream(iter(requests.get, None), timeout=PATIENCE_S)
    for _ in range(3):
        requests.put(InspectStreamRequest(shot=Shot(image=b"picture")))
    requests.put(None)
    line.wait_for_frames(3)

    house.close()

    with pytest.raises(grpc.RpcError) as ended:
        next(answers)
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "send again" in str(ended.value.details())
