"""The client's values say everything the contract says, in its words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from google.protobuf.descriptor import EnumDescriptor

from inspectbus.api.v1 import (
    acquisition_pb2,
    decision_pb2,
    frame_pb2,
    gate_pb2,
    inference_pb2,
    model_pb2,
    prepared_frame_pb2,
    preprocessing_pb2,
    results_pb2,
    training_pb2,
)
from inspectbus_client import values

PAIRS = [
    (values.Hold, decision_pb2.Hold),
    (values.Quality, prepared_frame_pb2.QualityReport),
    (values.Timings, decision_pb2.Timings),
    (values.Evidence, decision_pb2.Evidence),
    (values.Decision, decision_pb2.Decision),
    (values.GateOutcome, gate_pb2.GateOutcome),
    (values.Record, results_pb2.Record),
    (values.Confusion, results_pb2.Confusion),
    (values.Scores, results_pb2.Scores),
    (values.ScoresRow, results_pb2.ScoresRow),
    (values.ScoresTable, results_pb2.GetScoresResponse),
    (values.Station, acquisition_pb2.Station),
    (values.RecipeVersion, preprocessing_pb2.RecipeVersion),
    (values.StoredRecipe, preprocessing_pb2.PutRecipeResponse),
    (values.Pixels, prepared_frame_pb2.Pixels),
    (values.Prepared, preprocessing_pb2.PrepareResponse),
    (values.Judgement, inference_pb2.Judgement),
    (values.Engine, inference_pb2.GetEngineResponse),
    (values.Model, model_pb2.Model),
    (values.AliasChange, model_pb2.AliasChange),
    (values.TrainingPlan, training_pb2.TrainingPlan),
    (values.ComparisonPlan, training_pb2.ComparisonPlan),
    (values.Progress, training_pb2.Progress),
    (values.Job, training_pb2.Job),
]

ENUMS = [
    (values.Verdict, decision_pb2.Verdict.DESCRIPTOR),
    (values.HoldReason, decision_pb2.HoldReason.DESCRIPTOR),
    (values.Label, frame_pb2.Label.DESCRIPTOR),
    (values.GateAction, gate_pb2.GateAction.DESCRIPTOR),
    (values.GateReason, gate_pb2.GateReason.DESCRIPTOR),
    (values.StationState, acquisition_pb2.StationState.DESCRIPTOR),
    (values.JobState, training_pb2.JobState.DESCRIPTOR),
]

BUS_ONLY = {("Pixels", "claim")}
"""Fields that no call carries."""


@pytest.mark.parametrize(("value", "message"), PAIRS, ids=[value.__name__ for value, _ in PAIRS])
def test_a_value_has_the_fields_of_its_message_and_reads_an_empty_one(value: Any, message: Any) -> None:
    names = [field.name for field in dataclasses.fields(value)]
    told = [field.name for field in message.DESCRIPTOR.fields]
    assert names == [name for name in told if (value.__name__, name) not in BUS_ONLY]
    assert isinstance(values.read(value, message()), value)


@pytest.mark.parametrize(("words", "descriptor"), ENUMS, ids=[words.__name__ for words, _ in ENUMS])
def test_an_enum_has_the_contracts_words(words: type[values.Verdict], descriptor: EnumDescriptor) -> None:
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    spelt = [value.name.removeprefix(prefix) for value in descriptor.values if value.number]
    assert [str(word) for word in words] == [*spelt, "UNKNOWN"]


def test_a_verdict_of_a_newer_service_is_unknown_and_no_fault() -> None:
    decision = decision_pb2.Decision.FromString(b"\x50\x63")  # field 10, number 99

    assert values.read(values.Decision, decision).verdict is values.Verdict.UNKNOWN


def test_unset_and_zero_are_told_apart() -> None:
    scored = values.read(values.Decision, decision_pb2.Decision(score=0.0))
    unscored = values.read(values.Decision, decision_pb2.Decision())

    assert (scored.score, unscored.score) == (0.0, None)
    assert scored.truth is None
    assert scored.timings.captured_at is None
