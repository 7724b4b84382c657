"""From "which model?" to a warm engine behind a batcher, in the background, again and again until there is one.

alias ─> card (model directory) ─> verified folder (model store) ─> the engine of choice, gated and warm
   └── not yet, away, or corrupt: the reason is shown and counted, and we look again
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import prometheus_client as prometheus
import structlog

from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import InspectBusError, NotPossibleNow
from inspectbus.inference.batcher import Batcher, BatcherMetrics
from inspectbus.inference.choice import Choice, chosen_engine
from inspectbus.inference.engine import Engine
from inspectbus.inference.settings import InferenceSettings
from inspectbus.runtime.watchdog import Watchdog
from inspectbus.stores.model_directory import ModelDirectory
from inspectbus.stores.models import ModelStore, default_url, read_card

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Serving:
    """A model version that judges: its card, the warm engine, and the batcher in front of it."""

    card: ModelCard
    alias: str
    """The alias that named it; empty where a folder was given, which answers to any."""
    engine: Engine
    batcher: Batcher
    loaded_at_s: float
    """Seconds since the epoch."""
    choice: Choice
    """How the engine came to be the one."""

    def check_preparation(self, preparation_hash: str) -> None:
        """Raises NotPossibleNow when pixels were prepared otherwise than the version was trained and tested on."""
        if preparation_hash != self.card.preparation.hash:
            raise NotPossibleNow(
                f"the pixels went through preparation {preparation_hash or '(unnamed)'}; "
                f"{self.card.name} {self.card.version} expects {self.card.preparation.hash}",
                field="preparation_hash",
            )


class Loader:
    """Holds the version that serves, once there is one. Use as a context; leaving it drains the batcher."""

    def __init__(self, settings: InferenceSettings, registry: prometheus.CollectorRegistry) -> None:
        self._settings = settings
        self._metrics = BatcherMetrics(registry, settings.max_batch_size)
        self._ready = prometheus.Gauge(
            "inspectbus_inference_model_ready", "1 once a model version is loaded.", registry=registry
        )
        self._failures = prometheus.Counter(
            "inspectbus_inference_load_failures", "Attempts to load a model, by error.", ["reason"], registry=registry
        )
        self._watchdog = Watchdog(settings.call_limit_s)
        self._parts = ExitStack()
        self._serving: Serving | None = None
        self._detail = "loading has not been tried yet"
        self._closing = False
        self._started_s = time.monotonic()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._look, name="inference-loader", daemon=True)

    def __enter__(self) -> Loader:
        self._parts.enter_context(self._watchdog)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop_waiting()
        self._thread.join(self._settings.drain_s)
        self._parts.close()

    @property
    def serving(self) -> Serving | None:
        return self._serving

    @property
    def detail(self) -> str:
        """Why nothing serves yet, in words; empty when something does."""
        return self._detail

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def batches(self) -> dict[int, int]:
        """Runs of the engine since start, by size."""
        return {size: count for size, count in self._metrics.sizes.items() if count}

    def wait(self) -> Serving | None:
        """What serves, as soon as it does; None when the patience for a first model ends first, or the service does.

        Counted from the service's start, not from a frame's making: frames that waited in a queue while no service ran
        find one that has just begun to load, and all frames of a service without a model are told after one patience.
        """
        with self._changed:
            left_s = self._started_s + self._settings.model_patience_s - time.monotonic()
            self._changed.wait_for(lambda: self._serving or self._closing, timeout=max(0.0, left_s))
            return self._serving

    def stop_waiting(self) -> None:
        """The service ends: nobody need wait for a first model any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _look(self) -> None:
        with ExitStack() as owners:
            find = self._finder(owners)
            while not self._closing:
                try:
                    serving = self._open(*find())
                except Exception as error:  # whatever is wrong with a model, the service goes on and says what it is
                    self._failed(error)
                else:
                    self._succeeded(serving)
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=self._settings.model_retry_s)

    def _finder(self, owners: ExitStack) -> Callable[[], tuple[Path, ModelCard, str]]:
        settings = self._settings
        if (folder := settings.model_dir) is not None:
            return lambda: (folder, read_card(folder, version=folder.name), "")
        # Half the pause: each look then asks the owner anew.
        directory = owners.enter_context(
            ModelDirectory(
                settings.models_address,
                settings.state_dir / "directory",
                access=settings.access,
                fresh_s=settings.model_retry_s / 2,
            )
        )
        url = settings.model_store_url or default_url(settings.state_dir)

        def find() -> tuple[Path, ModelCard, str]:
            card = directory.resolve(settings.model, settings.model_alias)
            store = ModelStore(url, settings.state_dir / "model-cache")
            return store.fetch(card.name, card.version), card, settings.model_alias

        return find

    def _open(self, folder: Path, card: ModelCard, alias: str) -> Serving:
        settings = self._settings
        engine, choice = chosen_engine(settings, folder, card)
        batcher = Batcher(
            engine,
            card.preparation.height,
            card.preparation.width,
            self._metrics,
            self._watchdog,
            max_batch_size=settings.max_batch_size,
            max_batch_wait_s=settings.max_batch_wait_s,
            queue_limit=settings.queue_limit,
            drain_s=settings.drain_s,
        )
        return Serving(card, alias, engine, self._parts.enter_context(batcher), time.time(), choice)

    def _succeeded(self, serving: Serving) -> None:
        with self._changed:
            self._serving, self._detail = serving, ""
            self._changed.notify_all()
        self._ready.set(1)
        card, engine = serving.card, serving.engine
        log.info("model loaded", model=card.name, version=card.version, engine=engine.name, device=engine.device)

    def _failed(self, error: Exception) -> None:
        self._failures.labels(type(error).__name__).inc()
        if isinstance(error, InspectBusError):
            detail = error.message
        else:
            detail = f"loading failed: {type(error).__name__}: {error}"[:500]
        if detail != self._detail:  # once per reason: an hour without a model is not a thousand lines
            log.warning("no model yet", reason=type(error).__name__, detail=detail)
        self._detail = detail
