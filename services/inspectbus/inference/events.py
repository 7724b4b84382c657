"""The bus door: a prepared frame comes, its decision goes, and only then is the frame acknowledged.

prepared ─> its model ─> fits a version? ─> batcher ─> score ─> verdict ─> evidence ─> decisions
                                └── no model, other preparation, broken pixels: HOLD with its reason ──┘

A frame whose model is being loaded waits aside. Whoever prepares may also know of a new version before we do: pixels
that no version takes wait, aside too, for a look at the alias and for the load that may follow. News of aliases comes
in here as well.

Large pixels come by claim and are fetched by a pool, several at once; one that is missing or changed parks its frame.
The engine's thread hands each score to a small pool, so it never waits for a disk or a full bus.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from typing import NamedTuple

import prometheus_client as prometheus
import structlog
from google.protobuf.message import DecodeError

from inspectbus.api.v1.decision_pb2 import (
    HOLD_REASON_ERROR,
    HOLD_REASON_NO_MODEL,
    HOLD_REASON_UNCERTAIN_SCORE,
    VERDICT_HOLD,
    Decision,
    HoldReason,
    Verdict,
)
from inspectbus.api.v1.model_pb2 import AliasChange
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus import Bus, Delivery, Lane, Message, Subscription, topics
from inspectbus.bus.handling import in_hand
from inspectbus.bus.messages import decision_message
from inspectbus.domain.decision import decision_of, hold_decision
from inspectbus.domain.frame import checked_frame
from inspectbus.domain.heat import calibrated_heat
from inspectbus.domain.model_version import ModelCard
from inspectbus.domain.thresholds import Thresholds
from inspectbus.errors import (
    BadField,
    CorruptObject,
    InspectBusError,
    Internal,
    ModelNotReady,
    NotFound,
    NotPossibleNow,
    StorageAway,
    StorageFull,
)
from inspectbus.imaging.pixels import from_pixels
from inspectbus.inference.batcher import Scored
from inspectbus.inference.canary import chosen
from inspectbus.inference.engine import Heatmap
from inspectbus.inference.evidence import EvidenceKeeper
from inspectbus.inference.models import Member, Models
from inspectbus.inference.serving import Serving
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.shadow import Shadows
from inspectbus.inference.verdict import thresholds_for, verdict_of
from inspectbus.stores.frames import FrameStore, checked_claim

log = structlog.get_logger(__name__)

SOURCE = "inference"
ALIAS_CHANGED = ("model", "alias-changed")
DECIDERS = 2
"""Threads that keep evidence and publish: one writes while the other waits for its disk."""
FETCHERS = 8
"""Threads that fetch claimed pixels: a bucket answers after tens of milliseconds, but eight at once as soon as one."""
BEGIN_S = 10.0
"""For the bus to subscribe us; a broker that is away takes a moment."""
MAX_PIXELS_BYTES = 3 * 2048 * 2048
"""Of the largest size a preparation may have."""


@contextmanager
def subscribed(
    bus: Bus,
    models: Models,
    shadows: Shadows,
    store: FrameStore,
    evidence: EvidenceKeeper,
    settings: InferenceSettings,
    registry: prometheus.CollectorRegistry,
) -> Iterator[None]:
    """Judges prepared frames until left; leaving finishes those in hand and gives the rest back to the bus."""
    with ExitStack() as stack:
        deciders = stack.enter_context(ThreadPoolExecutor(DECIDERS, "inference-decide"))
        fetchers = stack.enter_context(ThreadPoolExecutor(FETCHERS, "inference-fetch"))
        door = _Door(bus, models, shadows, store, evidence, settings, registry, deciders, fetchers)

        def subscribe() -> Subscription:
            return bus.subscribe(
                topics.PREPARED, "inference", door.judge, prefetch=settings.prefetch, epitaph=door.mourn
            )

        with _taking(models, subscribe, settings.drain_s):
            yield


@contextmanager
def _taking(models: Models, subscribe: Callable[[], Subscription], drain_s: float) -> Iterator[None]:
    """Takes frames from when the default model is there, or the patience for it is over. Until then they wait at the
    bus, where a replica that has its model finds them: one that starts must not sit on the frames of a running line."""
    taken: list[Subscription] = []

    def take() -> None:
        models.default.wait()
        if not models.closing:
            taken.append(subscribe())

    beginning = threading.Thread(target=take, name="inference-begin", daemon=True)
    beginning.start()
    try:
        yield
    finally:
        models.stop_waiting()
        beginning.join(BEGIN_S)
        for subscription in taken:
            subscription.close(drain_s)


@contextmanager
def aliases_followed(bus: Bus, models: Models, settings: InferenceSettings) -> Iterator[None]:
    """Has a model looked at once when its alias is pointed elsewhere. A folder of a model has no alias."""
    if settings.model_dir is not None:
        yield
        return

    def hear(message: Message) -> None:
        try:
            change = AliasChange.FromString(message.body)
        except DecodeError:
            log.warning("news of an alias that cannot be read", source=message.source)
            return
        models.look(change.name, change.alias)

    news = bus.follow(topics.EVENTS, hear, key=ALIAS_CHANGED)
    try:
        yield
    finally:
        news.close()


class _Admitted(NamedTuple):
    """What judges a frame that is in a batcher."""

    card: ModelCard
    alias: str
    thresholds: Thresholds


class _Door:
    def __init__(
        self,
        bus: Bus,
        models: Models,
        shadows: Shadows,
        store: FrameStore,
        evidence: EvidenceKeeper,
        settings: InferenceSettings,
        registry: prometheus.CollectorRegistry,
        deciders: ThreadPoolExecutor,
        fetchers: ThreadPoolExecutor,
    ) -> None:
        self._bus = bus
        self._models = models
        self._shadows = shadows
        self._store = store
        self._evidence = evidence
        self._settings = settings
        # Their queues have no bound of their own; the subscription's prefetch bounds them.
        self._pool = deciders
        self._fetchers = fetchers
        self._decisions = prometheus.Counter(
            "inspectbus_inference_decisions", "Decisions published.", ["verdict", "reason"], registry=registry
        )

    def judge(self, delivery: Delivery) -> None:
        """Takes one prepared frame. Raises BadField for a body that is none: it is parked, and nobody can decide it."""
        prepared = _parsed(delivery.message)
        try:
            member = self._models.asked_for(prepared.model, prepared.model_alias)
        except ModelNotReady as error:
            self._hold_without_model(delivery, prepared, f"recipe {prepared.recipe} asks for a model: {error.message}")
            return
        loader = member.loader
        serving = loader.serving
        if loader.in_vain or _asks_for_another(prepared, serving):
            self._take(delivery, prepared, member)
            return
        if serving is not None and loader.knows(prepared.preparation_hash):
            self._take(delivery, prepared, member)
            return
        until_s = time.monotonic() + self._settings.model_patience_s
        member.aside.submit(
            copy_context().run, self._settling, delivery, partial(self._wait_aside, delivery, prepared, member, until_s)
        )

    def _wait_aside(self, delivery: Delivery, prepared: PreparedFrame, member: Member, until_s: float) -> None:
        serving = member.loader.wait()
        if serving is not None and not _asks_for_another(prepared, serving):
            member.loader.await_preparation(prepared.preparation_hash, until_s)
        if member.loader.closing:
            raise ModelNotReady("the service ends before it knows the version that these pixels are for")
        self._take(delivery, prepared, member)

    def _take(self, delivery: Delivery, prepared: PreparedFrame, member: Member) -> None:
        if prepared.pixels.HasField("claim"):
            self._fetchers.submit(
                copy_context().run, self._settling, delivery, partial(self._fetch, delivery, prepared, member)
            )
        else:
            self._judge(delivery, prepared, member)

    def _settling(self, delivery: Delivery, step: Callable[[], None]) -> None:
        """On a pool's thread, where nobody else would settle a delivery whose step raises."""
        try:
            step()
        except InspectBusError as error:
            if error.retryable:
                delivery.retry(error)
            else:
                delivery.park(error)
        except Exception as error:  # nobody looks into a pool's futures: unsettled, the frame would be stuck for good
            delivery.retry(error)

    def _fetch(self, delivery: Delivery, prepared: PreparedFrame, member: Member) -> None:
        prepared.pixels.data = self._fetched(prepared)
        self._judge(delivery, prepared, member)

    def _fetched(self, prepared: PreparedFrame) -> bytes:
        """Raises BadField, NotFound, CorruptObject for good; StorageAway for now."""
        if prepared.pixels.data:
            raise BadField("the pixels have data and a claim; one of them is meant", field="pixels.claim")
        claim = checked_claim(prepared.pixels.claim, prepared.frame, "pixels.claim")
        return self._store.fetch(claim, MAX_PIXELS_BYTES)

    def _judge(self, delivery: Delivery, prepared: PreparedFrame, member: Member) -> None:
        try:
            admitted, scored = self._admit(prepared, delivery.message.lane, member)
        except ModelNotReady as error:
            self._hold_without_model(delivery, prepared, error.message, member)
        except (BadField, NotPossibleNow) as error:
            hold = hold_decision(prepared.frame, HOLD_REASON_ERROR, error.message)
            self._pool.submit(self._settle, delivery, lambda: self._publish(prepared, hold))
        else:
            decide = partial(self._decide, prepared, admitted)
            # Given the future and not closed over it: the two would wait, pixels and all, for the garbage collector.
            scored.add_done_callback(partial(self._scored, delivery, decide))
            if member.shadow is not None:
                self._shadows.follow(member.shadow, prepared)

    def _hold_without_model(
        self, delivery: Delivery, prepared: PreparedFrame, detail: str, member: Member | None = None
    ) -> None:
        if self._models.closing or (member is not None and member.loader.closing):
            # Not the frame's fault: whoever serves next judges it.
            raise ModelNotReady(detail)
        hold = hold_decision(prepared.frame, HOLD_REASON_NO_MODEL, detail)
        self._pool.submit(self._settle, delivery, lambda: self._publish(prepared, hold))

    def mourn(self, message: Message, error: BaseException) -> Sequence[Future[None]]:
        """The epitaph: a frame that is parked is decided all the same, as HOLD. One that cannot be read has none."""
        try:
            prepared = _parsed(message)
        except BadField:
            return ()
        detail = error.message if isinstance(error, InspectBusError) else f"{type(error).__name__}: {error}"
        decision = hold_decision(prepared.frame, HOLD_REASON_ERROR, detail)
        # Now, because the claim may not go on: what is missing or changed is no evidence.
        decision.pixels_key = prepared.pixels.claim.key
        if prepared.pixels.HasField("claim"):
            try:
                self._fetched(prepared)
            except (BadField, NotFound, CorruptObject):
                prepared.pixels.ClearField("claim")
            except (StorageFull, StorageAway):
                pass  # it may well be there
        return (self._publish(prepared, decision),)

    def _admit(self, prepared: PreparedFrame, lane: Lane, member: Member) -> tuple[_Admitted, Future[Scored]]:
        """Into the batcher. Raises ModelNotReady, NotPossibleNow or BadField for a frame that we cannot judge."""
        with chosen(member, prepared, self._settings) as serving:
            if serving is None:
                raise ModelNotReady(f"no model is loaded: {member.loader.detail}")
            if _asks_for_another(prepared, serving):
                asked, ours = (prepared.model, prepared.model_alias), (serving.card.name, serving.alias)
                raise ModelNotReady(
                    f"recipe {prepared.recipe} asks for model {'@'.join(asked)}; "
                    f"loaded is {'@'.join(filter(None, ours))}"
                )
            member.loader.check_preparation(serving, prepared.preparation_hash)
            thresholds = thresholds_for(prepared, serving.card)
            scored = serving.deliver(from_pixels(prepared.pixels), lane)
            return _Admitted(serving.card, serving.alias, thresholds), scored

    def _scored(self, delivery: Delivery, decide: Callable[[Scored], Future[None]], scored: Future[Scored]) -> None:
        """On the engine's thread, which goes on at once."""
        try:
            self._pool.submit(self._settle, delivery, lambda: decide(scored.result()))
        except RuntimeError as error:  # the pool is closed: the service ended before this score came
            delivery.retry(error)

    def _settle(self, delivery: Delivery, publish: Callable[[], Future[None]]) -> None:
        try:
            with in_hand(delivery.message):
                delivery.done(after=[publish()])
        except Exception as error:  # nobody looks into a pool's futures: unsettled, the frame would be stuck for good
            delivery.retry(error)

    def _decide(self, prepared: PreparedFrame, admitted: _Admitted, scored: Scored) -> Future[None]:
        card, thresholds = admitted.card, admitted.thresholds
        try:
            verdict = verdict_of(scored.score, thresholds)
        except Internal as error:
            decision = hold_decision(prepared.frame, HOLD_REASON_ERROR, error.message)
        else:
            decision = _judged(prepared, verdict, scored.score, thresholds)
        decision.threshold = thresholds.defective_from
        if thresholds.band:
            decision.qualified_below = thresholds.qualified_below
        decision.model = card.name
        decision.model_version = card.version
        decision.model_alias = admitted.alias
        decision.timings.queued_at.FromNanoseconds(int(scored.queued_at_s * 1e9))
        decision.timings.inferred_at.FromNanoseconds(int(scored.inferred_at_s * 1e9))
        heatmap = None if scored.heatmap is None else calibrated_heat(scored.heatmap, card.calibration)
        return self._publish(prepared, decision, heatmap)

    def _publish(self, prepared: PreparedFrame, decision: Decision, heatmap: Heatmap | None = None) -> Future[None]:
        """Adds what the prepared frame knows, keeps the evidence, and only then tells the decision."""
        decision.model = decision.model or prepared.model
        decision.recipe = prepared.recipe
        decision.recipe_version = prepared.recipe_version
        decision.preparation_hash = prepared.preparation_hash
        decision.pixels_key = decision.pixels_key or prepared.pixels.claim.key
        if prepared.HasField("quality"):
            decision.quality.CopyFrom(prepared.quality)
        if prepared.HasField("received_at"):
            decision.timings.preparing_at.CopyFrom(prepared.received_at)
        if prepared.HasField("prepared_at"):
            decision.timings.prepared_at.CopyFrom(prepared.prepared_at)
        decision.evidence.CopyFrom(self._evidence.keep(prepared, decision, heatmap))
        published = self._bus.publish(topics.DECISIONS, decision_message(decision, SOURCE))
        verdict = Verdict.Name(decision.verdict).removeprefix("VERDICT_").lower()
        reason = HoldReason.Name(decision.hold.reason).removeprefix("HOLD_REASON_").lower()
        self._decisions.labels(verdict, reason if decision.HasField("hold") else "").inc()
        return published


def _asks_for_another(prepared: PreparedFrame, serving: Serving | None) -> bool:
    """What a folder holds is known once it is loaded; it has no alias and answers to any."""
    return serving is not None and prepared.model != serving.card.name


def _judged(prepared: PreparedFrame, verdict: Verdict.ValueType, score: float, thresholds: Thresholds) -> Decision:
    if verdict == VERDICT_HOLD:
        detail = f"the score {score:.4f} is neither good nor defective: {thresholds}"
        decision = hold_decision(prepared.frame, HOLD_REASON_UNCERTAIN_SCORE, detail)
    else:
        decision = decision_of(prepared.frame)
        decision.verdict = verdict
        decision.timings.decided_at.GetCurrentTime()
    decision.score = score
    return decision


def _parsed(message: Message) -> PreparedFrame:
    try:
        prepared = PreparedFrame.FromString(message.body)
    except DecodeError as error:
        raise BadField(f"the body is no PreparedFrame: {error}", field="body") from None
    checked_frame(prepared.frame)
    return prepared
