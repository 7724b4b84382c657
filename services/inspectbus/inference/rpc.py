"""The gRPC door: prepared pixels in, a judgement out, through the same batcher as the bus. Makes no record.

On the loop's one thread all is done that a call asks for; its answers come from the threads that compute.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import cached_property, partial
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
from inspectbus.errors import BusClosed, InspectBusError, ModelNotReady
from inspectbus.inference.batcher import Scored
from inspectbus.inference.calls import answers, let_go, patience_of
from inspectbus.inference.choice import Candidate, Choice
from inspectbus.inference.loader import Loader
from inspectbus.inference.models import Member, Models
from inspectbus.inference.request import Request, read
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.verdict import verdict_of
from inspectbus.runtime.handover import Handover
from inspectbus.runtime.http2.server import Server
from inspectbus.runtime.loop_server import Requests
from inspectbus.runtime.refusals import refusal

CONTRACT = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
LEAVE_S = 1.0
"""Until the reader of a stream that is over has ended by itself."""


class _Asked(NamedTuple):
    card: ModelCard
    alias: str
    scored: Future[Scored]


class InferenceRpc:
    def __init__(self, models: Models, settings: InferenceSettings) -> None:
        self._models = models
        self._settings = settings

    def add_to(self, server: Server) -> None:
        """As the function that is generated for it would, but requests with pixels are read where they lie."""
        handlers: dict[str, Any] = {
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

    async def Infer(self, request: Request, context: Any) -> inference_pb2.InferResponse:
        patience_s = patience_of(context, self._settings.call_patience_s)
        asked = self._ask(request, time.monotonic() + patience_s)
        (scored,) = await answers([asked.scored], self._handover, patience_s)
        return inference_pb2.InferResponse(judgement=_judgement(asked.card, asked.alias, scored))

    async def InferStream(self, requests: Requests[Request], context: Any) -> None:
        deadline_s = time.monotonic() + patience_of(context, math.inf)
        stream = _Stream(requests, context, self._handover, window=2 * self._settings.max_batch_size)
        await stream.answer(lambda request: self._ask(request, deadline_s))

    async def GetEngine(self, request: inference_pb2.GetEngineRequest, context: Any) -> inference_pb2.GetEngineResponse:
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

    @cached_property
    def _handover(self) -> Handover:
        return Handover()

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
    """One InferStream: a task of its own reads requests, while the call's gives answers as they come.

    At most `window` requests are under way. Then reading pauses, and gRPC's flow control slows the sender. When the
    caller has gone the call's task is cancelled, and what the other reads has an end.
    """

    def __init__(self, requests: Requests[Request], context: Any, handover: Handover, window: int) -> None:
        self._requests = requests
        self._context = context
        self._handover = handover
        self._places = asyncio.Semaphore(window)
        # What could not be written at once, bounded by the places; and, once, that all may have been written, or why no
        # more requests can be read.
        self._left: asyncio.Queue[InferStreamResponse | Exception | None] = asyncio.Queue()
        self._writing = False
        self._given = 0
        self._total: int | None = None
        """Of answers, when all requests are there."""
        self._open: set[Future[Scored]] = set()
        self._over = False
        self._stopping: BusClosed | None = None

    async def answer(self, ask: Callable[[Request], _Asked]) -> None:
        reading = asyncio.create_task(self._read(ask))
        try:
            await self._write()
            if self._stopping is not None:
                raise self._stopping
        finally:
            self._over = True
            let_go(tuple(self._open))
            self._places.release()  # it waits for one no more
            await asyncio.wait((reading,), timeout=LEAVE_S)
            reading.cancel()

    async def _read(self, ask: Callable[[Request], _Asked]) -> None:
        position = 0
        try:
            async for request in self._requests:
                await self._places.acquire()
                if self._over:
                    return
                self._start(position, ask, request)
                position += 1
        except BusClosed as error:  # the service stops: what was taken is answered first
            self._stopping = error
        except Exception as error:  # no request came, or a fault of ours: the call ends with its name, and hangs never
            self._left.put_nowait(error)
            return
        self._total = position
        self._left.put_nowait(None)

    async def _write(self) -> None:
        while self._given != self._total:
            self._writing = False
            answer = await self._left.get()
            self._writing = True
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                await self._context.write(answer)
                self._gave()

    def _give(self, answer: InferStreamResponse) -> None:
        if self._over:
            return
        if self._writing or not self._left.empty() or not self._context.say(answer):
            self._left.put_nowait(answer)
            return
        self._gave()
        if self._given == self._total:
            self._left.put_nowait(None)

    def _gave(self) -> None:
        self._given += 1
        self._places.release()

    def _start(self, position: int, ask: Callable[[Request], _Asked], request: Request) -> None:
        try:
            card, alias, scored = ask(request)
        except InspectBusError as error:
            self._give(InferStreamResponse(position=position, refusal=refusal(error)))
            return
        self._open.add(scored)
        scored.add_done_callback(partial(self._answer, position, card, alias))

    def _answer(self, position: int, card: ModelCard, alias: str, scored: Future[Scored]) -> None:
        """On the thread that has the answer."""
        self._open.discard(scored)
        if self._over:
            return
        try:
            answer = InferStreamResponse(position=position, judgement=_judgement(card, alias, scored.result()))
        except CancelledError:
            return
        except InspectBusError as error:
            answer = InferStreamResponse(position=position, refusal=refusal(error))
        self._handover.bring(self._give, answer)


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
