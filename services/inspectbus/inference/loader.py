"""From "which version?" to a warm engine behind a batcher: in the background, and again whenever the alias moves.

alias ─> card (model directory) ─> verified folder (model store) ─> the engine of choice, gated and warm ─> in service
   │         └── away, corrupt, or a pinned image scores otherwise: shown and counted; the version that judges goes on
   └── looked at when it is news, when a frame is prepared for a version we do not know, and every `model_poll_s`

One thread does it all for one model and alias, and while the version before is not gone there is no load. Of all
loaders in a service one loads at a time, and beside any version that judges it gives way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import prometheus_client as prometheus
import structlog

from inspectbus.domain.model_version import Architecture, ModelCard
from inspectbus.errors import InspectBusError, ModelNotReady, NotPossibleNow
from inspectbus.inference.batcher import Batcher
from inspectbus.inference.choice import Choice, chosen_engine
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.inference.priority import loading
from inspectbus.inference.serving import InService, Serving
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.streams import Streams
from inspectbus.runtime.watchdog import Watchdog
from inspectbus.stores.model_directory import ModelDirectory
from inspectbus.stores.models import ModelStore, default_url, read_card

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""How often a version that only finishes what it has is looked at: it also says itself when that is done."""


@dataclass(frozen=True)
class _Wish:
    """The version that is to judge."""

    card: ModelCard
    alias: str
    fetch: Callable[[], Path]
    """A verified folder. Raises what `ModelStore.fetch` raises."""


@dataclass(frozen=True)
class _Refusal:
    """A version that may not judge, until the alias moves or a long pause is over."""

    version: str
    until_s: float


class LoaderMetrics:
    def __init__(self, registry: prometheus.CollectorRegistry) -> None:
        self.ready = prometheus.Gauge(
            "inspectbus_inference_model_ready", "1 once a version of the default model is loaded.", registry=registry
        )
        self._version = prometheus.Gauge(
            "inspectbus_inference_version_info",
            "1 for each model version that judges, with what runs it.",
            ["model", "alias", "version", "engine", "device"],
            registry=registry,
        )
        self.failures = prometheus.Counter(
            "inspectbus_inference_load_failures", "Attempts to load a model, by error.", ["reason"], registry=registry
        )
        self.swaps = prometheus.Counter(
            "inspectbus_inference_swaps",
            "New versions for the one that judges: done, refused, put off (storage away) or overtaken by a newer one.",
            ["result"],
            registry=registry,
        )
        self.swap_seconds = prometheus.Histogram(
            "inspectbus_inference_swap_seconds",
            "From the look that found a new version until it judges.",
            buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300),
            registry=registry,
        )

    def judges(self, new: Serving | None, before: Serving | None) -> None:
        """`new` judges from now on, in the place of `before`."""
        if before is not None:
            with suppress(KeyError):  # a version that came back has the same labels
                self._version.remove(*_labels(before))
        if new is not None:
            self._version.labels(*_labels(new)).set(1)


def _labels(serving: Serving) -> tuple[str, ...]:
    card, engine = serving.card, serving.engine
    return card.name, serving.alias, card.version, engine.name, engine.device


@dataclass(frozen=True)
class Common:
    """What the loaders of one service share."""

    batching: BatcherMetrics
    metrics: LoaderMetrics
    watchdog: Watchdog
    streams: Streams
    judging: Callable[[], Sequence[Serving]]
    """All versions that judge."""
    turns: threading.Lock = field(default_factory=threading.Lock)
    """Whoever has it loads."""
    started_s: float = field(default_factory=time.monotonic)
    """Of the service, on the monotonic clock."""


class Loader:
    """Holds the version that serves, once there is one. What is started is closed, once."""

    def __init__(self, settings: InferenceSettings, common: Common, *, shadow: bool = False) -> None:
        """For `settings.model` by `settings.model_alias`. A shadow computes only while nobody else wants to."""
        self.model, self.alias = settings.model, settings.model_alias
        self._settings = settings
        self._common = common
        self._shadow = shadow
        self._metrics = common.metrics
        self._in_service = InService()
        self._detail = "loading has not been tried yet"
        self._told = ""
        """The failure that stands in the log: an hour without a model, or its store, is not a thousand lines."""
        self._closing = False
        self._opened_s = time.monotonic()
        self._changed = threading.Condition()
        self._asked = True
        self._looks_begun = 0
        self._looks_ended = 0
        self._next_look_s = 0.0
        self._put_off = False
        """The last look found a version that must wait until the one before has gone."""
        self._refusal: _Refusal | None = None
        self._unknown = ("", 0.0)
        """A preparation that a look found no version for, and until when that is believed."""
        self._thread = threading.Thread(target=self._work, name="inference-loader", daemon=True)

    def start(self) -> None:
        """Looks for a version, and follows its alias until closed."""
        self._thread.start()

    def close(self) -> None:
        """Takes nothing more; drains the batchers for at most `drain_s`."""
        until_s = time.monotonic() + self._settings.drain_s
        self.stop_waiting()
        self._in_service.close()
        # A load cannot be broken off. One that outlasts us finds that nobody wants its version any more.
        self._thread.join(max(0.0, until_s - time.monotonic()))
        self._metrics.judges(None, self.serving)
        # An engine must not wait, with us, for the garbage collector: other models go on.
        self._in_service.forget()

    @property
    def name(self) -> str:
        """Of the model, as its card spells it once there is one: a folder may hold any."""
        serving = self.serving
        return serving.card.name if serving is not None else self.model

    def may_be(self, name: str) -> bool:
        """Whether this is the model of that name. What a folder holds is not known before it is loaded."""
        return name == self.name or (self._settings.model_dir is not None and self.serving is None)

    @property
    def serving(self) -> Serving | None:
        """What judges, to look at; whoever wants something judged uses `chosen`."""
        return self._in_service.current

    def chosen(self, *, preparation_hash: str = "", version: str = "") -> AbstractContextManager[Serving | None]:
        """As `InService.chosen`."""
        return self._in_service.chosen(preparation_hash=preparation_hash, version=version)

    def check_preparation(self, serving: Serving, preparation_hash: str) -> None:
        """As `Serving.check_preparation`; the error also says what keeps the version that the alias names."""
        try:
            serving.check_preparation(preparation_hash)
        except NotPossibleNow as error:
            if not self._detail:
                raise
            raise NotPossibleNow(f"{error.message}; {self._detail}"[:1000], field=error.field) from None

    @property
    def waiting(self) -> int:
        return self._in_service.waiting

    @property
    def detail(self) -> str:
        """Why nothing serves yet, or not the version that the alias names, in words; empty when it does."""
        return self._detail

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def computed_s(self) -> float:
        """Seconds of streams that its versions were given."""
        return self._in_service.computed_s

    def wait(self) -> Serving | None:
        """What serves, as soon as it does; None when the patience for a first version ends first, or the service does.

        Counted from the service's start, not from a frame's making: frames that waited in a queue while no service ran
        find one that has just begun to load, and all frames of a model without a version are told after one patience.
        For a model that is asked for later: from then on, but no longer than until it is known that nothing is named.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.serving or self.in_vain, timeout=max(0.0, self._patience_left_s()))
            return self.serving

    @property
    def in_vain(self) -> bool:
        """Nothing serves, and it is no use to wait for it."""
        if self.serving is not None:
            return False
        early = time.monotonic() < self._common.started_s + self._settings.model_patience_s
        return self._closing or self._patience_left_s() <= 0 or (self._looks_ended > 0 and not early)

    def _patience_left_s(self) -> float:
        return self._opened_s + self._settings.model_patience_s - time.monotonic()

    def knows(self, preparation_hash: str) -> bool:
        """Whether it is known what becomes of pixels prepared so: some version takes them, or a look found none."""
        if self._settings.model_dir is not None or self.serving is None or self._in_service.judges(preparation_hash):
            return True
        with self._changed:
            unknown, until_s = self._unknown
            return preparation_hash == unknown and time.monotonic() < until_s

    def await_preparation(self, preparation_hash: str, until_s: float) -> None:
        """For pixels that no version takes: whoever prepared them may know of a new alias before we do.

        Returns once a version takes them, or a look at the alias that began after this call ended without one, or at
        `until_s` on the monotonic clock.
        """
        if self.knows(preparation_hash):
            return
        with self._changed:
            asked = self._looks_begun + 1
            self._ask()

            def judged() -> bool:
                return self._closing or self._in_service.judges(preparation_hash)

            def looked() -> bool:
                return self._looks_ended >= asked and not self._put_off

            self._changed.wait_for(lambda: judged() or looked(), timeout=max(0.0, until_s - time.monotonic()))
            if looked() and not judged():
                self._unknown = (preparation_hash, time.monotonic() + self._settings.model_retry_s)

    def look(self) -> None:
        """The alias may name another version now."""
        with self._changed:
            self._ask()

    def stop_waiting(self) -> None:
        """The service ends: nobody need wait for a model any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _ask(self) -> None:
        self._asked = True
        self._changed.notify_all()

    def _work(self) -> None:
        with ExitStack() as owners:
            find = self._finder(owners)
            while self._wait_for_work():
                self._let_go()
                if self._begin_look():
                    self._end_look(put_off=not self._look(find))
                if self.serving is not None and self._settings.model_dir is not None:
                    return  # a folder names one version, for good

    def _wait_for_work(self) -> bool:
        """Until a look is due or the version before may go. False when the service ends."""
        with self._changed:
            leaves_in_s = self._in_service.leaves_in_s()
            due_in_s = self._next_look_s - time.monotonic()
            if leaves_in_s is not None:
                due_in_s = min(due_in_s, leaves_in_s or LOOK_S)
            if not self._asked and due_in_s > 0 and not self._closing:
                self._changed.wait(due_in_s)
            return not self._closing

    def _idle(self) -> None:
        """Some version has nothing more to do: the loader wants to hear it of the one before."""
        if self._in_service.before is not None:
            with self._changed:
                self._changed.notify_all()

    def _let_go(self) -> None:
        gone = self._in_service.let_go()
        if gone is not None:
            log.info("the version before has judged its last image", model=gone.card.name, version=gone.card.version)
            with self._changed:
                self._asked = self._asked or self._put_off

    def _begin_look(self) -> bool:
        with self._changed:
            if not self._asked and time.monotonic() < self._next_look_s:
                return False
            self._asked = False
            self._looks_begun += 1
            return True

    def _end_look(self, *, put_off: bool) -> None:
        settings = self._settings
        with self._changed:
            pause_s = settings.model_retry_s if self.serving is None else settings.model_poll_s
            self._next_look_s = time.monotonic() + pause_s
            self._put_off = put_off
            self._looks_ended = self._looks_begun
            self._changed.notify_all()

    def _look(self, find: Callable[[], _Wish]) -> bool:
        """Loads what is wanted, if that is another version. False when it must wait until the one before has gone."""
        begun_s = time.monotonic()
        try:
            wish = find()
        except Exception as error:  # whatever is wrong with a model, the service goes on and says what it is
            self._failed(error)
            return True
        version = wish.card.version
        current, before = self.serving, self._in_service.before
        if current is not None and version == current.card.version:
            self._refusal, self._detail, self._told = None, "", ""
            return True
        if self._refused(version):
            return True
        if before is not None and before.card.version != version:
            self._detail = f"{_named(wish.card)} is loaded once {before.card.version} has judged its last image"
            return False
        if current is not None:
            self._detail = f"{_named(wish.card)} is being loaded; {current.card.version} judges meanwhile"
            log.info("loading a new version", model=wish.card.name, version=version)
            self._unknown = ("", 0.0)
        try:
            new = before or self._open(wish)
        except Exception as error:  # as above; it may also be the engine's library that raises
            self._failed(error, wish.card)
            return True
        if current is not None and self._overtaken(find, version):
            log.info("a newer version is wanted already", model=wish.card.name, version=version)
            self._metrics.swaps.labels("overtaken").inc()
            if new is not before:
                new.batcher.close()
            self.look()
        else:
            self._swap(new, begun_s)
        return True

    @staticmethod
    def _overtaken(find: Callable[[], _Wish], version: str) -> bool:
        try:
            return find().card.version != version
        except Exception:  # it could be told when the load began, and the next look says what is wrong
            return False

    def _finder(self, owners: ExitStack) -> Callable[[], _Wish]:
        settings = self._settings
        if (folder := settings.model_dir) is not None:
            return lambda: _Wish(read_card(folder, version=folder.name), "", lambda: folder)
        # Each look asks the owner anew: looks have their own pace, and one that follows news must not be told the old.
        directory = owners.enter_context(
            ModelDirectory(settings.models_address, settings.state_dir / "directory", access=settings.access, fresh_s=0)
        )
        url = settings.model_store_url or default_url(settings.state_dir)

        def find() -> _Wish:
            card = directory.resolve(settings.model, settings.model_alias)
            store = ModelStore(url, settings.state_dir / "model-cache")
            return _Wish(card, settings.model_alias, lambda: store.fetch(card.name, card.version))

        return find

    def _open(self, wish: _Wish) -> Serving:
        settings, card, common = self._settings, wish.card, self._common
        with common.turns:
            if self._closing:
                raise ModelNotReady("the service ends")
            others = common.judging()
            with loading(beside=bool(others)):
                engine, choice = chosen_engine(settings, wish.fetch(), card, alike=_alike(card, others))
        batcher = Batcher(
            engine,
            card.preparation.height,
            card.preparation.width,
            common.batching,
            common.watchdog,
            max_batch_size=settings.max_batch_size,
            max_batch_wait_s=settings.max_batch_wait_s,
            queue_limit=settings.queue_limit,
            drain_s=settings.drain_s,
            flow=common.streams.flow(shadow=self._shadow),
        )
        return Serving(card, wish.alias, engine, batcher.__enter__(), choice, self._idle)

    def _swap(self, new: Serving, begun_s: float) -> None:
        old = self.serving
        if not self._in_service.swap(new, self._settings.preparation_stands_s):
            new.batcher.close()
            return
        card, engine = new.card, new.engine
        with self._changed:
            self._refusal, self._detail, self._told = None, "", ""
            self._unknown = ("", 0.0)
            self._changed.notify_all()
        self._metrics.judges(new, old)
        facts = {"model": card.name, "version": card.version, "engine": engine.name, "device": engine.device}
        if new.alias:
            facts["alias"] = new.alias
        if old is None:
            log.info("model loaded", **facts)
            return
        took_s = time.monotonic() - begun_s
        self._metrics.swaps.labels("done").inc()
        self._metrics.swap_seconds.observe(took_s)
        other = card.preparation.hash != old.card.preparation.hash
        log.info("a new version judges", **facts, before=old.card.version, other_preparation=other, seconds=took_s)

    def _refused(self, version: str) -> bool:
        refusal = self._refusal
        if refusal is None or refusal.version != version:
            self._refusal = None  # the alias has moved: what it named may be tried again when it comes back
            return False
        return time.monotonic() < refusal.until_s

    def _failed(self, error: Exception, card: ModelCard | None = None) -> None:
        """`card` is of the version that was to be loaded, where it is known."""
        self._metrics.failures.labels(type(error).__name__).inc()
        if isinstance(error, InspectBusError):
            detail = error.message
        else:
            detail = f"loading failed: {type(error).__name__}: {error}"[:500]
        current = self.serving
        if current is None:
            self._detail = detail
            self._tell("no model yet", error)
            return
        away = isinstance(error, InspectBusError) and error.retryable
        if card is None:
            self._detail = f"which version is wanted cannot be told, and {current.card.version} goes on: {detail}"
            self._tell("no new version", error)
            return
        self._detail = (
            f"{_named(card)} {'cannot be loaded yet' if away else 'is refused'}, and {current.card.version} goes on: "
            f"{detail}"
        )
        self._metrics.swaps.labels("put_off" if away else "refused").inc()
        self._tell("the new version does not judge", error)
        if not away:
            self._refusal = _Refusal(card.version, time.monotonic() + self._settings.refused_pause_s)

    def _tell(self, event: str, error: Exception) -> None:
        if self._detail != self._told:
            log.error(event, reason=type(error).__name__, detail=self._detail)
        self._told = self._detail


def _alike(card: ModelCard, others: Sequence[Serving]) -> Choice | None:
    """How the engine of a version of the same network was chosen, where one judges already."""
    return next((serving.choice for serving in others if _same_network(serving.card, card)), None)


def _same_network(one: ModelCard, other: ModelCard) -> bool:
    """Whether the same engine is the fastest for both: weights change no speed."""

    def shape(card: ModelCard) -> tuple[Architecture, int, int]:
        return card.architecture, card.preparation.height, card.preparation.width

    return shape(one) == shape(other)


def _named(card: ModelCard) -> str:
    return f"version {card.version} of {card.name}"
