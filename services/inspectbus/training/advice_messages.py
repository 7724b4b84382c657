"""AdviseThreshold's answer, from what a version said of its validation part."""

from __future__ import annotations

from inspectbus.api.v1.model_pb2 import (
    AdviseThresholdRequest,
    AdviseThresholdResponse,
    BoundedShare,
    ThresholdAdvice,
)
from inspectbus.training.advice import Advice, Share, advise, trade_off
from inspectbus.training.registry import RegisteredModel
from inspectbus.training.validation import Validation


def advised(found: RegisteredModel, validation: Validation, request: AdviseThresholdRequest) -> AdviseThresholdResponse:
    """Raises BadField and NotPossibleNow as `advise` does."""
    labels, scores, held_limit = validation.labels, validation.scores, request.held_limit
    return AdviseThresholdResponse(
        name=found.name,
        version=found.version,
        advice=_advice(advise(labels, scores, request.escape_ppm, held_limit)),
        curve=[_advice(each) for each in trade_off(labels, scores, held_limit)],
        good=int((labels == 0).sum()),
        defective=int((labels == 1).sum()),
    )


def _advice(advice: Advice) -> ThresholdAdvice:
    return ThresholdAdvice(
        qualified_below=advice.thresholds.qualified_below,
        threshold=advice.thresholds.defective_from,
        escape=_share(advice.escape),
        overkill=_share(advice.overkill),
        held=_share(advice.held),
        held_defective=advice.held_defective,
    )


def _share(share: Share) -> BoundedShare:
    return BoundedShare(seen=share.seen, at_most=share.at_most)
