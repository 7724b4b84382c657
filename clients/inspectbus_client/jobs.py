"""Jobs of the training service: trainings and comparisons, started, followed, cancelled; and the reports they made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

from inspectbus.api.v1 import training_pb2, training_pb2_grpc
from inspectbus.errors import NotPossibleNow
from inspectbus_client.reports import MAX_REPORT_BYTES, unpack
from inspectbus_client.values import Augmentation, Job, read
from inspectbus_client.watch import Watch
from inspectbus_client.wire import Stream, Wire


class Jobs:
    """The part of the client that trains and compares."""

    _wire: Wire

    def train(
        self,
        data: str,
        *,
        model: str = "",
        backbone: str = "",
        epochs: int = 0,
        seed: int | None = None,
        input_size: int = 0,
        depth: str = "",
        batch: int = 0,
        precision: str = "",
        views: int = 0,
        dropout: float | None = None,
        augmentation: Augmentation | None = None,
        join: bool = False,
        timeout_s: float | None = None,
    ) -> Job:
        """Starts a training and answers at once; `watch_job` follows it. Zero, empty and None take the service's
        defaults. `depth` is "upper" (minutes) or "whole" (longer, better).

        With `join`, one of the very same plan that has not ended is the answer instead. Not tried again by itself: a
        job whose answer was lost may be running.
        """
        plan = training_pb2.TrainingPlan(
            data=data,
            model=model,
            backbone=backbone,
            epochs=epochs,
            seed=seed,
            input_size=input_size,
            depth=depth,
            batch=batch,
            precision=precision,
            views=views,
            dropout=dropout,
            augmentation=training_pb2.Augmentation(**vars(augmentation)) if augmentation is not None else None,
        )
        request = training_pb2.StartTrainingRequest(plan=plan, join=join)
        answer = self._wire.ask("training", self._training.StartTraining, request, timeout_s=timeout_s)
        return read(Job, answer.job)

    def compare_models(
        self,
        data: str,
        *,
        models: Sequence[str] = (),
        seeds: int | None = None,
        quick: bool = False,
        images: int = 0,
        backbone: str = "",
        epochs: int = 0,
        input_size: int = 0,
        depth: str = "",
        turns: bool | None = None,
        timeout_s: float | None = None,
    ) -> Job:
        """Starts a comparison of models and answers at once; `watch_job` follows it, `read_report` fetches what came of
        it. Zero, empty and None take the defaults of `inspectbus compare`.

        Not tried again by itself: a job whose answer was lost may be running.
        """
        plan = training_pb2.ComparisonPlan(
            data=data,
            models=models,
            seeds=seeds,
            quick=quick,
            images=images,
            backbone=backbone,
            epochs=epochs,
            input_size=input_size,
            depth=depth,
            turns=turns,
        )
        request = training_pb2.CompareModelsRequest(plan=plan)
        answer = self._wire.ask("training", self._training.CompareModels, request, timeout_s=timeout_s)
        return read(Job, answer.job)

    def read_report(self, job_id: str, folder: str | Path, *, timeout_s: float = 120.0) -> tuple[Path, ...]:
        """Puts the files of a comparison's report into `folder`, made where it is not there, and gives them.

        Nothing is written over. Raises NotFound where the job made none, NotPossibleNow while it is under way or where
        what came is no report, BadField for a folder that cannot be written or has a file of a report's name.
        """
        with tempfile.TemporaryFile() as file:
            request = training_pb2.ReadReportRequest(job_id=job_id)
            fetch = partial(self._fetch_report, file)
            self._wire.ask("training", fetch, request, timeout_s=timeout_s, repeatable=True)
            return unpack(file, Path(folder))

    def _fetch_report(self, file: IO[bytes], request: training_pb2.ReadReportRequest, /, *, timeout: float) -> None:
        # What an earlier try brought is not gone on from: the report may have been made anew meanwhile.
        file.seek(0)
        file.truncate()
        call = self._training.ReadReport(request, timeout=timeout)
        for answer in call:
            file.write(answer.zip)
            if file.tell() > MAX_REPORT_BYTES:
                call.cancel()
                raise NotPossibleNow(f"the report of job {request.job_id} is larger than {MAX_REPORT_BYTES} bytes")

    def job(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        request = training_pb2.GetJobRequest(job_id=job_id)
        answer = self._wire.ask("training", self._training.GetJob, request, timeout_s=timeout_s, repeatable=True)
        return read(Job, answer.job)

    def jobs(self, *, page_size: int = 50, timeout_s: float | None = None) -> Iterator[Job]:
        """Newest first. Pages are fetched as they are needed; the deadline is each page's."""
        request = training_pb2.ListJobsRequest(page_size=page_size)
        while True:
            page = self._wire.ask("training", self._training.ListJobs, request, timeout_s=timeout_s, repeatable=True)
            yield from (read(Job, job) for job in page.jobs)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch_job(self, job_id: str, *, patience_s: float = 60.0) -> Watch[Job]:
        """The job's present state, then every change; ends when the job has ended."""
        return _JobWatch(self._wire, self._training, job_id, patience_s)

    def cancel_job(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """Stops the job at its next step. It may still succeed if it was nearly done."""
        request = training_pb2.CancelJobRequest(job_id=job_id)
        answer = self._wire.ask("training", self._training.CancelJob, request, timeout_s=timeout_s)
        return read(Job, answer.job)

    @cached_property
    def _training(self) -> training_pb2_grpc.TrainingServiceStub:
        return training_pb2_grpc.TrainingServiceStub(self._wire.channel("training"))


class _JobWatch(Watch[Job]):
    def __init__(self, wire: Wire, stub: training_pb2_grpc.TrainingServiceStub, job_id: str, patience_s: float) -> None:
        self._stub = stub
        self._job_id = job_id
        self._last: Job | None = None
        super().__init__(wire, "training", patience_s)

    def _open(self, timeout_s: float) -> Stream[Any]:
        return self._stub.WatchJob(training_pb2.WatchJobRequest(job_id=self._job_id), timeout=timeout_s)

    def _take(self, answer: training_pb2.WatchJobResponse) -> Job | None:
        job = read(Job, answer.job)
        # A stream that was opened again begins with the present state, which may have been given already.
        if job == self._last:
            return None
        self._last = job
        return job

    def _complete(self) -> bool:
        return self._last is not None and self._last.state.ended
