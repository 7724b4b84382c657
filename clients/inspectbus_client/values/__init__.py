"""What the client hands out: frozen values in plain words, one per message of the contract.

Each file has the values of one subject; reading.py makes them of messages. Fields carry the contract's names, so
protos/inspectbus/api/v1 is their documentation; a test compares the two.
"""

from inspectbus_client.values.decisions import Decision, Evidence, Hold, HoldReason, Label, Quality, Timings, Verdict
from inspectbus_client.values.engines import Engine, EngineCandidate, Judgement, ServedModel
from inspectbus_client.values.gates import GateAction, GateOutcome, GateReason
from inspectbus_client.values.jobs import Augmentation, ComparisonPlan, Job, JobState, Progress, TrainingPlan
from inspectbus_client.values.models import AdvisedThreshold, AliasChange, BoundedShare, Model, ThresholdAdvice
from inspectbus_client.values.preparation import Pixels, Prepared, RecipeVersion, StoredRecipe
from inspectbus_client.values.reading import number, read, timestamp
from inspectbus_client.values.results import (
    Agreement,
    Confusion,
    Disagreement,
    Record,
    Scores,
    ScoresRow,
    ScoresTable,
    VerdictPair,
)
from inspectbus_client.values.stations import Station, StationState

__all__ = [
    "AdvisedThreshold",
    "Agreement",
    "AliasChange",
    "Augmentation",
    "BoundedShare",
    "ComparisonPlan",
    "Confusion",
    "Decision",
    "Disagreement",
    "Engine",
    "EngineCandidate",
    "Evidence",
    "GateAction",
    "GateOutcome",
    "GateReason",
    "Hold",
    "HoldReason",
    "Job",
    "JobState",
    "Judgement",
    "Label",
    "Model",
    "Pixels",
    "Prepared",
    "Progress",
    "Quality",
    "RecipeVersion",
    "Record",
    "Scores",
    "ScoresRow",
    "ScoresTable",
    "ServedModel",
    "Station",
    "StationState",
    "StoredRecipe",
    "ThresholdAdvice",
    "Timings",
    "TrainingPlan",
    "Verdict",
    "VerdictPair",
    "number",
    "read",
    "timestamp",
]
