"""Decisions: looked up, listed in pages, watched live; labels and the scores that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, TypedDict, Unpack

from inspectbus.api.v1 import results_pb2, results_pb2_grpc
from inspectbus_client.values import Label, Record, ScoresTable, Verdict, number, read, timestamp
from inspectbus_client.watch import Watch
from inspectbus_client.wire import Stream, Wire

CURSOR_KEY = "inspectbus-cursor"
"""Initial metadata of WatchDecisions: where the watch began."""


class DecisionFilter(TypedDict, total=False):
    """Which decisions are meant; what is left out does not filter."""

    line: str
    station: str
    run_id: str
    verdicts: Sequence[Verdict | str]
    part_id: str
    lot_id: str
    model_version: str
    since: datetime
    """Recorded at or after; aware."""
    until: datetime
    """Recorded before; aware."""


class Decisions:
    """The part of the client that reads the ledger."""

    _wire: Wire

    def decision(self, frame_id: str, *, timeout_s: float | None = None) -> Record:
        """Raises NotFound when no decision on the frame has been recorded."""
        request = results_pb2.GetDecisionRequest(frame_id=frame_id)
        answer = self._wire.ask("results", self._results.GetDecision, request, timeout_s=timeout_s, repeatable=True)
        return read(Record, answer.record)

    def decisions(
        self, *, page_size: int = 100, timeout_s: float | None = None, **filter: Unpack[DecisionFilter]
    ) -> Iterator[Record]:
        """In the order they were recorded. Pages are fetched as they are needed; the deadline is each page's."""
        request = results_pb2.ListDecisionsRequest(filter=_filter(filter), page_size=page_size)
        return self._pages(request, timeout_s)

    def _pages(self, request: results_pb2.ListDecisionsRequest, timeout_s: float | None) -> Iterator[Record]:
        while True:
            page = self._wire.ask("results", self._results.ListDecisions, request, timeout_s=timeout_s, repeatable=True)
            yield from (read(Record, record) for record in page.records)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch_decisions(
        self, *, after: int | None = None, patience_s: float = 60.0, **filter: Unpack[DecisionFilter]
    ) -> Watch[Record]:
        """Every decision recorded from now on, or after a cursor, until you leave. None is skipped.

        Leave it with `with` or `close()`. When the stream breaks it goes on after the last record it gave.
        """
        return _DecisionWatch(self._wire, self._results, _filter(filter), after, patience_s)

    def submit_labels(self, labels: Mapping[str, Label | str], *, by: str, timeout_s: float | None = None) -> int:
        """What parts really were, by frame id. Raises NotFound, and stores none, when a frame is unknown.

        Not tried again by itself: the newest label counts, and somebody may have corrected it between two tries.
        """
        request = results_pb2.SubmitLabelsRequest(by=by)
        for frame_id, label in labels.items():
            entry = request.labels.add(frame_id=frame_id)
            entry.label = number(entry, "label", label)  # type: ignore[assignment] # enums are ints on the wire
        answer = self._wire.ask("results", self._results.SubmitLabels, request, timeout_s=timeout_s)
        return answer.accepted

    def scores(self, *, by: str = "", timeout_s: float | None = None, **filter: Unpack[DecisionFilter]) -> ScoresTable:
        """Precision, recall, F1 and the plant's risks over every decided frame whose truth is known.

        `by` is "line", "station" or "model-version" for a row each; empty: the overall row only.
        """
        request = results_pb2.GetScoresRequest(filter=_filter(filter))
        if by:
            request.group_by = number(request, "group_by", by)  # type: ignore[assignment] # as above
        answer = self._wire.ask("results", self._results.GetScores, request, timeout_s=timeout_s, repeatable=True)
        return read(ScoresTable, answer)

    @cached_property
    def _results(self) -> results_pb2_grpc.ResultsServiceStub:
        return results_pb2_grpc.ResultsServiceStub(self._wire.channel("results"))


class _DecisionWatch(Watch[Record]):
    def __init__(
        self,
        wire: Wire,
        stub: results_pb2_grpc.ResultsServiceStub,
        filter: results_pb2.DecisionFilter,
        after: int | None,
        patience_s: float,
    ) -> None:
        self._stub = stub
        self._filter = filter
        self._cursor = after
        super().__init__(wire, "results", patience_s)

    def _open(self, timeout_s: float) -> Stream[Any]:
        request = results_pb2.WatchDecisionsRequest(filter=self._filter, after=self._cursor)
        return self._stub.WatchDecisions(request, timeout=timeout_s)

    def _take(self, answer: results_pb2.WatchDecisionsResponse) -> Record | None:
        if self._cursor is not None and answer.record.cursor <= self._cursor:
            return None
        self._cursor = answer.record.cursor
        return read(Record, answer.record)

    def _broken(self, call: Stream[Any]) -> None:
        if self._cursor is None:
            # Nothing came yet. "From now on" asked again would skip what was recorded in between.
            began = dict(call.initial_metadata() or ()).get(CURSOR_KEY)
            self._cursor = int(began) if began is not None else None


def _filter(words: DecisionFilter) -> results_pb2.DecisionFilter:
    message = results_pb2.DecisionFilter(
        line=words.get("line", ""),
        station=words.get("station", ""),
        run_id=words.get("run_id", ""),
        part_id=words.get("part_id", ""),
        lot_id=words.get("lot_id", ""),
        model_version=words.get("model_version", ""),
    )
    for verdict in words.get("verdicts", ()):
        message.verdicts.append(number(message, "verdicts", verdict))  # type: ignore[arg-type] # as above
    if "since" in words:
        message.since.CopyFrom(timestamp(words["since"], "since"))
    if "until" in words:
        message.until.CopyFrom(timestamp(words["until"], "until"))
    return message
