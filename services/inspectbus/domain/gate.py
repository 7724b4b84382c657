"""A gate: what a verdict means for the part, and which outcomes came without one."""

from __future__ import annotations

from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_HOLD, VERDICT_QUALIFIED, Verdict
from inspectbus.api.v1.gate_pb2 import (
    GATE_ACTION_DIVERT,
    GATE_ACTION_PASS,
    GATE_ACTION_REJECT,
    GATE_REASON_DECISION,
    GateAction,
    GateOutcome,
)

_ACTIONS: dict[Verdict.ValueType, GateAction.ValueType] = {
    VERDICT_QUALIFIED: GATE_ACTION_PASS,
    VERDICT_DEFECTIVE: GATE_ACTION_REJECT,
    VERDICT_HOLD: GATE_ACTION_DIVERT,
}


def action_for(verdict: Verdict.ValueType) -> GateAction.ValueType:
    """What is done with a part of this verdict. Whatever is no verdict is diverted: never a silent OK."""
    return _ACTIONS.get(verdict, GATE_ACTION_DIVERT)


def is_late(outcome: GateOutcome) -> bool:
    """True when the station acted without a decision."""
    return outcome.reason != GATE_REASON_DECISION
