"""The gRPC door: trainings, and the model versions that came out of them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.api.v1 import model_pb2, model_pb2_grpc, training_pb2, training_pb2_grpc
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField
from inspectbus.runtime.identity import caller
from inspectbus.training.advice_messages import advised
from inspectbus.training.jobs import Job, Jobs, JobState
from inspectbus.training.registry import RegisteredModel, Registry
from inspectbus.training.request import to_plan
from inspectbus.training.settings import TrainingSettings
from inspectbus.training.validation import read_validation
from inspectbus.training.worker import Worker

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

    def __init__(self, jobs: Jobs, worker: Worker, settings: TrainingSettings) -> None:
        self._jobs = jobs
        self._worker = worker
        self._settings = settings

    def StartTraining(
        self, request: training_pb2.StartTrainingRequest, context: grpc.ServicerContext
    ) -> training_pb2.StartTrainingResponse:
        plan = to_plan(request.plan, self._settings)
        return training_pb2.StartTrainingResponse(job=_job(self._jobs.enqueue(plan, caller.get().name)))

    def GetJob(self, request: training_pb2.GetJobRequest, context: grpc.ServicerContext) -> training_pb2.GetJobResponse:
        return training_pb2.GetJobResponse(job=_job(self._jobs.get(_named(request.job_id))))

    def ListJobs(
        self, request: training_pb2.ListJobsRequest, context: grpc.ServicerContext
    ) -> training_pb2.ListJobsResponse:
        size = request.page_size or DEFAULT_PAGE
        if size > MAX_PAGE:
            raise BadField(f"page_size is {size}, at most {MAX_PAGE} are given at once", field="page_size")
        # One more than asked for tells whether there is a next page.
        found = self._jobs.page(size + 1, _before(request.page_token))
        more = len(found) > size
        return training_pb2.ListJobsResponse(
            jobs=[_job(job) for job in found[:size]],
            next_page_token=str(found[size - 1].number) if more else "",
        )

    def WatchJob(
        self, request: training_pb2.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.WatchJobResponse]:
        for job in self._jobs.watch(_named(request.job_id), interested=context.is_active):
            yield training_pb2.WatchJobResponse(job=_job(job))

    def CancelJob(
        self, request: training_pb2.CancelJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.CancelJobResponse:
        job = self._worker.cancel(_named(request.job_id), caller.get().name)
        return training_pb2.CancelJobResponse(job=_job(job))


class ModelRpc(model_pb2_grpc.ModelServiceServicer):
    """Model versions and aliases."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

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
        return advised(found, read_validation(self._registry.folder(found)), request)

    def _asked(self, request: model_pb2.GetModelRequest | model_pb2.AdviseThresholdRequest) -> RegisteredModel:
        name = checked_name(request.name, "name")
        which = request.WhichOneof("which")
        if which == "alias":
            return self._registry.get_alias(name, checked_name(request.alias, "alias"))
        if which == "version":
            return self._registry.get_version(name, request.version)
        raise BadField("say which: a version, or an alias such as 'production'", field="which")


def _named(job_id: str) -> str:
    if not job_id:
        raise BadField("job_id is empty: name the job, as StartTraining or ListJobs gave it", field="job_id")
    return job_id


def _before(page_token: str) -> int | None:
    # Longer digits than a row number has would overflow the database's integer.
    if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) <= 18):
        raise BadField("not a page token that ListJobs gave", field="page_token")
    return int(page_token) if page_token else None


def _job(job: Job) -> training_pb2.Job:
    return training_pb2.Job(
        job_id=job.job_id,
        state=_STATES[job.state],
        plan=training_pb2.TrainingPlan(**job.plan.model_dump()),
        progress=training_pb2.Progress(**job.progress.model_dump()),
        error=job.error,
        model=job.model,
        model_version=job.model_version,
        created_at=_timestamp(job.created_at),
        started_at=_timestamp(job.started_at),
        ended_at=_timestamp(job.ended_at),
    )


def _model(found: RegisteredModel) -> model_pb2.Model:
    return model_pb2.Model(
        name=found.name,
        version=found.version,
        aliases=found.aliases,
        card_json=found.card_json,
        registered_at=_timestamp(found.registered_at),
    )


def _timestamp(microseconds: int | None) -> Timestamp | None:
    if microseconds is None:
        return None
    moment = Timestamp()
    moment.FromMicroseconds(microseconds)
    return moment
