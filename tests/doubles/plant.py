"""A whole plant in memory behind real gRPC doors, for tests of whoever calls: it decides by name, at once.

An image whose source item holds "scratched" is DEFECTIVE, "dark" is HOLD, "refused" is refused, any other QUALIFIED.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import cv2
import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry

from inspectbus.api.v1 import (
    acquisition_pb2,
    acquisition_pb2_grpc,
    decision_pb2,
    frame_pb2,
    gate_pb2,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    prepared_frame_pb2,
    preprocessing_pb2,
    preprocessing_pb2_grpc,
    results_pb2,
    results_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from inspectbus.domain.recipe import Recipe
from inspectbus.errors import AlreadyRunning, BusClosed, InspectBusError, NotFound, NotPossibleNow, UnreadableImage
from inspectbus.runtime.refusals import refusal
from inspectbus.runtime.rpc_server import rpc_server
from inspectbus.runtime.settings import ServiceSettings

SERVICES = ("acquisition", "preprocessing", "inference", "training", "results")
PNG = cv2.imencode(".png", np.full((8, 8), 128, np.uint8))[1].tobytes()
PIXELS = prepared_frame_pb2.Pixels(height=2, width=3, channels=3, data=bytes(range(18)))


class Plant:
    """What all the doors share. Set `addresses` by `open_plant`; the rest is for tests to look at and to disturb."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        """Tries by method name, refused ones included."""
        self.changed = threading.Condition()
        card = {"threshold": 0.41, "validation_scores": {"f1": 0.77, "precision": 0.8, "average_precision": 0.875}}
        self.models = [
            model_pb2.Model(
                name="elpv", version="1b2c1b2c1b2c1b2c", aliases=["production"], card_json=json.dumps(card)
            ),
            model_pb2.Model(name="elpv", version="0f3a0f3a0f3a0f3a", card_json=json.dumps(card)),
        ]
        self.records: list[results_pb2.Record] = []
        self.sent_before: list[str] = []
        """Frames whose sender said so."""
        self.stations = {
            ("line-1", "top"): acquisition_pb2.STATION_STATE_STOPPED,
            ("line-1", "side"): acquisition_pb2.STATION_STATE_RUNNING,
        }
        self.recipes: dict[str, list[preprocessing_pb2.RecipeVersion]] = {}
        self.jobs: dict[str, list[training_pb2.Job]] = {}
        """Each job's states to come; the last one stays."""
        self.not_promoted = ""
        """Of every training that succeeds."""
        self.failed = ""
        """Why every comparison fails; empty where they succeed."""
        self.report = b""
        """The file that ReadReport gives, in parts."""
        self.hold_answers = threading.Event()
        """While clear, streams answer; set, they wait before each answer, until the client has gone."""
        self.engine = inference_pb2.GetEngineResponse(
            ready=True,
            engine="torch",
            device="cpu",
            batches={8: 3},
            candidates=[inference_pb2.EngineCandidate(name="torch", chosen=True, images_per_s=18.5)],
        )
        self.gate_events: list[acquisition_pb2.WatchGateResponse] = []
        """What WatchGate says."""
        self.answers_at_once = 1
        """Streams answer in groups of this size, the newest request first."""
        self.most_unanswered = 0
        self._refusals: deque[tuple[str, InspectBusError]] = deque()
        self._breaks: Counter[str] = Counter()

    def refuse(self, method: str, error: InspectBusError, times: int = 1) -> None:
        """The next calls of the method raise the error."""
        self._refusals.extend([(method, error)] * times)

    def break_stream(self, method: str, after: int) -> None:
        """The next stream of the method ends with UNAVAILABLE after that many answers."""
        self._breaks[method] = after + 1

    def enter(self, method: str) -> None:
        with self.changed:
            self.calls[method] += 1
            self.changed.notify_all()
            if self._refusals and self._refusals[0][0] == method:
                raise self._refusals.popleft()[1]

    def stream_step(self, method: str) -> None:
        """Called before each answer of a stream."""
        if self._breaks[method]:
            self._breaks[method] -= 1
            if not self._breaks[method]:
                raise BusClosed("the plant was told to break this stream")

    def wait_for(self, condition: Callable[[], bool], patience_s: float = 10.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, patience_s), "the plant never came to that"

    def decide(self, shot: acquisition_pb2.Shot, line: str, station: str, recipe: str = "") -> decision_pb2.Decision:
        """The first decision on a frame wins; a repeat is counted."""
        if "refused" in shot.source_item:
            raise UnreadableImage("cannot be decoded", field="shot.image")
        frame_id = shot.frame_id or str(uuid.uuid4())
        with self.changed:
            self.sent_before += [frame_id] * shot.sent_before
            for record in self.records:
                if record.decision.frame_id == frame_id:
                    record.duplicates += 1
                    return record.decision
            self.records.append(_record(len(self.records) + 1, frame_id, shot, line, station, recipe))
            self.changed.notify_all()
            return self.records[-1].decision


@contextmanager
def open_plant(
    plant: Plant | None = None, settings: ServiceSettings | None = None, services: Collection[str] = SERVICES
) -> Iterator[Plant]:
    """The services, each on a free port of its own; `plant.addresses` is what a Client takes."""
    plant = plant or Plant()
    settings = settings or ServiceSettings(drain_s=1.0)
    acquisition, preprocessing, inference = _Acquisition(plant), _Preprocessing(plant), _Inference(plant)
    training, models, results = _Training(plant), _Models(plant), _Results(plant)
    contracts: dict[str, dict[str, Callable[[grpc.Server], None]]] = {
        "acquisition": {
            "inspectbus.api.v1.AcquisitionService": lambda server: (
                acquisition_pb2_grpc.add_AcquisitionServiceServicer_to_server(acquisition, server)
            )
        },
        "preprocessing": {
            "inspectbus.api.v1.PreprocessingService": lambda server: (
                preprocessing_pb2_grpc.add_PreprocessingServiceServicer_to_server(preprocessing, server)
            )
        },
        "inference": {
            "inspectbus.api.v1.InferenceService": lambda server: (
                inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
            )
        },
        "training": {
            "inspectbus.api.v1.TrainingService": lambda server: training_pb2_grpc.add_TrainingServiceServicer_to_server(
                training, server
            ),
            "inspectbus.api.v1.ModelService": lambda server: model_pb2_grpc.add_ModelServiceServicer_to_server(
                models, server
            ),
        },
        "results": {
            "inspectbus.api.v1.ResultsService": lambda server: results_pb2_grpc.add_ResultsServiceServicer_to_server(
                results, server
            )
        },
    }
    with ExitStack() as doors:
        for service in services:
            door = doors.enter_context(rpc_server(service, settings, CollectorRegistry(), contracts[service]))
            plant.addresses[service] = door.address
        yield plant


def _record(
    cursor: int, frame_id: str, shot: acquisition_pb2.Shot, line: str, station: str, recipe: str
) -> results_pb2.Record:
    decision = decision_pb2.Decision(
        frame_id=frame_id,
        line=line or "inspect",
        station=station or "inspect-test",
        source_item=shot.source_item,
        part_id=shot.part_id,
        lot_id=shot.lot_id,
        product=shot.product,
        model="elpv",
        model_version="0f3a0f3a0f3a0f3a",
        recipe=recipe or "cells",
        recipe_version=2,
        truth=shot.truth,
    )
    if "dark" in shot.source_item:
        decision.verdict = decision_pb2.VERDICT_HOLD
        decision.hold.reason = decision_pb2.HOLD_REASON_UNUSABLE_IMAGE
        decision.hold.detail = "too dark: brightness 3.0 is below 10.0"
        decision.hold.measure, decision.hold.value, decision.hold.limit = "brightness", 3.0, 10.0
    else:
        scratched = "scratched" in shot.source_item
        decision.verdict = decision_pb2.VERDICT_DEFECTIVE if scratched else decision_pb2.VERDICT_QUALIFIED
        decision.score, decision.threshold = (0.9, 0.5) if scratched else (0.0, 0.5)
    decision.timings.captured_at.FromMilliseconds(1_700_000_000_000)
    decision.timings.decided_at.FromMilliseconds(1_700_000_000_012)
    return results_pb2.Record(
        cursor=cursor, decision=decision, recorded_at=Timestamp(seconds=1_700_000_000 + cursor), truth=shot.truth
    )


class _Acquisition(acquisition_pb2_grpc.AcquisitionServiceServicer):
    def __init__(self, plant: Plant) -> None:
        self._plant = plant

    def _station(self, line: str, station: str) -> acquisition_pb2.Station:
        if (line, station) not in self._plant.stations:
            raise NotFound(f"there is no station {line}/{station}", field="station")
        state = self._plant.stations[line, station]
        said = acquisition_pb2.Station(line=line, station=station, recipe="cells", source="push", state=state, fps=4)
        said.pending, said.outcomes, said.late, said.fail_safe = 3, 40, 2, gate_pb2.GATE_ACTION_DIVERT
        said.deadline.FromMilliseconds(2500)
        if station == "side":
            said.spooled, said.spooled_bytes, said.dropped = 12, 34_567, 3
            said.behind.FromMilliseconds(200_500)
        return said

    def ListStations(self, request: Any, context: Any) -> acquisition_pb2.ListStationsResponse:
        self._plant.enter("ListStations")
        return acquisition_pb2.ListStationsResponse(stations=[self._station(*key) for key in self._plant.stations])

    def GetStation(self, request: Any, context: Any) -> acquisition_pb2.GetStationResponse:
        self._plant.enter("GetStation")
        return acquisition_pb2.GetStationResponse(station=self._station(request.line, request.station))

    def StartStation(self, request: Any, context: Any) -> acquisition_pb2.StartStationResponse:
        self._plant.enter("StartStation")
        self._station(request.line, request.station)
        self._plant.stations[request.line, request.station] = acquisition_pb2.STATION_STATE_RUNNING
        return acquisition_pb2.StartStationResponse(station=self._station(request.line, request.station))

    def StopStation(self, request: Any, context: Any) -> acquisition_pb2.StopStationResponse:
        self._plant.enter("StopStation")
        self._station(request.line, request.station)
        self._plant.stations[request.line, request.station] = acquisition_pb2.STATION_STATE_STOPPED
        return acquisition_pb2.StopStationResponse(station=self._station(request.line, request.station))

    def WatchGate(self, request: Any, context: Any) -> Iterator[acquisition_pb2.WatchGateResponse]:
        """The events that stand in `gate_events`, and then silence until the client has gone."""
        self._plant.enter("WatchGate")
        self._station(request.line, request.station)
        gone = threading.Event()
        if not context.add_callback(gone.set):
            return
        for event in self._plant.gate_events:
            self._plant.stream_step("WatchGate")
            yield event
        gone.wait(30)

    def Inspect(self, request: Any, context: Any) -> acquisition_pb2.InspectResponse:
        # Decided before it is refused: the answer is what got lost, which is the case that must not decide twice.
        decision = self._plant.decide(request.shot, request.line, request.station, request.recipe)
        self._plant.enter("Inspect")
        _wait_while_held(self._plant, context)
        return acquisition_pb2.InspectResponse(decision=decision)

    def InspectStream(self, request_iterator: Any, context: Any) -> Iterator[acquisition_pb2.InspectStreamResponse]:
        def answer(position: int, request: Any) -> acquisition_pb2.InspectStreamResponse:
            response = acquisition_pb2.InspectStreamResponse(position=position)
            try:
                response.decision.CopyFrom(
                    self._plant.decide(request.shot, request.line, request.station, request.recipe)
                )
            except InspectBusError as error:
                response.refusal.CopyFrom(refusal(error))
            return response

        return self._answers("InspectStream", request_iterator, context, answer)

    def PublishFrames(self, request_iterator: Any, context: Any) -> Iterator[acquisition_pb2.PublishFramesResponse]:
        def answer(position: int, request: Any) -> acquisition_pb2.PublishFramesResponse:
            response = acquisition_pb2.PublishFramesResponse(position=position, frame_id=request.shot.frame_id)
            try:
                self._station(request.line, request.station)
                self._plant.decide(request.shot, request.line, request.station)
            except InspectBusError as error:
                response.refusal.CopyFrom(refusal(error))
            return response

        return self._answers("PublishFrames", request_iterator, context, answer)

    def _answers(self, method: str, requests: Any, context: Any, answer: Callable[[int, Any], Any]) -> Iterator[Any]:
        self._plant.enter(method)
        kept: list[tuple[int, Any]] = []
        for position, request in enumerate(requests):
            kept.append((position, request))
            self._plant.most_unanswered = max(self._plant.most_unanswered, len(kept))
            _wait_while_held(self._plant, context)
            if len(kept) == self._plant.answers_at_once:
                yield from self._stepwise(method, kept, answer)
        yield from self._stepwise(method, kept, answer)

    def _stepwise(self, method: str, kept: list[tuple[int, Any]], answer: Callable[[int, Any], Any]) -> Iterator[Any]:
        while kept:
            self._plant.stream_step(method)
            yield answer(*kept.pop())


def _wait_while_held(plant: Plant, context: grpc.ServicerContext) -> None:
    gone = threading.Event()
    if plant.hold_answers.is_set() and context.add_callback(gone.set):
        gone.wait(30)


class _Preprocessing(preprocessing_pb2_grpc.PreprocessingServiceServicer):
    def __init__(self, plant: Plant) -> None:
        self._plant = plant

    def Prepare(self, request: Any, context: Any) -> preprocessing_pb2.PrepareResponse:
        self._plant.enter("Prepare")
        return preprocessing_pb2.PrepareResponse(
            pixels=PIXELS, recipe=request.recipe, recipe_version=1, preparation_hash="abcdabcdabcdabcd"
        )

    def ListRecipes(self, request: Any, context: Any) -> preprocessing_pb2.ListRecipesResponse:
        self._plant.enter("ListRecipes")
        newest = [self._plant.recipes[name][-1] for name in sorted(self._plant.recipes)]
        return preprocessing_pb2.ListRecipesResponse(recipes=newest)

    def GetRecipe(self, request: Any, context: Any) -> preprocessing_pb2.GetRecipeResponse:
        self._plant.enter("GetRecipe")
        versions = self._plant.recipes.get(request.name, [])
        if not versions or request.version > len(versions):
            raise NotFound(f"there is no recipe {request.name}", field="name")
        return preprocessing_pb2.GetRecipeResponse(recipe=versions[request.version - 1])

    def PutRecipe(self, request: Any, context: Any) -> preprocessing_pb2.PutRecipeResponse:
        self._plant.enter("PutRecipe")
        recipe = Recipe.from_yaml(request.yaml)
        versions = self._plant.recipes.setdefault(recipe.name, [])
        created = not versions or versions[-1].sha256 != recipe.sha256
        if created:
            versions.append(
                preprocessing_pb2.RecipeVersion(
                    name=recipe.name, version=len(versions) + 1, yaml=recipe.to_yaml(), sha256=recipe.sha256
                )
            )
        return preprocessing_pb2.PutRecipeResponse(recipe=versions[-1], created=created)


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, plant: Plant) -> None:
        self._plant = plant

    def Infer(self, request: Any, context: Any) -> inference_pb2.InferResponse:
        self._plant.enter("Infer")
        assert request.pixels == PIXELS
        judgement = inference_pb2.Judgement(score=0.75, threshold=0.5, verdict=decision_pb2.VERDICT_DEFECTIVE)
        judgement.model_version = request.preparation_hash
        return inference_pb2.InferResponse(judgement=judgement)

    def InferStream(self, request_iterator: Any, context: Any) -> Iterator[inference_pb2.InferStreamResponse]:
        raise NotImplementedError

    def GetEngine(self, request: Any, context: Any) -> inference_pb2.GetEngineResponse:
        self._plant.enter("GetEngine")
        return self._plant.engine


class _Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._changes: list[model_pb2.AliasChange] = []
        """Newest first."""

    def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:
        self._plant.enter("ListModels")
        return model_pb2.ListModelsResponse(models=[m for m in self._plant.models if request.name in ("", m.name)])

    def GetModel(self, request: Any, context: Any) -> model_pb2.GetModelResponse:
        self._plant.enter("GetModel")
        for model in self._plant.models:
            if model.name == request.name and (request.version == model.version or request.alias in model.aliases):
                return model_pb2.GetModelResponse(model=model)
        raise NotFound("there is no such model version", field="model")

    def SetAlias(self, request: Any, context: Any) -> model_pb2.SetAliasResponse:
        self._plant.enter("SetAlias")
        named = next((model for model in self._plant.models if request.alias in model.aliases), None)
        if named is not None and named.version == request.version:
            return model_pb2.SetAliasResponse()
        change = self._change(request, request.version, "" if named is None else named.version)
        change.forced = request.force
        return model_pb2.SetAliasResponse(change=change)

    def Rollback(self, request: Any, context: Any) -> model_pb2.RollbackResponse:
        self._plant.enter("Rollback")
        if not self._changes:
            raise NotPossibleNow("nothing to go back to", field="alias")
        last = self._changes[0]
        change = self._change(request, last.previous, last.version)
        change.rollback = True
        return model_pb2.RollbackResponse(change=change)

    def ListAliasHistory(self, request: Any, context: Any) -> model_pb2.ListAliasHistoryResponse:
        self._plant.enter("ListAliasHistory")
        meant = [change for change in self._changes if request.alias in ("", change.alias)]
        page, token = _page(meant, request.page_size, request.page_token)
        return model_pb2.ListAliasHistoryResponse(changes=page, next_page_token=token)

    def _change(self, request: Any, version: str, previous: str) -> model_pb2.AliasChange:
        for model in self._plant.models:
            aliases = [alias for alias in model.aliases if alias != request.alias]
            model.aliases[:] = [*aliases, request.alias] if model.version == version else aliases
        change = model_pb2.AliasChange(
            name=request.name,
            alias=request.alias,
            version=version,
            previous=previous,
            changed_at=Timestamp(seconds=1_800_000_000 + len(self._changes)),
            by="local",
            reason=request.reason,
        )
        self._changes.insert(0, change)
        return change

    def AdviseThreshold(self, request: Any, context: Any) -> model_pb2.AdviseThresholdResponse:
        self._plant.enter("AdviseThreshold")
        if request.escape_ppm < 10_000:
            raise NotPossibleNow("with 300 defective images no threshold can show that", field="escape_ppm")
        held = request.held_limit
        curve = [
            model_pb2.ThresholdAdvice(
                qualified_below=0.125 * rung,
                threshold=0.125 * rung + held,
                escape=model_pb2.BoundedShare(seen=0.01 * (rung - 1), at_most=0.01 * rung),
                overkill=model_pb2.BoundedShare(seen=0.04 / rung, at_most=0.06 / rung),
                held=model_pb2.BoundedShare(seen=held / 2, at_most=held),
                held_defective=held / 4,
            )
            for rung in (1, 2, 4)
        ]
        found = next(model for model in self._plant.models if request.version in ("", model.version))
        return model_pb2.AdviseThresholdResponse(
            name=found.name, version=found.version, advice=curve[1], curve=curve, good=900, defective=300
        )


class _Training(training_pb2_grpc.TrainingServiceServicer):
    def __init__(self, plant: Plant) -> None:
        self._plant = plant

    def StartTraining(self, request: Any, context: Any) -> training_pb2.StartTrainingResponse:
        self._plant.enter("StartTraining")
        job_id = f"job-{len(self._plant.jobs)}"
        if any(states[-1].plan.data == request.plan.data for states in self._plant.jobs.values()):
            raise AlreadyRunning("this data is being trained on", field="plan.data")
        self._plant.jobs[job_id] = [
            training_pb2.Job(job_id=job_id, state=training_pb2.JOB_STATE_QUEUED, plan=request.plan),
            training_pb2.Job(
                job_id=job_id,
                state=training_pb2.JOB_STATE_RUNNING,
                plan=request.plan,
                progress=training_pb2.Progress(stage="training", done=1, total=2, figures={"train_loss": 0.5}),
            ),
            training_pb2.Job(
                job_id=job_id,
                state=training_pb2.JOB_STATE_SUCCEEDED,
                plan=request.plan,
                model="elpv",
                model_version="1b2c1b2c1b2c1b2c",
                not_promoted=self._plant.not_promoted,
            ),
        ]
        return training_pb2.StartTrainingResponse(job=self._plant.jobs[job_id][0])

    def GetJob(self, request: Any, context: Any) -> training_pb2.GetJobResponse:
        self._plant.enter("GetJob")
        return training_pb2.GetJobResponse(job=self._states(request.job_id)[0])

    def ListJobs(self, request: Any, context: Any) -> training_pb2.ListJobsResponse:
        self._plant.enter("ListJobs")
        jobs = [states[0] for states in reversed(self._plant.jobs.values())]
        page, token = _page(jobs, request.page_size, request.page_token)
        return training_pb2.ListJobsResponse(jobs=page, next_page_token=token)

    def WatchJob(self, request: Any, context: Any) -> Iterator[training_pb2.WatchJobResponse]:
        self._plant.enter("WatchJob")
        states = self._states(request.job_id)
        while True:
            self._plant.stream_step("WatchJob")
            yield training_pb2.WatchJobResponse(job=states[0])
            if len(states) == 1:
                return
            states.pop(0)

    def CancelJob(self, request: Any, context: Any) -> training_pb2.CancelJobResponse:
        self._plant.enter("CancelJob")
        job = self._states(request.job_id)[-1]
        job.state = training_pb2.JOB_STATE_CANCELLED
        return training_pb2.CancelJobResponse(job=job)

    def CompareModels(self, request: Any, context: Any) -> training_pb2.CompareModelsResponse:
        self._plant.enter("CompareModels")
        job_id = f"job-{len(self._plant.jobs)}"
        told = {"job_id": job_id, "comparison": request.plan, "plan": training_pb2.TrainingPlan(data=request.plan.data)}
        figures = {"train_loss": 0.5}
        self._plant.jobs[job_id] = [
            training_pb2.Job(state=training_pb2.JOB_STATE_QUEUED, **told),
            training_pb2.Job(
                state=training_pb2.JOB_STATE_RUNNING,
                progress=training_pb2.Progress(stage="cnn, seed 0: training", done=1, total=2, figures=figures),
                **told,
            ),
            training_pb2.Job(state=training_pb2.JOB_STATE_SUCCEEDED, **told)
            if not self._plant.failed
            else training_pb2.Job(state=training_pb2.JOB_STATE_FAILED, error=self._plant.failed, **told),
        ]
        return training_pb2.CompareModelsResponse(job=self._plant.jobs[job_id][0])

    def ReadReport(self, request: Any, context: Any) -> Iterator[training_pb2.ReadReportResponse]:
        self._plant.enter("ReadReport")
        self._states(request.job_id)
        for start in range(0, len(self._plant.report), 500):
            self._plant.stream_step("ReadReport")
            yield training_pb2.ReadReportResponse(zip=self._plant.report[start : start + 500])

    def _states(self, job_id: str) -> list[training_pb2.Job]:
        if job_id not in self._plant.jobs:
            raise NotFound(f"there is no job {job_id}", field="job_id")
        return self._plant.jobs[job_id]


class _Results(results_pb2_grpc.ResultsServiceServicer):
    def __init__(self, plant: Plant) -> None:
        self._plant = plant

    def GetDecision(self, request: Any, context: Any) -> results_pb2.GetDecisionResponse:
        self._plant.enter("GetDecision")
        for record in self._plant.records:
            if record.decision.frame_id == request.frame_id:
                return results_pb2.GetDecisionResponse(record=record)
        raise NotFound(f"no decision on frame {request.frame_id}", field="frame_id")

    def ListDecisions(self, request: Any, context: Any) -> results_pb2.ListDecisionsResponse:
        self._plant.enter("ListDecisions")
        meant = [record for record in self._plant.records if _fits(record, request.filter)]
        page, token = _page(meant, request.page_size, request.page_token)
        return results_pb2.ListDecisionsResponse(records=page, next_page_token=token)

    def WatchDecisions(self, request: Any, context: Any) -> Iterator[results_pb2.WatchDecisionsResponse]:
        plant = self._plant
        gone = threading.Event()

        def leave() -> None:
            gone.set()
            with plant.changed:
                plant.changed.notify_all()

        context.add_callback(leave)
        with plant.changed:
            cursor = request.after if request.HasField("after") else len(plant.records)
        context.send_initial_metadata((("inspectbus-cursor", str(cursor)),))
        plant.enter("WatchDecisions")
        while not gone.is_set():
            with plant.changed:
                while len(plant.records) <= cursor and not gone.is_set():
                    plant.changed.wait(30)
                fresh = plant.records[cursor:]
            for record in fresh:
                plant.stream_step("WatchDecisions")
                cursor = record.cursor
                if _fits(record, request.filter):
                    yield results_pb2.WatchDecisionsResponse(record=record)

    def SubmitLabels(self, request: Any, context: Any) -> results_pb2.SubmitLabelsResponse:
        self._plant.enter("SubmitLabels")
        known = {record.decision.frame_id: record for record in self._plant.records}
        for label in request.labels:
            if label.frame_id not in known:
                raise NotFound(f"no decision on frame {label.frame_id}", field="labels.frame_id")
        for label in request.labels:
            known[label.frame_id].truth = label.label
        return results_pb2.SubmitLabelsResponse(accepted=len(request.labels))

    def GetScores(self, request: Any, context: Any) -> results_pb2.GetScoresResponse:
        self._plant.enter("GetScores")
        meant = [record for record in self._plant.records if _fits(record, request.filter)]
        rows = []
        if request.group_by == results_pb2.SCORES_GROUP_LINE:
            lines = sorted({record.decision.line for record in meant})
            rows = [_scores(line, [r for r in meant if r.decision.line == line]) for line in lines]
        return results_pb2.GetScoresResponse(overall=_scores("", meant), rows=rows)

    def GetAgreement(self, request: Any, context: Any) -> results_pb2.GetAgreementResponse:
        """Of each frame with a part_id "differs" the shadow said the other thing."""
        self._plant.enter("GetAgreement")
        rows: dict[tuple[str, str], results_pb2.Agreement] = {}
        differing = []
        for record in self._plant.records:
            decision = record.decision
            if request.line not in ("", decision.line) or request.station not in ("", decision.station):
                continue
            said = decision.verdict
            if decision.part_id == "differs":
                said = decision_pb2.VERDICT_DEFECTIVE
                differing.append(
                    results_pb2.Disagreement(
                        frame_id=decision.frame_id,
                        line=decision.line,
                        station=decision.station,
                        model_version=decision.model_version,
                        shadow_version="5ad0",
                        decided=decision.verdict,
                        shadow=said,
                        decided_score=decision.score,
                        shadow_score=0.75,
                        recorded_at=record.recorded_at,
                    )
                )
            row = rows.setdefault(
                (decision.line, decision.station),
                results_pb2.Agreement(
                    line=decision.line,
                    station=decision.station,
                    model_version=decision.model_version,
                    shadow_version="5ad0",
                ),
            )
            row.frames += 1
            row.agreeing += said == decision.verdict
            pairs = {(pair.decided, pair.shadow): pair for pair in row.pairs}
            pair = pairs.get((decision.verdict, said)) or row.pairs.add(decided=decision.verdict, shadow=said)
            pair.frames += 1
        page, token = _page(differing, request.page_size, request.page_token)
        first = not request.page_token
        return results_pb2.GetAgreementResponse(
            rows=list(rows.values()) if first else [], disagreements=page, next_page_token=token
        )


def _scores(group: str, records: list[results_pb2.Record]) -> results_pb2.ScoresRow:
    row = results_pb2.ScoresRow(group=group, decisions=len(records))
    row.held = sum(record.decision.verdict == decision_pb2.VERDICT_HOLD for record in records)
    hits = [record for record in records if record.truth == frame_pb2.LABEL_DEFECTIVE]
    if hits:
        row.scores.confusion.true_positives = len(hits)
        row.scores.precision = row.scores.recall = row.scores.f1 = 1.0
    return row


def _fits(record: results_pb2.Record, asked: results_pb2.DecisionFilter) -> bool:
    decision = record.decision
    return (
        asked.line in ("", decision.line)
        and asked.station in ("", decision.station)
        and asked.part_id in ("", decision.part_id)
        and (not asked.verdicts or decision.verdict in asked.verdicts)
        and (not asked.HasField("since") or record.recorded_at.seconds >= asked.since.seconds)
    )


def _page(items: list[Any], size: int, token: str) -> tuple[list[Any], str]:
    begin = int(token or 0)
    end = begin + (size or 100)
    return items[begin:end], str(end) if end < len(items) else ""
