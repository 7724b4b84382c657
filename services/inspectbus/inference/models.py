"""The models that one service serves: those it was told, and those its stations' recipes name, found by their frames.

prepared frame ── model, alias ──> Member: a loader ──┬─> the version that decides
                    │                                 ├─ canary ─> a version that decides some of its frames
                    │                                 └─ shadow ─> a version that is only compared with it
                    └── one more than `models_limit`: the longest idle one is let go, or the frame is held

Each has a loader of its own, so each follows its own alias. They share the engines' streams (`streams`). A call opens
no model: it reaches those that are here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from inspectbus.domain.model_version import CANARY, SHADOW
from inspectbus.errors import ModelNotReady, NotFound
from inspectbus.inference.loader import Common, Loader, LoaderMetrics
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.inference.serving import Serving
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.streams import Streams
from inspectbus.runtime.watchdog import Watchdog

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Member:
    """A model by the alias that recipes name, with the versions that stand beside it."""

    loader: Loader
    canary: Loader | None
    """Decides some of its frames."""
    shadow: Loader | None
    """Decides nothing."""
    aside: ThreadPoolExecutor
    """One thread, for its frames that wait: the first to have come is the first whose patience ends, and all are told
    at once. The frames of other models do not wait behind them."""
    told: bool
    """By the settings: it stays, however idle it is."""
    asked_s: float = field(default_factory=time.monotonic)
    """When a frame asked for it last; monotonic."""

    @property
    def loaders(self) -> list[Loader]:
        return [loader for loader in (self.loader, self.canary, self.shadow) if loader is not None]

    def objection(self, loader: Loader) -> str:
        """Why a version that stands beside judges no frames although it is loaded; empty where it may."""
        serving, production = loader.serving, self.loader.serving
        if serving is None or production is None:
            return ""
        expected, given = serving.card.preparation.hash, production.card.preparation.hash
        if expected == given:
            return ""
        return (
            f"{serving.card.version} expects preparation {expected}, and frames are prepared as "
            f"{production.card.version} expects, {given}: it judges none of them"
        )


class Models:
    """Thread-safe. Use as a context; leaving it drains the batchers."""

    def __init__(self, settings: InferenceSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._members: dict[tuple[str, str], Member] = {}
        self._closing = False
        metrics = LoaderMetrics(registry)
        self._batching = BatcherMetrics(registry, settings.max_batch_size)
        self._watchdog = Watchdog(settings.call_limit_s)
        self._streams = Streams(settings.streams, ahead=settings.runs_ahead)
        self._common = Common(self._batching, metrics, self._watchdog, self._streams, self._judging)
        # What shadows compute says nothing of how long a line waits.
        unseen = BatcherMetrics(CollectorRegistry(), settings.shadow_batch_size)
        self._shadows = Common(
            unseen, metrics, self._watchdog, self._streams, self._judging, self._common.turns, self._common.started_s
        )
        self._house = ExitStack()
        metrics.ready.set_function(lambda: float(self._default.loader.serving is not None))
        self._default = self._opened(settings.model, settings.model_alias, told=True)

    def __enter__(self) -> Models:
        self._house.enter_context(self._watchdog)
        # One thread: a model that is let go may take its time, and whoever asks for another must not wait for it.
        self._closer = self._house.enter_context(ThreadPoolExecutor(1, "inference-models"))
        self._join(self._default)
        for name in self._settings.models:
            if name != self._settings.model:
                self._join(self._opened(name, self._settings.model_alias, told=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop_waiting()
        members = self.members()
        with ThreadPoolExecutor(len(members)) as closers:  # each has the whole of the patience, and all at once
            list(closers.map(_close, members))
        self._house.close()

    @property
    def default(self) -> Loader:
        """The one that `settings.model` names."""
        return self._default.loader

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def batches(self) -> dict[int, int]:
        """Runs of all engines since start, by size; without those of shadows."""
        return {size: count for size, count in self._batching.sizes.items() if count}

    def members(self) -> list[Member]:
        """The default model first."""
        with self._lock:
            return list(self._members.values())

    def loaders(self) -> list[Loader]:
        """The default model's first, each model's before its canary's and its shadow's."""
        return [loader for member in self.members() for loader in member.loaders]

    def asked_for(self, name: str, alias: str) -> Member:
        """For a frame. Opens the model where it is a new one; raises ModelNotReady at the limit.

        A folder is all that a service with `model_dir` ever has: whether it is the one is for its card to say.
        """
        with self._lock:
            member = self._default if self._settings.model_dir is not None else self._members.get((name, alias))
            if member is not None:
                member.asked_s = time.monotonic()
                return member
            if self._closing:
                raise ModelNotReady("the service ends")
            leaving = self._make_room(name, alias)
            member = self._opened(name, alias, told=False)
            self._members[name, alias] = member
        if leaving is not None:
            log.info("a model is let go", model=leaving.loader.model, alias=leaving.loader.alias)
            self._closer.submit(_close, leaving)
        log.info("a model is asked for", model=name, alias=alias)
        _start(member)
        return member

    def named(self, name: str, field: str) -> list[Loader]:
        """For a call: those that serve the model, the one to take where none is named by its version first.

        The default model where the name is empty. Raises NotFound naming the request's field.
        """
        if not name:
            return self._default.loaders[:1]
        served = self.loaders()
        found = [loader for loader in served if loader.may_be(name)]
        if not found:
            names = dict.fromkeys(loader.name for loader in served)
            raise NotFound(f"there is no model {name[:80]!r} here; {', '.join(names)} is loaded", field=field)
        return sorted(found, key=lambda loader: loader.alias != self._settings.model_alias)

    def look(self, name: str, alias: str) -> None:
        """The alias may name another version now."""
        for loader in self.loaders():
            if (loader.model, loader.alias) == (name, alias):
                loader.look()

    def stop_waiting(self) -> None:
        """The service ends: nobody need wait for a model any more."""
        with self._lock:
            self._closing = True
        for loader in self.loaders():
            loader.stop_waiting()

    def _opened(self, name: str, alias: str, *, told: bool) -> Member:
        settings = self._settings
        how: dict[str, Any] = {"model": name}
        canary = shadow = None
        if alias == settings.model_alias and settings.has_canary:
            canary = Loader(settings.model_copy(update={**how, "model_alias": CANARY}), self._common)
        if alias == settings.model_alias and settings.has_shadow:
            how |= {"model_alias": SHADOW, "max_batch_size": settings.shadow_batch_size, "max_batch_wait_s": 0.0}
            how |= {"queue_limit": settings.shadow_queue_limit, "drain_s": 0.0}
            shadow = Loader(settings.model_copy(update=how), self._shadows, shadow=True)
        loader = Loader(settings.model_copy(update={"model": name, "model_alias": alias}), self._common)
        return Member(loader, canary, shadow, ThreadPoolExecutor(1, "inference-aside"), told)

    def _join(self, member: Member) -> None:
        with self._lock:
            self._members[member.loader.model, member.loader.alias] = member
        _start(member)

    def _make_room(self, name: str, alias: str) -> Member | None:
        """Who leaves for it, if anybody must. Raises ModelNotReady when nobody may."""
        if len(self._members) < self._settings.models_limit:
            return None
        idle_since_s = time.monotonic() - self._settings.model_idle_s
        # A name that no version stands behind keeps nobody out, however often it is asked for.
        idle = [
            each
            for each in self._members.values()
            if not each.told and (each.asked_s <= idle_since_s or each.loader.in_vain)
        ]
        if not idle:
            served = ", ".join(f"{model}@{of}" for model, of in self._members)
            raise ModelNotReady(
                f"there is no room for {name}@{alias}: this service has {served}, and its models_limit is "
                f"{self._settings.models_limit}"
            )
        leaving = min(idle, key=lambda each: each.asked_s)
        del self._members[leaving.loader.model, leaving.loader.alias]
        return leaving

    def _judging(self) -> Sequence[Serving]:
        return [serving for loader in self.loaders() if (serving := loader.serving) is not None]


def _start(member: Member) -> None:
    for loader in member.loaders:
        loader.start()


def _close(member: Member) -> None:
    for loader in member.loaders:
        loader.stop_waiting()
    for loader in member.loaders:
        loader.close()
    member.aside.shutdown()
