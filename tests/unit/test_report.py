"""The report of a run counts what the ledger holds."""

from __future__ import annotations

import math
import random

import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from inspectbus.api.v1 import decision_pb2, frame_pb2, results_pb2
from inspectbus.cli.report import Tally, percentile, report
from inspectbus_client import Record
from inspectbus_client.values import read


def record(defective: bool | None, score: float | None, verdict: decision_pb2.Verdict.ValueType) -> Record:
    decision = decision_pb2.Decision(verdict=verdict, line="line-1", model="m", model_version="v")
    if score is not None:
        decision.score = score
    if verdict == decision_pb2.VERDICT_HOLD:
        decision.hold.reason = decision_pb2.HOLD_REASON_UNUSABLE_IMAGE
    decision.timings.captured_at.FromMilliseconds(1_000)
    decision.timings.decided_at.FromMilliseconds(1_025)
    truth = {None: frame_pb2.LABEL_UNSPECIFIED, True: frame_pb2.LABEL_DEFECTIVE, False: frame_pb2.LABEL_GOOD}[defective]
    return read(Record, results_pb2.Record(decision=decision, truth=truth))


def test_scores_are_those_of_scikit_learn() -> None:
    chance = random.Random(7)
    truths = [chance.random() < 0.3 for _ in range(500)]
    scores = [min(max(chance.gauss(0.6 if truth else 0.4, 0.2), 0.0), 1.0) for truth in truths]
    tally = Tally()
    for truth, score in zip(truths, scores, strict=True):
        verdict = decision_pb2.VERDICT_DEFECTIVE if score >= 0.5 else decision_pb2.VERDICT_QUALIFIED
        tally.add(record(truth, score, verdict))

    predictions = [score >= 0.5 for score in scores]
    precision, recall, f1, _ = precision_recall_fscore_support(truths, predictions, average="binary")
    (tn, fp), (fn, tp) = confusion_matrix(truths, predictions)
    found = tally.scores()
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(f1)
    assert found["average_precision"] == pytest.approx(average_precision_score(truths, scores))
    assert found["escape"] == pytest.approx(fn / (fn + tp))
    assert found["overkill"] == pytest.approx(fp / (fp + tn))


def test_a_lost_frame_shows_as_the_difference_between_accepted_and_recorded() -> None:
    tally = Tally()
    for _ in range(3):
        tally.add(record(None, 0.1, decision_pb2.VERDICT_QUALIFIED))
    summary = report(tally, {"line-1": tally}, accepted=5, facts={"model": "m/v"})
    assert (summary["accepted"], summary["recorded"], summary["lost"]) == (5, 3, 2)
    assert summary["verdicts"] == {"qualified": 3, "defective": 0, "hold": 0}
    assert summary["latency_ms"] == {"p50": 25.0, "p99": 25.0}
    assert summary["scores"]["f1"] is None, "without truth there is no score"


def test_held_frames_are_counted_apart_with_their_reason() -> None:
    tally = Tally()
    tally.add(record(True, None, decision_pb2.VERDICT_HOLD))
    assert tally.holds == {"unusable_image": 1}
    assert tally.confusion.held_defective == 1
    assert tally.confusion.recall is None


def test_a_percentile_is_the_nearest_rank() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    values = [float(i) for i in range(1, 101)]
    assert percentile(values, 0.99) == 99.0
    assert not math.isnan(percentile(values, 1.0) or math.nan)
