"""How a model's shadow compares with what was decided: by station, and frame by frame where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from typing import TypedDict, Unpack

from inspectbus.api.v1 import results_pb2, results_pb2_grpc
from inspectbus_client.values import Agreement, Disagreement, read, timestamp
from inspectbus_client.wire import Wire


class AgreementFilter(TypedDict, total=False):
    """Which frames are meant; what is left out does not filter."""

    model_version: str
    """That decided."""
    shadow_version: str
    line: str
    station: str
    since: datetime
    """The shadow recorded at or after; aware."""
    until: datetime
    """Recorded before; aware."""


class Agreements:
    """The part of the client that asks what shadows said."""

    _wire: Wire

    def agreement(
        self, model: str, *, timeout_s: float | None = None, **filter: Unpack[AgreementFilter]
    ) -> list[Agreement]:
        """By line, station and pair of versions, over the frames that both judged."""
        answer = self._ask(_request(model, 1, filter), timeout_s)
        return [read(Agreement, row) for row in answer.rows]

    def disagreements(
        self, model: str, *, page_size: int = 100, timeout_s: float | None = None, **filter: Unpack[AgreementFilter]
    ) -> Iterator[Disagreement]:
        """Frames on which the verdicts differ, in the order in which the shadows were recorded. Pages are fetched as
        they are needed; the deadline is each page's."""
        request = _request(model, page_size, filter)
        while True:
            page = self._ask(request, timeout_s)
            yield from (read(Disagreement, each) for each in page.disagreements)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _ask(
        self, request: results_pb2.GetAgreementRequest, timeout_s: float | None
    ) -> results_pb2.GetAgreementResponse:
        method = self._agreements.GetAgreement
        return self._wire.ask("results", method, request, timeout_s=timeout_s, repeatable=True)

    @cached_property
    def _agreements(self) -> results_pb2_grpc.ResultsServiceStub:
        return results_pb2_grpc.ResultsServiceStub(self._wire.channel("results"))


def _request(model: str, page_size: int, words: AgreementFilter) -> results_pb2.GetAgreementRequest:
    request = results_pb2.GetAgreementRequest(
        model=model,
        model_version=words.get("model_version", ""),
        shadow_version=words.get("shadow_version", ""),
        line=words.get("line", ""),
        station=words.get("station", ""),
        page_size=page_size,
    )
    if "since" in words:
        request.since.CopyFrom(timestamp(words["since"], "since"))
    if "until" in words:
        request.until.CopyFrom(timestamp(words["until"], "until"))
    return request
