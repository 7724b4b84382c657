"""The gRPC door: trainings and comparisons, and the model versions and reports that came out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.api.v1 import model_pb2, model_pb2_grpc, training_pb2, training_pb2_grpc
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField, NotFound, NotPossibleNow
from inspectbus.runtime.identity import caller
from inspectbus.training.advice_messages import advised
from inspectbus.training.aliases import Aliases
from inspectbus.training.comparison.terms import Terms
from inspectbus.training.events import alias_change, timestamp
from inspectbus.training.jobs import Job, Jobs, JobState
from inspectbus.training.registry import RegisteredModel, Registry
from inspectbus.training.reports import Reports
from inspectbus.training.request import to_plan, to_terms
from inspectbus.training.settings import TrainingSettings

DEFAULT_PAGE = 50
MAX_PAGE = 1000

_STATES = {
    JobState.QUEUED: training_pb2.JOB_STATE_QUEUED,
    JobState.RUNNING: training_pb2.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: training_pb2.JOB_STATE_SUCCEEDED,
    JobState.FAILED: training_pb2.JOB_STATE_FAILED,
    JobState.CANCELLED: training_pb2.JOB_STATE_CANCELLED,
}


class TrainingRpc(training_pb2_grpc.TrainingServiceServicer):
    """Jobs."""

    def __init__(
        self,
        jobs: Jobs,
        reports: Reports,
        settings: TrainingSettings,
        *,
        on_start: Callable[[Job], None],
        cancel: Callable[[str, str], Job],
    ) -> None:
        """`on_start` hears of a job that was written down; `cancel` asks for a job's end on behalf of somebody."""
        self._jobs = jobs
        self._reports = reports
        self._settings = settings
        self._on_start = on_start
        self._cancel = cancel

    def StartTraining(
        self, request: training_pb2.StartTrainingRequest, context: grpc.ServicerContext
    ) -> training_pb2.StartTrainingResponse:
        plan = to_plan(request.plan, self._settings)
        job = self._jobs.enqueue(plan, caller.get().name, join=request.join)
        self._on_start(job)
        return training_pb2.StartTrainingResponse(job=_job(job))

    def GetJob(self, request: training_pb2.GetJobRequest, context: grpc.ServicerContext) -> training_pb2.GetJobResponse:
        return training_pb2.GetJobResponse(job=_job(self._jobs.get(_named(request.job_id))))

    def ListJobs(
        self, request: training_pb2.ListJobsRequest, context: grpc.ServicerContext
    ) -> training_pb2.ListJobsResponse:
        found, token = _page(request, self._jobs.page)
        return training_pb2.ListJobsResponse(jobs=[_job(job) for job in found], next_page_token=token)

    def WatchJob(
        self, request: training_pb2.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.WatchJobResponse]:
        for job in self._jobs.watch(_named(request.job_id), interested=context.is_active):
            yield training_pb2.WatchJobResponse(job=_job(job))

    def CancelJob(
        self, request: training_pb2.CancelJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.CancelJobResponse:
        job = self._cancel(_named(request.job_id), caller.get().name)
        return training_pb2.CancelJobResponse(job=_job(job))

    def CompareModels(
        self, request: training_pb2.CompareModelsRequest, context: grpc.ServicerContext
    ) -> training_pb2.CompareModelsResponse:
        job = self._jobs.enqueue_comparison(to_terms(request.plan, self._settings), caller.get().name)
        self._on_start(job)
        return training_pb2.CompareModelsResponse(job=_job(job))

    def ReadReport(
        self, request: training_pb2.ReadReportRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.ReadReportResponse]:
        job = self._jobs.get(_named(request.job_id))
        _check_has_report(job)
        for part in self._reports.read(job.job_id):
            yield training_pb2.ReadReportResponse(zip=part)


class ModelRpc(model_pb2_grpc.ModelServiceServicer):
    """Model versions and aliases."""

    def __init__(self, registry: Registry, aliases: Aliases) -> None:
        self._registry = registry
        self._aliases = aliases

    def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        name = checked_name(request.name, "name") if request.name else ""
        return model_pb2.ListModelsResponse(models=[_model(found) for found in self._registry.list_models(name)])

    def GetModel(self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext) -> model_pb2.GetModelResponse:
        return model_pb2.GetModelResponse(model=_model(self._asked(request)))

    def AdviseThreshold(
        self, request: model_pb2.AdviseThresholdRequest, context: grpc.ServicerContext
    ) -> model_pb2.AdviseThresholdResponse:
        found = self._asked(request)
        return advised(found, self._registry.validation(found), request)

    def _asked(self, request: model_pb2.GetModelRequest | model_pb2.AdviseThresholdRequest) -> RegisteredModel:
        name = checked_name(request.name, "name")
        which = request.WhichOneof("which")
        if isinstance(request, model_pb2.GetModelRequest) and request.HasField("at") and which != "alias":
            raise BadField("a version is the same at every moment: name an alias", field="at")
        if which == "alias":
            alias = checked_name(request.alias, "alias")
            if isinstance(request, model_pb2.GetModelRequest) and request.HasField("at"):
                return self._registry.get_version(name, self._aliases.named_at(name, alias, _moment(request.at)))
            return self._registry.get_alias(name, alias)
        if which == "version":
            return self._registry.get_version(name, request.version)
        raise BadField("say which: a version, or an alias such as 'production'", field="which")

    def SetAlias(self, request: model_pb2.SetAliasRequest, context: grpc.ServicerContext) -> model_pb2.SetAliasResponse:
        change = self._aliases.set(
            checked_name(request.name, "name"),
            checked_name(request.alias, "alias"),
            request.version,
            caller.get().name,
            reason=request.reason,
            force=request.force,
        )
        return model_pb2.SetAliasResponse(change=None if change is None else alias_change(change))

    def Rollback(self, request: model_pb2.RollbackRequest, context: grpc.ServicerContext) -> model_pb2.RollbackResponse:
        name, alias = checked_name(request.name, "name"), checked_name(request.alias, "alias")
        change = self._aliases.rollback(name, alias, caller.get().name, request.reason)
        return model_pb2.RollbackResponse(change=alias_change(change))

    def ListAliasHistory(
        self, request: model_pb2.ListAliasHistoryRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListAliasHistoryResponse:
        name = checked_name(request.name, "name")
        alias = checked_name(request.alias, "alias") if request.alias else ""
        found, token = _page(request, partial(self._aliases.page, name, alias))
        changes = [alias_change(change) for change in found]
        return model_pb2.ListAliasHistoryResponse(changes=changes, next_page_token=token)


class _Numbered(Protocol):
    @property
    def number(self) -> int: ...


N = TypeVar("N", bound=_Numbered)


def _page(
    request: training_pb2.ListJobsRequest | model_pb2.ListAliasHistoryRequest,
    fetch: Callable[[int, int | None], list[N]],
) -> tuple[list[N], str]:
    """What is on the page, and the token of the next one; `fetch` takes a size and the number to stay below."""
    size = request.page_size or DEFAULT_PAGE
    if size > MAX_PAGE:
        raise BadField(f"page_size is {size}, at most {MAX_PAGE} are given at once", field="page_size")
    # One more than asked for tells whether there is a next page.
    found = fetch(size + 1, _before(request.page_token))
    return found[:size], str(found[size - 1].number) if len(found) > size else ""


def _named(job_id: str) -> str:
    if not job_id:
        raise BadField("job_id is empty: name the job, as it was given when it was asked for", field="job_id")
    return job_id


def _check_has_report(job: Job) -> None:
    if job.comparison is None:
        raise NotFound(f"job {job.job_id} is a training, and only comparisons have a report", field="job_id")
    if not job.state.ended:
        raise NotPossibleNow(
            f"comparison {job.job_id} is {job.state} and has no report yet: WatchJob tells when it has ended",
            field="job_id",
        )
    if job.state is not JobState.SUCCEEDED:
        raise NotFound(f"comparison {job.job_id} {job.state}, so it has no report: {job.error}", field="job_id")


def _before(page_token: str) -> int | None:
    # Longer digits than a row number has would overflow the database's integer.
    if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) <= 18):
        raise BadField("not a page token that a call before this one gave", field="page_token")
    return int(page_token) if page_token else None


def _job(job: Job) -> training_pb2.Job:
    return training_pb2.Job(
        job_id=job.job_id,
        state=_STATES[job.state],
        plan=training_pb2.TrainingPlan(**job.plan.model_dump()),
        comparison=None if job.comparison is None else _comparison(job.comparison),
        progress=training_pb2.Progress(**job.progress.model_dump()),
        error=job.error,
        model=job.model,
        model_version=job.model_version,
        not_promoted=job.not_promoted,
        attempts=job.attempts,
        created_at=timestamp(job.created_at),
        started_at=timestamp(job.started_at),
        ended_at=timestamp(job.ended_at),
    )


def _comparison(terms: Terms) -> training_pb2.ComparisonPlan:
    plan = terms.plan
    return training_pb2.ComparisonPlan(
        data=plan.data,
        models=terms.models,
        seeds=terms.seeds,
        quick=terms.shortened,
        images=terms.images,
        backbone=plan.backbone,
        epochs=plan.epochs,
        input_size=plan.input_size,
        depth=plan.depth,
        turns=plan.augmentation.turns,
    )


def _model(found: RegisteredModel) -> model_pb2.Model:
    return model_pb2.Model(
        name=found.name,
        version=found.version,
        aliases=found.aliases,
        card_json=found.card_json,
        registered_at=timestamp(found.registered_at),
    )


def _moment(stamp: Timestamp) -> int:
    """Microseconds since the epoch."""
    try:
        # Beyond what a calendar knows, the database's integer would overflow too.
        stamp.ToDatetime()
    except (ValueError, OverflowError):
        raise BadField("is no moment between the years 1 and 9999", field="at") from None
    return stamp.ToMicroseconds()
