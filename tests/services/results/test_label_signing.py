"""Who signs a label: its sender, or the person that a trusted sender names; never somebody who knows nothing of it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from inspectbus.api.v1 import frame_pb2, results_pb2
from inspectbus.results.ledger import Labelled
from inspectbus.results.metrics import LedgerMetrics
from inspectbus.results.rpc import ResultsRpc
from inspectbus.runtime.identity import ANONYMOUS, LOCAL_ADMIN, Identity, caller
from inspectbus.runtime.roles import Role

FRAME = "01234567-89ab-4def-8123-456789abcdef"
REVIEWER = Identity("dashboard", Role.REVIEWER)


class Signatures:
    """In the ledger's place."""

    def __init__(self) -> None:
        self.by: list[str] = []

    def label(self, given: object, by: str) -> list[Labelled]:
        self.by.append(by)
        return []


@pytest.mark.parametrize(
    ("sender", "named", "signed"),
    [
        (REVIEWER, "", "dashboard"),
        (REVIEWER, "dashboard", "dashboard"),
        (REVIEWER, "anna", "anna by dashboard"),
        (Identity("chief", Role.ADMIN), "anna", "anna"),
        (LOCAL_ADMIN, "anna", "anna"),
        (ANONYMOUS, "anna", "anna"),
    ],
)
def test_a_label_is_signed(sender: Identity, named: str, signed: str) -> None:
    ledger = Signatures()
    label = results_pb2.FrameLabel(frame_id=FRAME, label=frame_pb2.LABEL_GOOD)
    token = caller.set(sender)
    try:
        rpc: Any = ResultsRpc(cast(Any, ledger), cast(Any, None), cast(Any, None), LedgerMetrics(CollectorRegistry()))
        rpc.SubmitLabels(results_pb2.SubmitLabelsRequest(labels=[label], by=named), None)
    finally:
        caller.reset(token)
    assert ledger.by == [signed]
