"""What a run has shown: counts, scores and latencies, from the ledger's records, as JSON and as tables.

Nothing here is counted by the run itself. `accepted` is acquisition's word, everything else the ledger's, so a frame
that was lost on the way shows as the difference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from inspectbus.domain.scores import Confusion
from inspectbus_client import Label, Record, Verdict


@dataclass
class Tally:
    """Everything counted over one group of records."""

    recorded: int = 0
    duplicates: int = 0
    conflicts: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    holds: Counter[str] = field(default_factory=Counter)
    confusion: Confusion = field(default_factory=Confusion)
    latencies_ms: list[float] = field(default_factory=list)
    labelled_scores: list[tuple[bool, float]] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        decision = record.decision
        self.recorded += 1
        self.duplicates += record.duplicates
        self.conflicts += record.conflicts
        self.verdicts[decision.verdict.lower()] += 1
        if decision.hold:
            self.holds[decision.hold.reason.lower()] += 1
        if decision.latency_s is not None:
            self.latencies_ms.append(decision.latency_s * 1000)
        if decision.model_version:
            self.versions[f"{decision.model}/{decision.model_version}"] += 1
        if record.truth in (Label.GOOD, Label.DEFECTIVE):
            defective = record.truth is Label.DEFECTIVE
            self.confusion += _outcome(defective, decision.verdict)
            if decision.score is not None:
                self.labelled_scores.append((defective, decision.score))

    def average_precision(self) -> float | None:
        """Area under the precision-recall steps over the scored frames; None unless both classes are there."""
        if len({truth for truth, _ in self.labelled_scores}) < 2:
            return None
        from sklearn.metrics import average_precision_score

        truths, scores = zip(*self.labelled_scores, strict=True)
        return float(average_precision_score(truths, scores))

    def scores(self) -> dict[str, Any]:
        """Each score, None where it is not defined, and the confusion it comes from."""
        confusion = self.confusion
        return {
            "precision": confusion.precision,
            "recall": confusion.recall,
            "f1": confusion.f1,
            "accuracy": confusion.accuracy,
            "average_precision": self.average_precision(),
            "escape": confusion.escape,
            "overkill": confusion.overkill,
            "confusion": dict(vars(confusion)),
        }


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); None of nothing."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


def report(tally: Tally, lines: Mapping[str, Tally], accepted: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a run, ready for JSON. `facts` are added as they are."""
    return {
        "accepted": accepted,
        "recorded": tally.recorded,
        "duplicates": tally.duplicates,
        "conflicts": tally.conflicts,
        "lost": accepted - tally.recorded,
        "verdicts": {name: tally.verdicts[name] for name in ("qualified", "defective", "hold")},
        "holds": dict(tally.holds),
        "scores": tally.scores(),
        "lines": {name: {"recorded": part.recorded, "scores": part.scores()} for name, part in lines.items()},
        "latency_ms": {"p50": percentile(tally.latencies_ms, 0.50), "p99": percentile(tally.latencies_ms, 0.99)},
        **facts,
    }


def print_report(console: Console, tally: Tally, lines: Mapping[str, Tally], summary: Mapping[str, Any]) -> None:
    """The final tables, for people."""
    rows: Sequence[tuple[str, Tally]] = [*sorted(lines.items()), ("all lines", tally)]
    if tally.confusion != Confusion():
        console.print(_scores_table(rows))
    console.print(_verdict_table(rows))
    latency = summary["latency_ms"]
    if latency["p50"] is not None:
        console.print(f"capture to decision: p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms")
    console.print(
        f"accepted {summary['accepted']}, recorded {summary['recorded']}, lost {summary['lost']}, "
        f"sent again {summary['duplicates']}, in conflict {summary['conflicts']}"
    )


def _scores_table(rows: Sequence[tuple[str, Tally]]) -> Table:
    table = Table(title="Scores (DEFECTIVE is positive; held frames count in none of them)", title_justify="left")
    table.add_column("line")
    columns = ("precision", "recall", "F1", "avg. precision", "escape", "overkill", "TP", "FP", "TN", "FN", "held")
    for column in columns:
        table.add_column(column, justify="right")
    for name, tally in rows:
        c = tally.confusion
        ratios = (c.precision, c.recall, c.f1, tally.average_precision(), c.escape, c.overkill)
        counts = (c.true_positives, c.false_positives, c.true_negatives, c.false_negatives)
        cells = ["–" if ratio is None else f"{ratio:.3f}" for ratio in ratios]
        table.add_row(name, *cells, *map(str, counts), str(c.held_defective + c.held_good))
    return table


def _verdict_table(rows: Sequence[tuple[str, Tally]]) -> Table:
    reasons = sorted({reason for _, tally in rows for reason in tally.holds})
    table = Table(title="Verdicts", title_justify="left")
    table.add_column("line")
    for column in ("frames", "qualified", "defective", "hold", *(f"hold: {reason}" for reason in reasons)):
        table.add_column(column, justify="right")
    for name, tally in rows:
        counts = [tally.recorded, *(tally.verdicts[verdict] for verdict in ("qualified", "defective", "hold"))]
        table.add_row(name, *map(str, counts), *(str(tally.holds[reason]) for reason in reasons))
    return table


def _outcome(defective: bool, verdict: Verdict) -> Confusion:
    if verdict is Verdict.DEFECTIVE:
        return Confusion(true_positives=1) if defective else Confusion(false_positives=1)
    if verdict is Verdict.QUALIFIED:
        return Confusion(false_negatives=1) if defective else Confusion(true_negatives=1)
    return Confusion(held_defective=1) if defective else Confusion(held_good=1)
