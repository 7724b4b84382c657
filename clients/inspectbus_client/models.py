"""Model versions, the engine that has one loaded, and the judgement of prepared pixels."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import cached_property

from inspectbus.api.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc, prepared_frame_pb2
from inspectbus_client.values import (
    AdvisedThreshold,
    AliasChange,
    Engine,
    Judgement,
    Model,
    Pixels,
    Prepared,
    read,
    timestamp,
)
from inspectbus_client.wire import Wire


class Models:
    """The part of the client that asks about models, and says which one an alias names."""

    _wire: Wire

    def models(self, name: str = "", *, timeout_s: float | None = None) -> list[Model]:
        """Every version, newest first; of one name if given."""
        request = model_pb2.ListModelsRequest(name=name)
        answer = self._wire.ask("training", self._model_door.ListModels, request, timeout_s=timeout_s, repeatable=True)
        return [read(Model, model) for model in answer.models]

    def model(
        self,
        name: str,
        *,
        version: str = "",
        alias: str = "production",
        at: datetime | None = None,
        timeout_s: float | None = None,
    ) -> Model:
        """One version, by its id if given, else by alias: the one it names now, or named at a moment."""
        request = model_pb2.GetModelRequest(name=name, at=timestamp(at, "at") if at else None)
        if version:
            request.version = version
        else:
            request.alias = alias
        answer = self._wire.ask("training", self._model_door.GetModel, request, timeout_s=timeout_s, repeatable=True)
        return read(Model, answer.model)

    def set_alias(
        self,
        name: str,
        alias: str,
        version: str,
        *,
        reason: str = "",
        force: bool = False,
        timeout_s: float | None = None,
    ) -> AliasChange | None:
        """Points an alias at a version; None when it named that already.

        Raises WorseModel where it is "production" and the version's scores are worse than those of the one it names,
        unless forced with a reason; CorruptModel for a version that the store has not as it was made. Not tried again
        by itself: between two tries somebody may have set it otherwise.
        """
        request = model_pb2.SetAliasRequest(name=name, alias=alias, version=version, reason=reason, force=force)
        answer = self._wire.ask("training", self._model_door.SetAlias, request, timeout_s=timeout_s)
        return read(AliasChange, answer.change) if answer.HasField("change") else None

    def rollback(
        self, name: str, alias: str = "production", *, reason: str = "", timeout_s: float | None = None
    ) -> AliasChange:
        """Points an alias back at the version it named before; again, one further back.

        Not tried again by itself: it would go back twice.
        """
        request = model_pb2.RollbackRequest(name=name, alias=alias, reason=reason)
        answer = self._wire.ask("training", self._model_door.Rollback, request, timeout_s=timeout_s)
        return read(AliasChange, answer.change)

    def alias_history(
        self, name: str, alias: str = "", *, page_size: int = 50, timeout_s: float | None = None
    ) -> Iterator[AliasChange]:
        """Newest first, of all aliases unless one is named. Pages are fetched as they are needed; the deadline is each
        page's."""
        request = model_pb2.ListAliasHistoryRequest(name=name, alias=alias, page_size=page_size)
        method = self._model_door.ListAliasHistory
        while True:
            page = self._wire.ask("training", method, request, timeout_s=timeout_s, repeatable=True)
            yield from (read(AliasChange, change) for change in page.changes)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def advise_threshold(
        self,
        name: str,
        *,
        escape_ppm: float,
        held_limit: float = 0.0,
        version: str = "",
        alias: str = "production",
        timeout_s: float | None = None,
    ) -> AdvisedThreshold:
        """Thresholds that let at most escape_ppm of a million defective parts pass, and what that costs; 95 % sure.

        held_limit: the share of good parts that may be held; 0 holds none. Raises NotPossibleNow when the version's
        validation images are too few to show a limit.
        """
        request = model_pb2.AdviseThresholdRequest(name=name, escape_ppm=escape_ppm, held_limit=held_limit)
        if version:
            request.version = version
        else:
            request.alias = alias
        answer = self._wire.ask(
            "training", self._model_door.AdviseThreshold, request, timeout_s=timeout_s, repeatable=True
        )
        return read(AdvisedThreshold, answer)

    def engine(self, model: str = "", *, timeout_s: float | None = None) -> Engine:
        """What inference has loaded of a model, by default its default one, since when, and the batches it ran."""
        request = inference_pb2.GetEngineRequest(model=model)
        answer = self._wire.ask("inference", self._inference.GetEngine, request, timeout_s=timeout_s, repeatable=True)
        return read(Engine, answer)

    def infer(
        self,
        pixels: Prepared | Pixels,
        *,
        preparation_hash: str = "",
        model: str = "",
        timeout_s: float | None = None,
    ) -> Judgement:
        """What the network says of prepared pixels. Makes no record. Raises NotFound for a model not served there.

        Bare pixels without a hash are taken on your word that they were prepared as the model expects.
        """
        if isinstance(pixels, Prepared):
            preparation_hash = preparation_hash or pixels.preparation_hash
            model = model or pixels.model
            pixels = pixels.pixels
        message = prepared_frame_pb2.Pixels(
            height=pixels.height, width=pixels.width, channels=pixels.channels, data=pixels.data
        )
        request = inference_pb2.InferRequest(pixels=message, preparation_hash=preparation_hash, model=model)
        answer = self._wire.ask("inference", self._inference.Infer, request, timeout_s=timeout_s, repeatable=True)
        return read(Judgement, answer.judgement)

    @cached_property
    def _model_door(self) -> model_pb2_grpc.ModelServiceStub:
        return model_pb2_grpc.ModelServiceStub(self._wire.channel("training"))

    @cached_property
    def _inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self._wire.channel("inference"))
