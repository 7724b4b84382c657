"""What production names, as a test says, with real versions behind it; and engines that say which version they run."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from inspectbus.api.v1 import model_pb2
from inspectbus.bus import Bus, Message, topics
from inspectbus.domain.model_version import ModelCard
from inspectbus.inference.choice import Candidate, Choice
from inspectbus.inference.engine import Engine, Images, Output
from inspectbus.inference.settings import InferenceSettings
from inspectbus.stores.models import ModelStore
from tests.doubles.model_owner import ModelOwner, model_owner

PATIENCE_S = 20.0


class Production:
    """The owner of the aliases and the store of the versions."""

    def __init__(self, owner: ModelOwner, address: str, folder: Path) -> None:
        self._owner = owner
        self.address = address
        self.folder = folder
        """Of the store: <name>/<version>/ below it."""
        self._store = ModelStore(self.url, folder.parent / "not-used")

    @property
    def url(self) -> str:
        return self.folder.as_uri()

    def put(self, version: Path) -> ModelCard:
        """Into the store; production goes on naming what it names."""
        return self._store.publish(version)

    def asked(self) -> int:
        """How often somebody has asked what an alias names."""
        return self._owner.asked

    def name(self, card: ModelCard, news_to: Bus | None = None, *, alias: str = "production") -> None:
        """Production, or another alias, names this version from now on; without a bus, the news of it is lost."""
        self._owner.cards[card.name, alias] = card
        if news_to is not None:
            change = model_pb2.AliasChange(name=card.name, alias=alias, version=card.version)
            message = Message(change.SerializeToString(), ("model", "alias-changed"), "training")
            news_to.publish(topics.EVENTS, message).result(PATIENCE_S)


@contextmanager
def production(folder: Path) -> Iterator[Production]:
    with model_owner() as (owner, address):
        yield Production(owner, address, folder)


class SignedEngine:
    """Gives every image its version's own score. While `gate` is shut it stops inside `infer`."""

    name = "signed"
    device = "here"
    streams = 1
    best_batch = None

    def __init__(self, score: float, ran: Callable[[], None]) -> None:
        self._score = np.float32(score)
        self._ran = ran
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, images: Images) -> Output:
        self._ran()
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        return Output(np.full(len(images), self._score, np.float32))


class SignedLoads:
    """Takes `chosen_engine`'s place in the loader: loads as the test says."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        """Versions, in the order in which their loads began."""
        self.niceness: list[int] = []
        """Of the threads that load them."""
        self.entered = threading.Semaphore(0)
        """Released each time a load has begun."""
        self.gate = threading.Event()
        """Shut, a load stops in the middle."""
        self.gate.set()
        self.refused: dict[str, Exception] = {}
        self.runs: list[str] = []
        """Of all engines: the versions, in the order in which their runs began."""
        self._scores: dict[str, float] = {}
        self._engines: dict[str, weakref.ref[SignedEngine]] = {}

    def __call__(
        self, settings: InferenceSettings, folder: Path, card: ModelCard, *, alike: Choice | None = None
    ) -> tuple[Engine, Choice]:
        assert folder.name == card.version
        self.begun.append(card.version)
        self.niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if card.version in self.refused:
            raise self.refused[card.version]
        engine = SignedEngine(self.score(card.version), partial(self.runs.append, card.version))
        self._engines[card.version] = weakref.ref(engine)
        return engine, Choice(chosen="signed", candidates=(Candidate(name="signed"),))

    def score(self, version: str) -> float:
        """Of every image that this version judges; exact in float32, and no other version's."""
        return self._scores.setdefault(version, (len(self._scores) + 1) / 64)

    def engine(self, version: str) -> SignedEngine:
        engine = self.alive(version)
        assert engine is not None
        return engine

    def alive(self, version: str) -> SignedEngine | None:
        """The engine of the version's last load; None once nobody has it any more."""
        return self._engines[version]()
