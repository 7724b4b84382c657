"""The calls of the Open Inference Protocol: is it ready, what does it take, what does it say of these images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple

import grpc

from inspectbus.api.oip import open_inference_pb2 as oip
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import ModelNotReady, NotFound
from inspectbus.inference.batcher import Scored
from inspectbus.inference.calls import answers, let_go, patience_of
from inspectbus.inference.loader import Loader
from inspectbus.inference.models import Models
from inspectbus.inference.oip.request import Asked, images_of, output_names, preparation_hash_of, read
from inspectbus.inference.oip.response import response_of
from inspectbus.inference.oip.tensors import input_of, outputs_of
from inspectbus.inference.serving import Serving
from inspectbus.inference.settings import InferenceSettings
from inspectbus.runtime.handover import Handover
from inspectbus.runtime.http2.server import Server

PLATFORM = "inspectbus_modelversion"
"""The standard spells it <project>_<format>; GetEngine tells what runs it."""
_SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
STANDARD = _SERVICE.full_name


class _Waiting(NamedTuple):
    card: ModelCard
    names: list[str]
    scored: list[Future[Scored]]


class OpenInferenceRpc:
    def __init__(self, models: Models, settings: InferenceSettings) -> None:
        self._models = models
        self._settings = settings
        self._version = version("inspectbus")

    def add_to(self, server: Server) -> None:
        """As the function that is generated for it would, but of what is to be judged it is known how large it is."""
        handlers: dict[str, Any] = {
            method.name: grpc.unary_unary_rpc_method_handler(
                getattr(self, method.name),
                read if method.name == "ModelInfer" else getattr(oip, method.input_type.name).FromString,
                getattr(oip, method.output_type.name).SerializeToString,
            )
            for method in _SERVICE.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(STANDARD, handlers),))

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Any) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Any) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._models.default.serving is not None and not self._models.closing)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Any) -> oip.ModelReadyResponse:
        try:
            with self._serving(request.name, request.version):
                return oip.ModelReadyResponse(ready=not self._models.closing)
        except (ModelNotReady, NotFound):
            return oip.ModelReadyResponse(ready=False)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Any) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="inspectbus", version=self._version)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Any) -> oip.ModelMetadataResponse:
        with self._serving(request.name, request.version) as (_, serving):
            card = serving.card
        return oip.ModelMetadataResponse(
            name=card.name,
            versions=[card.version],
            platform=PLATFORM,
            inputs=[input_of(card)],
            outputs=outputs_of(card),
        )

    async def ModelInfer(self, request: Asked, context: Any) -> oip.ModelInferResponse:
        patience_s = patience_of(context, self._settings.call_patience_s)
        deadline_s = time.monotonic() + patience_s
        if request.small:
            waiting = self._ask(request.message, deadline_s)
        else:
            waiting = await self._asked_beside(request.message, deadline_s)
        scored = await answers(waiting.scored, self._handover, patience_s)
        return response_of(request.message, waiting.names, waiting.card, scored)

    async def _asked_beside(self, request: oip.ModelInferRequest, deadline_s: float) -> _Waiting:
        """On a thread beside the loop."""
        asking = asyncio.ensure_future(asyncio.to_thread(self._ask, request, deadline_s))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(_let_go)
            raise
        finally:
            # A refusal knows this frame: the two, pixels and all, would wait for the garbage collector.
            del asking

    def _ask(self, request: oip.ModelInferRequest, deadline_s: float) -> _Waiting:
        preparation_hash = preparation_hash_of(request)
        with self._serving(request.model_name, request.model_version, preparation_hash) as (loader, serving):
            card = serving.card
            if preparation_hash:
                loader.check_preparation(serving, preparation_hash)
            names = output_names(request, card)
            images = images_of(request, card, self._settings.queue_limit)
            return _Waiting(card, names, serving.call_all(images, deadline_s))

    @cached_property
    def _handover(self) -> Handover:
        return Handover()

    @contextmanager
    def _serving(self, name: str, version: str, preparation_hash: str = "") -> Iterator[tuple[Loader, Serving]]:
        """What was asked for, held. Raises ModelNotReady and NotFound.

        Without a version it is production's; by its version any that is loaded answers, a canary or a shadow too.
        """
        loaders = self._models.named(name, "model_name") if name else []
        if not loaders:
            raise NotFound(f"no model is named; {self._models.default.name} is loaded", field="model_name")
        for loader in loaders:
            with loader.chosen(preparation_hash=preparation_hash, version=version) as serving:
                if serving is not None and version in ("", serving.card.version):
                    yield loader, serving
                    return
        loaded = [loader.serving.card.version for loader in loaders if loader.serving is not None]
        if not loaded:
            raise ModelNotReady(f"no model is loaded: {loaders[0].detail}", field="model_name")
        raise NotFound(
            f"there is no version {version!r} of {name} here; {', '.join(loaded)} is loaded", field="model_version"
        )


def _let_go(asking: asyncio.Future[_Waiting]) -> None:
    if not asking.cancelled() and asking.exception() is None:
        let_go(asking.result().scored)
