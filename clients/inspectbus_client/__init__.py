"""InspectBus for other plant software: send images, follow decisions, run stations, train and compare models.

    from inspectbus_client import Client

    with Client(acquisition="10.0.0.5:50051", results="10.0.0.5:50055") as client:
        for inspected in client.inspect_many(["a.png", "b.png"]):
            print(inspected.shot.image, inspected.decision or inspected.error)

Needs gRPC and the contracts only; nothing of the services' own dependencies.
"""

from inspectbus.channels import Access
from inspectbus_client.agreements import AgreementFilter
from inspectbus_client.client import Client
from inspectbus_client.decisions import DecisionFilter
from inspectbus_client.frames import Image, Inspected, Published, Shot
from inspectbus_client.gates import GateWatch
from inspectbus_client.values import (
    AdvisedThreshold,
    Agreement,
    AliasChange,
    Augmentation,
    BoundedShare,
    ComparisonPlan,
    Confusion,
    Decision,
    Disagreement,
    Engine,
    EngineCandidate,
    Evidence,
    GateAction,
    GateOutcome,
    GateReason,
    Hold,
    HoldReason,
    Job,
    JobState,
    Judgement,
    Label,
    Model,
    Pixels,
    Prepared,
    Progress,
    Quality,
    RecipeVersion,
    Record,
    Scores,
    ScoresRow,
    ScoresTable,
    ServedModel,
    Station,
    StationState,
    StoredRecipe,
    ThresholdAdvice,
    Timings,
    TrainingPlan,
    Verdict,
    VerdictPair,
)
from inspectbus_client.watch import Watch

__all__ = [
    "Access",
    "AdvisedThreshold",
    "Agreement",
    "AgreementFilter",
    "AliasChange",
    "Augmentation",
    "BoundedShare",
    "Client",
    "ComparisonPlan",
    "Confusion",
    "Decision",
    "DecisionFilter",
    "Disagreement",
    "Engine",
    "EngineCandidate",
    "Evidence",
    "GateAction",
    "GateOutcome",
    "GateReason",
    "GateWatch",
    "Hold",
    "HoldReason",
    "Image",
    "Inspected",
    "Job",
    "JobState",
    "Judgement",
    "Label",
    "Model",
    "Pixels",
    "Prepared",
    "Progress",
    "Published",
    "Quality",
    "RecipeVersion",
    "Record",
    "Scores",
    "ScoresRow",
    "ScoresTable",
    "ServedModel",
    "Shot",
    "Station",
    "StationState",
    "StoredRecipe",
    "ThresholdAdvice",
    "Timings",
    "TrainingPlan",
    "Verdict",
    "VerdictPair",
    "Watch",
]
