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
from inspectbus.inference.oip.request import images_of, output_names, preparation_hash_of
from inspectbus.inference.oip.response import response_of
from inspectbus.inference.oip.tensors import input_of, outputs_of
from inspectbus.inference.serving import Serving
from inspectbus.inference.settings import InferenceSettings

PLATFORM = "inspectbus_modelversion"
"""The standard spells it <project>_<format>; GetEngine tells what runs it."""


class OpenInferenceRpc(GRPCInferenceServiceServicer):
    def __init__(self, loader: Loader, settings: InferenceSettings) -> None:
        self._loader = loader
        self._settings = settings
        self._version = version("inspectbus")

    def ServerLive(self, request: oip.ServerLiveRequest, context: grpc.ServicerContext) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    def ServerReady(self, request: oip.ServerReadyRequest, context: grpc.ServicerContext) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._loader.serving is not None and not self._loader.closing)

    def ModelReady(self, request: oip.ModelReadyRequest, context: grpc.ServicerContext) -> oip.ModelReadyResponse:
        try:
            with self._serving(request.name, request.version):
                return oip.ModelReadyResponse(ready=not self._loader.closing)
        except (ModelNotReady, NotFound):
            return oip.ModelReadyResponse(ready=False)

    def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="inspectbus", version=self._version)

    def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ModelMetadataResponse:
        with self._serving(request.name, request.version) as serving:
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
        with self._serving(request.model_name, request.model_version, preparation_hash) as serving:
            card = serving.card
            if preparation_hash:
                self._loader.check_preparation(serving, preparation_hash)
            names = output_names(request, card)
            images = images_of(request, card, self._settings.queue_limit)
            patience_s = patience_of(context, self._settings.call_patience_s)
            asked = serving.call_all(images, time.monotonic() + patience_s)
        return response_of(request, names, card, answers(asked, context, patience_s))

    @contextmanager
    def _serving(self, name: str, version: str, preparation_hash: str = "") -> Iterator[Serving]:
        """What serves, held, when that is what was asked for. Raises ModelNotReady and NotFound."""
        with self._loader.chosen(preparation_hash=preparation_hash, version=version) as serving:
            if serving is None:
                raise ModelNotReady(f"no model is loaded: {self._loader.detail}", field="model_name")
            card = serving.card
            if name != card.name:
                raise NotFound(f"there is no model {name!r} here; {card.name} is loaded", field="model_name")
            if version not in ("", card.version):
                raise NotFound(
                    f"there is no version {version!r} of {name} here; {card.version} is loaded", field="model_version"
                )
            yield serving
