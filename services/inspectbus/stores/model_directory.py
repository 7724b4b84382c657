"""Which version does an alias name? Asked of the ModelService, remembered on disk for when its owner is away.

name@alias ─> GetModel (at most every `fresh_s`) ─> ModelCard
               └─ away, or refusing us: the last answer, from memory or the cache folder; without one, which of the two
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import grpc
import structlog
from pydantic import ValidationError

from inspectbus.api.v1 import model_pb2, model_pb2_grpc
from inspectbus.channels import NO_ACCESS, Access, open_channel
from inspectbus.domain.model_version import ModelCard
from inspectbus.domain.names import checked_name
from inspectbus.errors import ModelNotReady
from inspectbus.runtime.tracing import carried

log = structlog.get_logger(__name__)

_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class ModelDirectory:
    """Thread-safe. Close it to end its channel."""

    def __init__(
        self,
        address: str,
        cache_dir: Path,
        *,
        access: Access = NO_ACCESS,
        fresh_s: float = 5.0,
        patience_s: float = 3.0,
    ) -> None:
        self._channel = open_channel(address, access)
        self._owner = model_pb2_grpc.ModelServiceStub(carried(self._channel))
        self._address = address
        self._cache_dir = cache_dir
        self._fresh_s = fresh_s
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[float, ModelCard | None]] = {}
        self._without: dict[tuple[str, str], str] = {}
        """Why the last question brought no card."""
        self._told: grpc.StatusCode | None = None

    def __enter__(self) -> ModelDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def resolve(self, name: str, alias: str) -> ModelCard:
        """The card behind name@alias. Raises ModelNotReady when nobody knows one, saying whether there is none or its
        owner did not tell."""
        key = (checked_name(name, "model"), checked_name(alias, "model_alias"))
        with self._lock:
            asked_at, card = self._known.get(key, (float("-inf"), None))
            if time.monotonic() - asked_at >= self._fresh_s:
                card = self._ask(key) or card or self._remembered(key)
                self._known[key] = (time.monotonic(), card)
            why = self._without.get(key, "")
        if card is None:
            raise ModelNotReady(why, field="model")
        return card

    def _ask(self, key: tuple[str, str]) -> ModelCard | None:
        name, alias = key
        request = model_pb2.GetModelRequest(name=name, alias=alias)
        try:
            answer = self._owner.GetModel(request, timeout=self._patience_s)
            card = ModelCard.model_validate_json(answer.model.card_json)
        except grpc.RpcError as error:
            self._without[key] = self._why(key, error)
            code = error.code()
            if code != self._told and code != grpc.StatusCode.NOT_FOUND:  # once: it is asked every few seconds
                log.warning("model owner does not tell, using the last answer", why=self._without[key])
            self._told = code
            return None
        except ValidationError as error:
            log.error("model owner sent a card we cannot read", model=name, error=str(error))
            self._without[key] = f"{self._address} sent a card of {name}@{alias} that this version cannot read"
            return None
        self._told = None
        self._remember(key, card)
        return card

    def _why(self, key: tuple[str, str], error: grpc.RpcError) -> str:
        asked = "@".join(key)
        code = error.code()
        if code == grpc.StatusCode.NOT_FOUND:
            return f"no model version stands behind {asked} yet (asked {self._address})"
        if code in _REFUSALS:
            return (
                f"{self._address} does not tell us what {asked} is: its tokens.yaml has no line for our certificate or "
                f"token with role viewer ({error.details()})"
            )
        return f"which version is {asked}? {self._address} does not answer ({code.name}: {error.details()})"

    def _file(self, key: tuple[str, str]) -> Path:
        return self._cache_dir / f"{key[0]}@{key[1]}.json"

    def _remember(self, key: tuple[str, str], card: ModelCard) -> None:
        file = self._file(key)
        text = card.model_dump_json()
        try:
            if file.exists() and file.read_text() == text:
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_text(text)
            part.replace(file)
        except OSError as error:
            log.warning("could not remember the model version", file=str(file), error=str(error))

    def _remembered(self, key: tuple[str, str]) -> ModelCard | None:
        try:
            return ModelCard.model_validate_json(self._file(key).read_text())
        except (OSError, ValidationError):
            return None
