"""The gRPC door: prepared pixels in, a judgement out, through the same batcher as the bus. Makes no record."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, NamedTuple

import grpc

from inspectbus.api.v1 import inference_pb2
from inspectbus.api.v1.inference_pb2 import (
    EngineCandidate,
    InferStreamResponse,
    Judgement,
    ServedModel,
)
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import InspectBusError, ModelNotReady
from inspectbus.inference.batcher import Scored
from inspectbus.inference.calls import answers, patience_of
from inspectbus.inference.choice import Candidate, Choice
from inspectbus.inference.loader import Loader
from inspectbus.inference.models import Member, Models
from inspectbus.inference.request import Request, read
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.verdict import verdict_of
from inspectbus.runtime.refusals import refusal

CONTRACT = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
LOOK_S = 0.5
"""How often a stream that has nothing to do looks whether its caller is still there."""


class _Asked(NamedTuple):
    card: ModelCard
    alias: str
    scored: Future[Scored]


class InferenceRpc:
    def __init__(self, models: Models, settings: InferenceSettings) -> None:
        self._models = models
        self._settings = settings

    def add_to(self, server: grpc.Server) -> None:
        """As the function that is generated for it would, but requests with pixels are read where they lie."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Infer": grpc.unary_unary_rpc_method_handler(
                self.Infer, read, inference_pb2.InferResponse.SerializeToString
            ),
            "InferStream": grpc.stream_stream_rpc_method_handler(
                self.InferStream, read, InferStreamResponse.SerializeToString
            ),
            "GetEngine": grpc.unary_unary_rpc_method_handler(
                self.GetEngine,
                inference_pb2.GetEngineRequest.FromString,
                inference_pb2.GetEngineResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(CONTRACT, handlers),))

    def Infer(self, request: Request, context: grpc.ServicerContext) -> inference_pb2.InferResponse:
        patience_s = patience_of(context, self._settings.call_patience_s)
        asked = self._ask(request, time.monotonic() + patience_s)
        (scored,) = answers([asked.scored], context, patience_s)
        return inference_pb2.InferResponse(judgement=_judgement(asked.card, asked.alias, scored))

    def InferStream(self, requests: Iterator[Request], context: grpc.ServicerContext) -> Iterator[InferStreamResponse]:
        deadline_s = time.monotonic() + patience_of(context, math.inf)
        stream = _Stream(requests, context, window=2 * self._settings.max_batch_size)
        return stream.answers(lambda request: self._ask(request, deadline_s))

    def GetEngine(
        self, request: inference_pb2.GetEngineRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GetEngineResponse:
        loader = self._models.named(request.model, "model")[0]
        answer = inference_pb2.GetEngineResponse(
            detail=loader.detail,
            batches=self._models.batches,
            queue_limit=self._settings.queue_limit,
            served=[_served(member, each) for member in self._models.members() for each in member.loaders],
        )
        serving = loader.serving
        if serving is not None:
            answer.ready = True
            answer.engine = serving.engine.name
            answer.device = serving.engine.device
            answer.model = serving.card.name
            answer.model_version = serving.card.version
            answer.preparation_hash = serving.card.preparation.hash
            answer.threshold = serving.card.threshold
            if serving.card.thresholds.band:
                answer.qualified_below = serving.card.thresholds.qualified_below
            answer.loaded_at.FromNanoseconds(int(serving.loaded_at_s * 1e9))
            answer.waiting = loader.waiting
            answer.streams = serving.engine.streams
            answer.candidates.extend(_candidate(each, serving.choice) for each in serving.choice.candidates)
            if serving.choice.measured_at_s is not None:
                answer.measured_at.FromNanoseconds(int(serving.choice.measured_at_s * 1e9))
        return answer

    def _ask(self, request: Request, deadline_s: float) -> _Asked:
        loader = self._models.named(request.model, "model")[0]
        image = request.image()
        with loader.chosen(preparation_hash=request.preparation_hash) as serving:
            if serving is None:
                raise ModelNotReady(f"no model is loaded: {loader.detail}", field="model")
            if request.preparation_hash:
                loader.check_preparation(serving, request.preparation_hash)
            return _Asked(serving.card, serving.alias, serving.call(image, deadline_s))


class _Stream:
    """One InferStream: a thread of its own reads requests, while the call's thread gives answers as they come.

    At most `window` requests are under way. Then reading pauses, and gRPC's flow control slows the sender.
    """

    def __init__(self, requests: Iterator[Request], context: grpc.ServicerContext, window: int) -> None:
        self._requests = requests
        self._context = context
        self._places = threading.Semaphore(window)
        # Bounded by the places. Its last entry is how many answers there are, why no more requests can be read, or None
        # when the caller is gone.
        self._answers: queue.SimpleQueue[InferStreamResponse | Exception | int | None] = queue.SimpleQueue()
        self._open: set[Future[Scored]] = set()
        self._over = False

    def answers(self, ask: Callable[[Request], _Asked]) -> Iterator[InferStreamResponse]:
        reader = threading.Thread(target=self._read, args=(ask,), name="inference-stream", daemon=True)
        reader.start()
        given, total = 0, None
        try:
            while given != total:
                try:
                    answer = self._answers.get(timeout=LOOK_S)
                except queue.Empty:
                    if not self._context.is_active():
                        return
                    continue
                if answer is None:
                    return
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(answer, int):
                    total = answer
                    continue
                yield answer
                given += 1
                self._places.release()
        finally:
            self._over = True
            for future in list(self._open):
                future.cancel()
            reader.join(timeout=2 * LOOK_S)

    def _read(self, ask: Callable[[Request], _Asked]) -> None:
        position = 0
        try:
            for request in self._requests:
                while not self._places.acquire(timeout=LOOK_S):
                    if self._over:
                        return
                self._start(position, ask, request)
                position += 1
        except grpc.RpcError:
            self._answers.put(None)  # the caller is gone, and its place is somebody else's at once
            return
        except Exception as error:  # no request came, or a fault of ours: the call ends with its name, and hangs never
            self._answers.put(error)
            return
        self._answers.put(position)

    def _start(self, position: int, ask: Callable[[Request], _Asked], request: Request) -> None:
        try:
            card, alias, scored = ask(request)
        except InspectBusError as error:
            self._answers.put(InferStreamResponse(position=position, refusal=refusal(error)))
            return
        self._open.add(scored)
        scored.add_done_callback(partial(self._answer, position, card, alias))
        if self._over:
            scored.cancel()

    def _answer(self, position: int, card: ModelCard, alias: str, scored: Future[Scored]) -> None:
        self._open.discard(scored)
        try:
            answer = InferStreamResponse(position=position, judgement=_judgement(card, alias, scored.result()))
        except CancelledError:
            return
        except InspectBusError as error:
            answer = InferStreamResponse(position=position, refusal=refusal(error))
        self._answers.put(answer)


def _candidate(each: Candidate, choice: Choice) -> EngineCandidate:
    return EngineCandidate(
        name=each.name,
        chosen=each.name == choice.chosen,
        reason=each.reason,
        images_per_s=each.images_per_s,
        deviation=each.deviation,
    )


def _served(member: Member, loader: Loader) -> ServedModel:
    served = ServedModel(
        model=loader.name,
        alias=loader.alias,
        detail=loader.detail or member.objection(loader),
        waiting=loader.waiting,
        computed_s=loader.computed_s,
    )
    serving = loader.serving
    if serving is not None:
        served.ready = True
        served.alias = serving.alias
        served.model_version = serving.card.version
        served.preparation_hash = serving.card.preparation.hash
        served.engine, served.device = serving.engine.name, serving.engine.device
        served.loaded_at.FromNanoseconds(int(serving.loaded_at_s * 1e9))
    return served


def _judgement(card: ModelCard, alias: str, scored: Scored) -> Judgement:
    """Raises Internal when the score is none."""
    thresholds = card.thresholds
    return Judgement(
        score=scored.score,
        threshold=thresholds.defective_from,
        qualified_below=thresholds.qualified_below if thresholds.band else None,
        verdict=verdict_of(scored.score, thresholds),
        model=card.name,
        model_version=card.version,
        model_alias=alias,
    )
