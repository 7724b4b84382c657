"""A ModelService that knows what it is told: small and real, over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from inspectbus.api.v1 import model_pb2, model_pb2_grpc
from inspectbus.domain.model_version import ModelCard


class ModelOwner(model_pb2_grpc.ModelServiceServicer):
    """Set `cards[(name, alias)]` to register a version; the address is where it is asked."""

    def __init__(self) -> None:
        self.cards: dict[tuple[str, str], ModelCard] = {}
        self.address = ""

    def ListModels(  # noqa: N802 - the contract's name
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "nobody asks this one")

    def GetModel(  # noqa: N802 - the contract's name
        self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.GetModelResponse:
        card = self.cards.get((request.name, request.alias))
        if card is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        model = model_pb2.Model(
            name=card.name, version=card.version, aliases=[request.alias], card_json=card.model_dump_json()
        )
        return model_pb2.GetModelResponse(model=model)


@contextmanager
def model_owner() -> Iterator[ModelOwner]:
    """Serves on a free port of this machine until left."""
    owner = ModelOwner()
    with ThreadPoolExecutor(2, thread_name_prefix="model-owner") as pool:
        server = grpc.server(pool)
        model_pb2_grpc.add_ModelServiceServicer_to_server(owner, server)
        owner.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield owner
        finally:
            server.stop(0).wait(5)
