"""A score meets its thresholds: the recipe's where it has any, else the model version's."""

from __future__ import annotations

import math

from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_HOLD, VERDICT_QUALIFIED, Verdict
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.domain.model_version import ModelCard
from inspectbus.domain.thresholds import Thresholds
from inspectbus.errors import BadField, Internal


def thresholds_for(prepared: PreparedFrame, card: ModelCard) -> Thresholds:
    """Those that judge this frame. The recipe's come as a pair: its threshold alone leaves no band.

    Raises BadField naming the override at fault.
    """
    if not prepared.HasField("threshold_override"):
        if prepared.HasField("qualified_below_override"):
            raise BadField(
                "qualified_below_override stands alone; it needs threshold_override, the other end of the band",
                field="qualified_below_override",
            )
        return card.thresholds
    upper = prepared.threshold_override
    lower = prepared.qualified_below_override if prepared.HasField("qualified_below_override") else upper
    try:
        return Thresholds(lower, upper)
    except BadField as error:
        # Without a band the one score stands for both.
        lone = not prepared.HasField("qualified_below_override") or error.field == "defective_from"
        field = "threshold_override" if lone else "qualified_below_override"
        raise BadField(f"{field}: {error.message}", field=field) from None


def verdict_of(score: float, thresholds: Thresholds) -> Verdict.ValueType:
    """QUALIFIED, DEFECTIVE, or between the two HOLD. Raises Internal for what is no score: every comparison with NaN is
    false, and so a broken network would call each part good.
    """
    if math.isnan(score) or not 0 <= score <= 1:
        raise Internal(f"the network gave {score}, which is no score between 0 and 1")
    if score >= thresholds.defective_from:
        return VERDICT_DEFECTIVE
    return VERDICT_QUALIFIED if score < thresholds.qualified_below else VERDICT_HOLD
