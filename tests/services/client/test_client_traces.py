"""A program that takes traces finds its calls to InspectBus in them; one that does not pays nothing."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from inspectbus.api.v1 import results_pb2, results_pb2_grpc
from inspectbus.errors import NotFound
from inspectbus.runtime.rpc_server import Door, rpc_server
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.trace_provider import provider_for
from inspectbus_client import Client
from tests.doubles.taken_spans import TakenSpans, spans_taken

NAME = "inspectbus.api.v1.ResultsService"


class Ledger(results_pb2_grpc.ResultsServiceServicer):
    """Empty."""

    def GetScores(
        self, request: results_pb2.GetScoresRequest, context: grpc.ServicerContext
    ) -> results_pb2.GetScoresResponse:
        return results_pb2.GetScoresResponse()

    def GetDecision(
        self, request: results_pb2.GetDecisionRequest, context: grpc.ServicerContext
    ) -> results_pb2.GetDecisionResponse:
        raise NotFound(f"no decision is recorded for frame {request.frame_id}", field="frame_id")


@pytest.fixture
def taken() -> Iterator[TakenSpans]:
    with spans_taken() as taken:
        yield taken


@pytest.fixture
def door(taken: TakenSpans) -> Iterator[Door]:
    def add(server: grpc.Server) -> None:
        results_pb2_grpc.add_ResultsServiceServicer_to_server(Ledger(), server)  # type: ignore[abstract]

    with rpc_server("results", ServiceSettings(drain_s=1), CollectorRegistry(), {NAME: add}) as door:
        yield door


def test_a_call_is_found_in_the_trace_of_the_program_that_made_it(
    taken: TakenSpans, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = provider_for("sorter", {})
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: program)
    with Client(results=door.address) as client:
        with program.get_tracer("sorter").start_as_current_span("sort") as sorting:
            client.scores()
            with pytest.raises(NotFound, match="no decision is recorded"):
                client.decision("4711aaaa-bbbb-5ccc-8ddd-eeeeeeeeeeee")
        calls = taken.wait_for(lambda spans: len(spans) == 2)
    ours = sorting.get_span_context()
    assert [call.parent and (call.parent.trace_id, call.parent.span_id) for call in calls] == [
        (ours.trace_id, ours.span_id)
    ] * 2
    codes = [call.attributes and call.attributes["rpc.grpc.status_code"] for call in calls]
    assert codes == [grpc.StatusCode.OK.value[0], grpc.StatusCode.NOT_FOUND.value[0]]


def test_without_traces_a_call_begins_its_own(taken: TakenSpans, door: Door) -> None:
    with Client(results=door.address) as client:
        client.scores()
        (call,) = taken.wait_for(lambda spans: len(spans) == 1)
    assert call.parent is None
