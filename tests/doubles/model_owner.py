"""A ModelService that knows what a test tells it, on a real port."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from inspectbus.api.v1 import model_pb2, model_pb2_grpc
from inspectbus.domain.model_version import Architecture, DataFingerprint, ModelCard, Normalisation, PinnedImage
from inspectbus.domain.preparation import Preparation


class ModelOwner(model_pb2_grpc.ModelServiceServicer):
    """What preprocessing and inference ask is answered; aliases are changed by the test."""

    def __init__(self) -> None:
        self.cards: dict[tuple[str, str], ModelCard] = {}
        """By name and alias."""
        self.asked = 0
        """GetModel calls."""

    def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=[_message(card) for card in self.cards.values()])

    def GetModel(self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext) -> model_pb2.GetModelResponse:
        self.asked += 1
        card = self.cards.get((request.name, request.alias))
        if card is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        assert card is not None
        return model_pb2.GetModelResponse(model=_message(card))

    def SetAlias(self, request: model_pb2.SetAliasRequest, context: grpc.ServicerContext) -> model_pb2.SetAliasResponse:
        raise NotImplementedError

    def Rollback(self, request: model_pb2.RollbackRequest, context: grpc.ServicerContext) -> model_pb2.RollbackResponse:
        raise NotImplementedError

    def ListAliasHistory(
        self, request: model_pb2.ListAliasHistoryRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListAliasHistoryResponse:
        raise NotImplementedError

    def AdviseThreshold(
        self, request: model_pb2.AdviseThresholdRequest, context: grpc.ServicerContext
    ) -> model_pb2.AdviseThresholdResponse:
        raise NotImplementedError


def _message(card: ModelCard) -> model_pb2.Model:
    return model_pb2.Model(name=card.name, version=card.version, card_json=card.model_dump_json())


@contextmanager
def model_owner() -> Iterator[tuple[ModelOwner, str]]:
    """Yields the owner and its address."""
    owner = ModelOwner()
    server = grpc.server(ThreadPoolExecutor(4, thread_name_prefix="model-owner"))
    model_pb2_grpc.add_ModelServiceServicer_to_server(owner, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield owner, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(5)


def card_for(preparation: Preparation, name: str = "cells") -> ModelCard:
    """A card that says all a preprocessing service reads; there are no files behind it."""
    return ModelCard(
        name=name,
        architecture=Architecture(backbone="test_efficientnet"),
        preparation=preparation,
        normalisation=Normalisation(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)),
        threshold=0.5,
        validation_scores={},
        data=DataFingerprint(
            name="none",
            sha256="0" * 64,
            train_good=0,
            train_defective=0,
            validation_good=0,
            validation_defective=0,
            split="none",
        ),
        seed=0,
        code_revision="test",
        created_at="2026-01-01T00:00:00+00:00",
        files={"weights.safetensors": "0" * 64},
        pinned=(PinnedImage(file="pinned/0.png", score=0.5),),
    )
