"""A handler's work on a frame as others see it: the frame's words on its log lines, and a step of its trace.

delivery ─> words on the thread, step begun ─> handler ─> done, retry or park, from any thread: step ended
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext

from opentelemetry.trace import Span, SpanKind, use_span

from inspectbus import spans
from inspectbus.bus.contract import Delivery, Handler, Message
from inspectbus.bus.topics import DECISIONS, FRAMES, GATES, PREPARED, Topic

STEPS = {
    (FRAMES.name, "preprocessing"): "prepare",
    (PREPARED.name, "inference"): "judge",
    (DECISIONS.name, "results"): "record",
    (GATES.name, "outcomes"): "record outcome",
}
"""What each group does with a frame."""


def words(message: Message) -> dict[str, str]:
    """For a log line on a message; empty when it is on no frame. What stands in it is anybody's word until it was
    checked."""
    if not spans.trace_id_of(message.subject) or len(message.key) < 2:
        return {}
    return spans.words(message.subject, *message.key[:2])


def in_hand(message: Message) -> AbstractContextManager[None]:
    """The frame's words on every log line of this thread while entered, where the message is on a frame."""
    if len(message.key) < 2 or not spans.trace_id_of(message.subject):
        return nullcontext()
    return spans.InHand(message.subject, *message.key[:2])


def followed(topic: Topic, group: str, handler: Handler) -> Handler:
    """The handler, with all this around it."""
    step = STEPS.get((topic.name, group))
    if step is None:
        return handler

    def handle(delivery: Delivery) -> None:
        message = delivery.message
        # Whoever handles these topics parks what has no such key.
        line, station = (*message.key, "", "")[:2]
        with spans.InHand(message.subject, line, station):
            if not spans.are_recorded():
                handler(delivery)
                return
            span = spans.begin(
                step,
                message.subject,
                kind=SpanKind.CONSUMER,
                headers=message.headers,
                attributes={"lane": message.lane.value, "attempt": delivery.attempts},
            )
            if not span.is_recording():
                handler(delivery)
                return
            with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                try:
                    handler(_Followed(delivery, span))
                except Exception as error:  # whoever called us decides what becomes of the message
                    spans.end(span, error)
                    raise

    return handle


class _Followed:
    """A delivery whose step ends when it is settled."""

    def __init__(self, delivery: Delivery, span: Span) -> None:
        self._delivery = delivery
        self._span = span

    @property
    def message(self) -> Message:
        return self._delivery.message

    @property
    def attempts(self) -> int:
        return self._delivery.attempts

    def done(self, after: Iterable[Future[None]] = ()) -> None:
        spans.end(self._span)
        self._delivery.done(after)

    def retry(self, error: BaseException) -> None:
        spans.end(self._span, error)
        self._delivery.retry(error)

    def park(self, error: BaseException) -> None:
        spans.end(self._span, error)
        self._delivery.park(error)
