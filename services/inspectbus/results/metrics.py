"""The ledger's operational numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inspectbus.api.v1.decision_pb2 import Decision, HoldReason, Verdict
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.api.v1.gate_pb2 import GateAction, GateOutcome
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.domain.gate import is_late
from inspectbus.results.first_wins import Fate
from inspectbus.results.ledger import Entry, Labelled

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
_RECORD_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15)
# From a fast line's budget to a spool that was replayed the next morning.
_CAPTURE_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 600, 3600, 86400)


class LedgerMetrics:
    """What the recorder counts. A frame counts once, when its first decision was committed; its gate outcome
    and its revisions have counters of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        place = ["line", "station"]
        self._decisions = Counter(
            "inspectbus_decisions", "Frames recorded, by verdict.", [*place, "verdict"], registry=registry
        )
        self._holds = Counter(
            "inspectbus_holds", "Frames recorded as HOLD, by reason.", [*place, "reason"], registry=registry
        )
        self._duplicates = Counter(
            "inspectbus_decision_duplicates", "Repeats of a recorded decision.", place, registry=registry
        )
        self._conflicts = Counter(
            "inspectbus_decision_conflicts", "Repeats that differ from the recorded decision.", place, registry=registry
        )
        self._revisions = Counter(
            "inspectbus_revisions", "Decisions recorded on replayed frames.", place, registry=registry
        )
        self._outcomes = Counter(
            "inspectbus_gate_outcomes_recorded",
            "Gate outcomes recorded, by action.",
            [*place, "action"],
            registry=registry,
        )
        self._late = Counter(
            "inspectbus_gate_outcomes_recorded_late",
            "Gate outcomes recorded of parts that no decision came for in time.",
            place,
            registry=registry,
        )
        self._outcome_duplicates = Counter(
            "inspectbus_gate_outcome_duplicates", "Repeats of a recorded gate outcome.", place, registry=registry
        )
        self._outcome_conflicts = Counter(
            "inspectbus_gate_outcome_conflicts",
            "Repeats that differ from the recorded gate outcome.",
            place,
            registry=registry,
        )
        self._labels = Counter(
            "inspectbus_labels",
            "What decided parts really were, of a replayed data set or told by people, beside what was decided.",
            [*place, "verdict", "label"],
            registry=registry,
        )
        self._record_seconds = Histogram(
            "inspectbus_record_seconds",
            "Time of one recording transaction.",
            buckets=_RECORD_BUCKETS_S,
            registry=registry,
        )
        self._batch_size = Histogram(
            "inspectbus_record_batch_size",
            "Decisions and gate outcomes in one recording transaction.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self._capture_seconds = Histogram(
            "inspectbus_capture_to_record_seconds",
            "From a frame's capture to its committed decision, by the wall clocks of camera and ledger.",
            place,
            buckets=_CAPTURE_BUCKETS_S,
            registry=registry,
        )
        self.blocked = Gauge(
            "inspectbus_ledger_blocked",
            "1 while the database takes nothing and the recorder holds what came.",
            registry=registry,
        )

    def committed(self, batch: Sequence[Entry], fates: Sequence[Fate], seconds: float) -> None:
        self._record_seconds.observe(seconds)
        self._batch_size.observe(len(batch))
        now_s = time.time()
        for entry, fate in zip(batch, fates, strict=True):
            place = (entry.line, entry.station)
            of_gate = isinstance(entry, GateOutcome)
            if fate is Fate.DUPLICATE:
                (self._outcome_duplicates if of_gate else self._duplicates).labels(*place).inc()
            elif fate is Fate.CONFLICT:
                (self._outcome_conflicts if of_gate else self._conflicts).labels(*place).inc()
            elif isinstance(entry, GateOutcome):
                self._acted(entry)
            elif entry.revision:
                self._revisions.labels(*place).inc()
            else:
                self._recorded(entry, now_s)

    def labelled(self, frames: Sequence[Labelled]) -> None:
        """Labels that were taken. A label that corrects another counts too."""
        for frame in frames:
            label = Label.Name(frame.label).removeprefix("LABEL_").lower()
            self._labels.labels(frame.line, frame.station, _word(frame.verdict), label).inc()

    def _acted(self, outcome: GateOutcome) -> None:
        place = (outcome.line, outcome.station)
        action = GateAction.Name(outcome.action).removeprefix("GATE_ACTION_").lower()
        self._outcomes.labels(*place, action).inc()
        if is_late(outcome):
            self._late.labels(*place).inc()

    def _recorded(self, decision: Decision, now_s: float) -> None:
        place = (decision.line, decision.station)
        self._decisions.labels(*place, _word(decision.verdict)).inc()
        if decision.truth:
            self.labelled([Labelled(*place, decision.verdict, decision.truth)])
        if decision.HasField("hold"):
            reason = HoldReason.Name(decision.hold.reason).removeprefix("HOLD_REASON_").lower()
            self._holds.labels(*place, reason).inc()
        if decision.timings.HasField("captured_at"):
            captured_s = decision.timings.captured_at.ToNanoseconds() / 1e9
            # Clocks of two machines may disagree by more than a fast line takes.
            self._capture_seconds.labels(*place).observe(max(0.0, now_s - captured_s))


class ShadowMetrics:
    """What the recorder of shadows counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        place = ["line", "station"]
        self._counters = {
            Fate.RECORDED: Counter("inspectbus_shadows", "Frames recorded of shadows.", place, registry=registry),
            Fate.DUPLICATE: Counter(
                "inspectbus_shadow_duplicates", "Repeats of what a shadow said.", place, registry=registry
            ),
            Fate.CONFLICT: Counter(
                "inspectbus_shadow_conflicts", "Repeats that differ from what it said.", place, registry=registry
            ),
        }
        self.blocked = Gauge(
            "inspectbus_shadows_blocked",
            "1 while the database takes nothing and the recorder of shadows holds what came.",
            registry=registry,
        )

    def committed(self, batch: Sequence[ShadowDecision], fates: Sequence[Fate], seconds: float) -> None:
        for said, fate in zip(batch, fates, strict=True):
            self._counters[fate].labels(said.line, said.station).inc()


def _word(verdict: Verdict.ValueType) -> str:
    return Verdict.Name(verdict).removeprefix("VERDICT_").lower()
