"""The calls of the Open Inference Protocol: is it ready, what does it take, what does it say of these images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import grpc

from inspectbus.api.oip import open_inference_pb2 as oip
from inspectbus.api.oip.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from inspectbus.errors import ModelNotReady, NotFound
from inspectbus.inference.calls import answers, patience_of
from inspectbus.inference.loader import Loader
from inspectbus.inference.models import Models
from inspectbus.inference.oip.request import images_of, output_names, preparation_hash_of
from inspectbus.inference.oip.response import response_of
from inspectbus.inference.oip.tensors import input_of, outputs_of
from inspectbus.inference.serving import Serving
from inspectbus.inference.settings import InferenceSettings

PLATFORM = "inspectbus_modelversion"
"""The standard spells it <project>_<format>; GetEngine tells what runs it."""


class OpenInferenceRpc(GRPCInferenceServiceServicer):
    def __init__(self, models: Models, settings: InferenceSettings) -> None:
        self._models = models
        self._settings = settings
        self._version = version("inspectbus")

    def ServerLive(self, request: oip.ServerLiveRequest, context: grpc.ServicerContext) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    def ServerReady(self, request: oip.ServerReadyRequest, context: grpc.ServicerContext) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._models.default.serving is not None and not self._models.closing)

    def ModelReady(self, request: oip.ModelReadyRequest, context: grpc.ServicerContext) -> oip.ModelReadyResponse:
        try:
            with self._serving(request.name, request.version):
                return oip.ModelReadyResponse(ready=not self._models.closing)
        except (ModelNotReady, NotFound):
            return oip.ModelReadyResponse(ready=False)

    def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="inspectbus", version=self._version)

    def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ModelMetadataResponse:
        with self._serving(request.name, request.version) as (_, serving):
            card = serving.card
        return oip.ModelMetadataResponse(
            name=card.name,
            versions=[card.version],
            platform=PLATFORM,
            inputs=[input_of(card)],
            outputs=outputs_of(card),
        )

    def ModelInfer(self, request: oip.ModelInferRequest, context: grpc.ServicerContext) -> oip.ModelInferResponse:
        preparation_hash = preparation_hash_of(request)
        with self._serving(request.model_name, request.model_version, preparation_hash) as (loader, serving):
            card = serving.card
            if preparation_hash:
                loader.check_preparation(serving, preparation_hash)
            names = output_names(request, card)
            images = images_of(request, card, self._settings.queue_limit)
            patience_s = patience_of(context, self._settings.call_patience_s)
            asked = serving.call_all(images, time.monotonic() + patience_s)
        return response_of(request, names, card, answers(asked, context, patience_s))

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
