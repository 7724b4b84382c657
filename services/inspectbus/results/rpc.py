"""The gRPC door: ResultsService."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
from sqlalchemy import ColumnElement

from inspectbus.api.v1 import results_pb2, results_pb2_grpc
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.domain.frame import checked_frame_id
from inspectbus.domain.scores import Confusion
from inspectbus.errors import BadField
from inspectbus.results import selection
from inspectbus.results.agreement import agreement
from inspectbus.results.ledger import REPLAY, Ledger
from inspectbus.results.metrics import LedgerMetrics
from inspectbus.results.shadows import ShadowBook
from inspectbus.results.tables import decisions
from inspectbus.results.watch import Watch
from inspectbus.runtime.identity import caller
from inspectbus.runtime.roles import Role

MAX_LABELS = 1000
"""Per call: as many as a page of decisions has."""

_GROUPS: dict[int, tuple[ColumnElement[str], ...]] = {
    results_pb2.SCORES_GROUP_UNSPECIFIED: (),
    results_pb2.SCORES_GROUP_LINE: (decisions.c.line,),
    results_pb2.SCORES_GROUP_STATION: (decisions.c.line, decisions.c.station),
    results_pb2.SCORES_GROUP_MODEL_VERSION: (decisions.c.model, decisions.c.model_version),
}
NO_GROUP = "none"
"""Group of the decisions that no model made. No other group is spelt so: a version has a slash."""


class ResultsRpc(results_pb2_grpc.ResultsServiceServicer):
    """Validates, asks the ledger, answers."""

    def __init__(self, ledger: Ledger, shadows: ShadowBook, watch: Watch, metrics: LedgerMetrics) -> None:
        self._ledger = ledger
        self._shadows = shadows
        self._metrics = metrics
        self._watch = watch

    def GetDecision(
        self, request: results_pb2.GetDecisionRequest, context: grpc.ServicerContext
    ) -> results_pb2.GetDecisionResponse:
        return results_pb2.GetDecisionResponse(record=self._ledger.get(checked_frame_id(request.frame_id)))

    def ListDecisions(
        self, request: results_pb2.ListDecisionsRequest, context: grpc.ServicerContext
    ) -> results_pb2.ListDecisionsResponse:
        size = selection.page_size(request)
        where = selection.conditions(request.filter)
        # One more than asked for tells whether there is a next page.
        records = self._ledger.page(where, selection.after(request), size + 1)
        answer = results_pb2.ListDecisionsResponse(records=records[:size])
        if len(records) > size:
            answer.next_page_token = selection.page_token(records[size - 1].cursor, request.filter)
        return answer

    def WatchDecisions(
        self, request: results_pb2.WatchDecisionsRequest, context: grpc.ServicerContext
    ) -> Iterator[results_pb2.WatchDecisionsResponse]:
        where = selection.conditions(request.filter)
        after = request.after if request.HasField("after") else None
        if after is not None and after < 0:
            raise BadField(f"after is a cursor, 0 or above, not {after}", field="after")
        # False when the call has ended already; `is_active` then says so before the first wait.
        context.add_callback(self._watch.wake)

        def begins_after(cursor: int) -> None:
            context.send_initial_metadata((("inspectbus-cursor", str(cursor)),))

        for record in self._watch.records(
            where, after, begins_after=begins_after, wanted=context.is_active, hang_up=context.cancel
        ):
            yield results_pb2.WatchDecisionsResponse(record=record)

    def SubmitLabels(
        self, request: results_pb2.SubmitLabelsRequest, context: grpc.ServicerContext
    ) -> results_pb2.SubmitLabelsResponse:
        given = _checked_labels(request.labels)
        by = selection.checked_text(request.by, "by") or caller.get().name
        if by == REPLAY:
            raise BadField(f"{REPLAY!r} marks labels that came with a replayed data set; name yourself", field="by")
        sender = caller.get()
        if sender.role not in (None, Role.ADMIN) and by != sender.name:
            # A program may label for its people and say who; that it was this program stands beside it.
            by = f"{by} by {sender.name}"
        self._metrics.labelled(self._ledger.label(given, by))
        return results_pb2.SubmitLabelsResponse(accepted=len(given))

    def GetScores(
        self, request: results_pb2.GetScoresRequest, context: grpc.ServicerContext
    ) -> results_pb2.GetScoresResponse:
        if request.group_by not in _GROUPS:
            raise BadField(f"{request.group_by} is no group of scores", field="group_by")
        tallies = self._ledger.scores(selection.conditions(request.filter), _GROUPS[request.group_by])
        overall = results_pb2.ScoresRow(
            scores=_scores(sum((tally.confusion for tally in tallies), Confusion())),
            decisions=sum(tally.decisions for tally in tallies),
            held=sum(tally.held for tally in tallies),
        )
        rows = [
            results_pb2.ScoresRow(
                group="/".join(filter(None, tally.group)) or NO_GROUP,
                scores=_scores(tally.confusion),
                decisions=tally.decisions,
                held=tally.held,
            )
            for tally in tallies
            if tally.group
        ]
        return results_pb2.GetScoresResponse(overall=overall, rows=rows)

    def GetAgreement(
        self, request: results_pb2.GetAgreementRequest, context: grpc.ServicerContext
    ) -> results_pb2.GetAgreementResponse:
        return agreement(self._shadows, request)


def _checked_labels(labels: Sequence[results_pb2.FrameLabel]) -> list[tuple[str, Label.ValueType]]:
    if not 1 <= len(labels) <= MAX_LABELS:
        raise BadField(f"a call takes 1 to {MAX_LABELS} labels, not {len(labels)}", field="labels")
    given: dict[str, Label.ValueType] = {}
    for i, item in enumerate(labels):
        frame_id = checked_frame_id(item.frame_id, f"labels[{i}].frame_id")
        if frame_id in given:
            raise BadField(f"frame {frame_id} is labelled twice in one call", field=f"labels[{i}].frame_id")
        if item.label not in (Label.LABEL_GOOD, Label.LABEL_DEFECTIVE):
            raise BadField(f"a part is GOOD or DEFECTIVE, and {item.label} is neither", field=f"labels[{i}].label")
        given[frame_id] = item.label
    return list(given.items())


def _scores(confusion: Confusion) -> results_pb2.Scores:
    return results_pb2.Scores(
        confusion=results_pb2.Confusion(
            true_positives=confusion.true_positives,
            false_positives=confusion.false_positives,
            true_negatives=confusion.true_negatives,
            false_negatives=confusion.false_negatives,
            held_defective=confusion.held_defective,
            held_good=confusion.held_good,
        ),
        precision=confusion.precision,
        recall=confusion.recall,
        f1=confusion.f1,
        accuracy=confusion.accuracy,
        escape=confusion.escape,
        overkill=confusion.overkill,
    )
