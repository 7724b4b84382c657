"""A score meets a threshold."""

from __future__ import annotations

import math

from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_QUALIFIED, Verdict
from inspectbus.errors import Internal


def verdict_of(score: float, threshold: float) -> Verdict.ValueType:
    """DEFECTIVE at or above the threshold. Raises Internal for what is no score: every comparison with NaN is false,
    and so a broken network would call each part good.
    """
    if math.isnan(score) or not 0 <= score <= 1:
        raise Internal(f"the network gave {score}, which is no score between 0 and 1")
    return VERDICT_DEFECTIVE if score >= threshold else VERDICT_QUALIFIED
