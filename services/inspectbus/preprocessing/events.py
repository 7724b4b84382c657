"""The bus door: frames in; prepared frames, or decisions to hold, out.

FRAMES ─> worker ─┬─ usable ────────────> PREPARED, on the lane it came by
                  ├─ unusable, no model ─> original kept as evidence ─> DECISIONS: HOLD
                  └─ poison ─────────────> parked; its epitaph is DECISIONS: HOLD(ERROR)

A frame is done when what it became has been confirmed. A large image comes, and large pixels go, by claim: they rest in
the frame store, and a claimed original is its own evidence.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import structlog
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.api.v1.decision_pb2 import HOLD_REASON_ERROR, HOLD_REASON_NO_MODEL, Decision
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.prepared_frame_pb2 import Pixels, PreparedFrame
from inspectbus.bus import Bus, Delivery, Message, topics
from inspectbus.bus.handling import in_hand
from inspectbus.bus.lanes import Lanes
from inspectbus.bus.messages import decision_message, prepared_message
from inspectbus.domain.decision import hold_decision
from inspectbus.domain.frame import checked_frame
from inspectbus.errors import (
    BadField,
    CorruptObject,
    InspectBusError,
    ModelNotReady,
    NotFound,
    StorageAway,
    StorageFull,
)
from inspectbus.imaging.pixels import to_pixels
from inspectbus.preprocessing.metrics import PreprocessingMetrics
from inspectbus.preprocessing.preparer import Prepared, Preparer
from inspectbus.preprocessing.recipes import StoredRecipe
from inspectbus.stores.frames import FrameStore, checked_claim, evidence_key, original_key

log = structlog.get_logger(__name__)

SOURCE = "preprocessing"


@contextmanager
def frames_prepared(
    bus: Bus,
    preparer: Preparer,
    store: FrameStore,
    metrics: PreprocessingMetrics,
    *,
    inline_max_bytes: int,
    max_image_bytes: int,
    workers: int,
    prefetch: int,
    drain_s: float,
) -> Iterator[None]:
    """Takes frames while entered. Leaving takes no more and finishes those in hand, for at most `drain_s`."""
    door = _FrameDoor(bus, preparer, store, metrics, inline_max_bytes, max_image_bytes)
    with ThreadPoolExecutor(workers, thread_name_prefix="preprocessing") as pool:
        # The pool's own queue knows no lanes: a live frame would wait there behind all of the backlog in hand.
        waiting: Lanes[Delivery] = Lanes()
        lock = threading.Lock()

        def hand_over(delivery: Delivery) -> None:
            with lock:
                waiting.put(delivery, delivery.message.lane)
            pool.submit(take_next)  # neither queue has a bound; prefetch bounds both

        def take_next() -> None:
            with lock:
                delivery = waiting.next()
            with in_hand(delivery.message):
                door.take(delivery)

        subscription = bus.subscribe(topics.FRAMES, "preprocessing", hand_over, prefetch=prefetch, epitaph=door.epitaph)
        try:
            yield
        finally:
            subscription.close(drain_s)
            pool.shutdown(cancel_futures=True)


class _FrameDoor:
    def __init__(
        self,
        bus: Bus,
        preparer: Preparer,
        store: FrameStore,
        metrics: PreprocessingMetrics,
        inline_max_bytes: int,
        max_image_bytes: int,
    ) -> None:
        self._bus = bus
        self._preparer = preparer
        self._store = store
        self._metrics = metrics
        self._inline_max_bytes = inline_max_bytes
        self._max_image_bytes = max_image_bytes

    def take(self, delivery: Delivery) -> None:
        """Settles one delivery, by whatever happens."""
        try:
            delivery.done(after=[self._process(delivery.message)])
        except InspectBusError as error:
            if error.retryable:
                delivery.retry(error)
            else:
                delivery.park(error)
        except Exception as error:  # on a pool's thread nobody else would settle the delivery
            log.exception("a frame failed")
            delivery.retry(error)

    def epitaph(self, message: Message, error: BaseException) -> list[Future[None]]:
        """The HOLD(ERROR) of a frame that is being parked. None for a body that names no frame."""
        try:
            frame = _frame_in(message)
        except BadField as unreadable:
            log.error("parked without a decision: no frame can be read from it", error=unreadable.message)
            return []
        words = error.message if isinstance(error, InspectBusError) else f"{type(error).__name__}: {error}"
        decision = hold_decision(frame, HOLD_REASON_ERROR, words)
        try:
            if frame.HasField("claim"):
                # What is missing or changed is no evidence, and it may be the very reason.
                self._fetched(frame)
            self._keep_original(frame, decision)
        except (BadField, NotFound, CorruptObject) as fault:
            log.error("no evidence: the claim is at fault", error=fault.message)
        except (StorageFull, StorageAway) as failure:  # the decision matters more than its evidence
            if frame.HasField("claim"):
                decision.evidence.original_key = frame.claim.key
            log.error("no evidence kept", error=failure.message)
        return [self._publish(decision)]

    def _process(self, message: Message) -> Future[None]:
        received_at = _now()
        frame = _frame_in(message)
        stored = self._preparer.recipe(frame.recipe)
        try:
            image = self._fetched(frame) if frame.HasField("claim") else frame.image
            prepared = self._preparer.prepare(image, stored)
        except ModelNotReady as error:
            decision = hold_decision(frame, HOLD_REASON_NO_MODEL, error.message)
            return self._hold(frame, decision, stored, received_at)
        if prepared.hold is not None:
            hold = prepared.hold
            decision = hold_decision(
                frame, hold.reason, hold.detail, measure=hold.measure, value=hold.value, limit=hold.limit
            )
            decision.quality.CopyFrom(prepared.quality)
            decision.preparation_hash = prepared.preparation_hash
            return self._hold(frame, decision, stored, received_at)
        body = _prepared_frame(frame, prepared, self._pixels(frame, prepared), received_at)
        future = self._bus.publish(topics.PREPARED, prepared_message(body, SOURCE, message.lane))
        self._metrics.prepared.inc()
        return future

    def _hold(self, frame: Frame, decision: Decision, stored: StoredRecipe, received_at: Timestamp) -> Future[None]:
        decision.recipe_version = stored.version
        decision.model = stored.recipe.model
        decision.timings.preparing_at.CopyFrom(received_at)
        self._keep_original(frame, decision)
        return self._publish(decision)

    def _fetched(self, frame: Frame) -> bytes:
        """The image behind the claim. Raises BadField, NotFound, CorruptObject for good; StorageAway for now."""
        if frame.image:
            raise BadField("the frame has an image and a claim; one of them is meant", field="claim")
        with self._metrics.timed("fetch"):
            return self._store.fetch(checked_claim(frame.claim, frame, "claim"), self._max_image_bytes)

    def _pixels(self, frame: Frame, prepared: Prepared) -> Pixels:
        """As they travel. Raises StorageFull, StorageAway."""
        pixels = to_pixels(prepared.pixels)
        if len(pixels.data) > self._inline_max_bytes:
            key = evidence_key(frame.line, frame.station, frame.frame_id, "prepared", "rgb")
            with self._metrics.timed("claim"):
                pixels.claim.CopyFrom(self._store.claim(key, pixels.data))
            pixels.ClearField("data")
        return pixels

    def _keep_original(self, frame: Frame, decision: Decision) -> None:
        """Before the decision that names it, so that no record points at nothing. Raises StorageFull, StorageAway."""
        if frame.HasField("claim"):
            decision.evidence.original_key = frame.claim.key
        elif frame.image:
            key = original_key(frame, frame.image)
            self._store.put(key, frame.image)
            decision.evidence.original_key = key

    def _publish(self, decision: Decision) -> Future[None]:
        future = self._bus.publish(topics.DECISIONS, decision_message(decision, SOURCE))
        self._metrics.held(decision.hold.reason, decision.hold.measure)
        return future


def _frame_in(message: Message) -> Frame:
    """Raises BadField when the body is no frame, or one whose names may not stand in keys and records."""
    try:
        frame = checked_frame(Frame.FromString(message.body))
    except DecodeError:
        raise BadField("the message is not a Frame", field="frame") from None
    # The broker knows who may send under a key; what stands in a body is anybody's word.
    if message.key != (frame.line, frame.station):
        raise BadField(f"a frame of {frame.line}/{frame.station} came as {'/'.join(message.key)}", field="station")
    return frame


def _prepared_frame(frame: Frame, prepared: Prepared, pixels: Pixels, received_at: Timestamp) -> PreparedFrame:
    recipe = prepared.stored.recipe
    return PreparedFrame(
        frame=frame,
        pixels=pixels,
        quality=prepared.quality,
        recipe=recipe.name,
        recipe_version=prepared.stored.version,
        model=recipe.model,
        model_alias=recipe.model_alias,
        preparation_hash=prepared.preparation_hash,
        threshold_override=recipe.threshold,
        qualified_below_override=recipe.qualified_below,
        received_at=received_at,
        prepared_at=_now(),
    )


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
