"""Who may call what: one table of every method that a service of ours answers.

    viewer ──┬── station ──┐
             └── reviewer ─┴── engineer ── admin         each may what those to its left may

An engineer may what a station and a reviewer may: who sets a line's recipe and model decides its verdicts already. What
stands in no row, admin alone may.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    ANYBODY = "anybody"
    """Needs no name: what tells whether a service is well. No identity has this role."""
    VIEWER = "viewer"
    """Reads: stations, decisions, scores, jobs, models. What services ask each other needs no more."""
    STATION = "station"
    """Sends images, to be inspected or only prepared and judged."""
    REVIEWER = "reviewer"
    """Says what parts really were."""
    ENGINEER = "engineer"
    """Changes what the line does: stations, recipes, trainings, model aliases."""
    ADMIN = "admin"

    def includes(self, needed: Role) -> bool:
        """Whether who has this role may what `needed` may."""
        return needed in _INCLUDED[self]


_VIEWER = {Role.ANYBODY, Role.VIEWER}
_INCLUDED = {
    Role.ANYBODY: {Role.ANYBODY},
    Role.VIEWER: _VIEWER,
    Role.STATION: _VIEWER | {Role.STATION},
    Role.REVIEWER: _VIEWER | {Role.REVIEWER},
    Role.ENGINEER: _VIEWER | {Role.STATION, Role.REVIEWER, Role.ENGINEER},
    Role.ADMIN: set(Role),
}

_BY_SERVICE: dict[str, dict[Role, tuple[str, ...]]] = {
    "inspectbus.api.v1.AcquisitionService": {
        Role.VIEWER: ("ListStations", "GetStation", "WatchGate"),
        Role.STATION: ("PublishFrames", "Inspect", "InspectStream"),
        Role.ENGINEER: ("StartStation", "StopStation"),
    },
    "inspectbus.api.v1.PreprocessingService": {
        Role.VIEWER: ("ListRecipes", "GetRecipe"),
        Role.STATION: ("Prepare",),
        Role.ENGINEER: ("PutRecipe",),
    },
    "inspectbus.api.v1.InferenceService": {
        Role.VIEWER: ("GetEngine",),
        Role.STATION: ("Infer", "InferStream"),
    },
    "inference.GRPCInferenceService": {
        # What KServe's and Triton's own probes ask.
        Role.ANYBODY: ("ServerLive", "ServerReady"),
        Role.VIEWER: ("ModelReady", "ServerMetadata", "ModelMetadata"),
        Role.STATION: ("ModelInfer",),
    },
    "inspectbus.api.v1.TrainingService": {
        Role.VIEWER: ("GetJob", "ListJobs", "WatchJob", "ReadReport"),
        Role.ENGINEER: ("StartTraining", "CancelJob", "CompareModels"),
    },
    "inspectbus.api.v1.ModelService": {
        Role.VIEWER: ("ListModels", "GetModel", "ListAliasHistory", "AdviseThreshold"),
        Role.ENGINEER: ("SetAlias", "Rollback"),
    },
    "inspectbus.api.v1.ResultsService": {
        Role.VIEWER: ("GetDecision", "ListDecisions", "WatchDecisions", "GetScores", "GetAgreement"),
        Role.REVIEWER: ("SubmitLabels",),
    },
    # A cluster's probes have no token.
    "grpc.health.v1.Health": {Role.ANYBODY: ("Check", "List", "Watch")},
    "grpc.reflection.v1alpha.ServerReflection": {Role.VIEWER: ("ServerReflectionInfo",)},
}

METHODS = {
    f"/{service}/{method}": role
    for service, rows in _BY_SERVICE.items()
    for role, methods in rows.items()
    for method in methods
}
"""The role a call needs, by its full name, as gRPC spells it."""


def needed_for(method: str) -> Role:
    return METHODS.get(method, Role.ADMIN)
