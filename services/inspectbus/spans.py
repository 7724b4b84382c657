"""What belongs to the part in hand: the words on its log lines, and the steps of its trace.

    frame id 4711aaaa-bbbb-5ccc-8ddd-eeeeeeeeeeee ─> trace 4711aaaabbbb5ccc8dddeeeeeeeeeeee
                                                  └> its first span, `part`: 8dddeeeeeeeeeeee

    part ─┬─ publish      handed to the bus, until it is accepted
          ├─ prepare
          ├─ judge <┄┄┄┄┄ infer, the batch it was in: a trace of its own that links all its frames
          ├─ record
          └─ gate         decided, until outputs know it

Trace and first span have the frame's own id (as W3C Trace Context wants them), and every step hangs on that span. So
nobody has to hand a trace on, and none is lost where memory ends: what a spool sends a day later, the outcome after a
crash, a dead letter that is replayed, all know where they belong.

Steps are recorded while somebody takes them (`recorded_by`, see runtime/tracing.py). By default nobody does, and then
none is begun.
"""

from __future__ import annotations

import contextvars
import uuid
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

W3C = TraceContextTextMapPropagator()
"""What travels: `traceparent`, as header of a message and metadata of a call."""

Attributes = Mapping[str, str | int | float | bool]

first_ids: ContextVar[SpanContext | None] = ContextVar("first_ids", default=None)
"""The ids that a span without parent gets which is begun now; None: any."""

_in_hand: ContextVar[tuple[str, str, str] | None] = ContextVar("in_hand", default=None)

_NOBODY = trace.NoOpTracerProvider().get_tracer("inspectbus")
_tracer: trace.Tracer = _NOBODY


@contextmanager
def recorded_by(provider: trace.TracerProvider) -> Iterator[None]:
    """Gives the steps of this process to the provider until left."""
    global _tracer  # noqa: PLW0603 - one for the process, as its log is
    before, _tracer = _tracer, provider.get_tracer("inspectbus")
    try:
        yield
    finally:
        _tracer = before


def are_recorded() -> bool:
    return _tracer is not _NOBODY


def tracer() -> trace.Tracer:
    return _tracer


# --- the part in hand


def trace_id_of(frame_id: str) -> str:
    """32 hex digits; empty for what is no frame id, which has no trace either."""
    try:
        return uuid.UUID(frame_id).hex
    except ValueError:
        return ""


def words(frame_id: str, line: str, station: str) -> dict[str, str]:
    """For one log line on a frame."""
    return {"frame_id": frame_id, "trace_id": trace_id_of(frame_id), "line": line, "station": station}


class InHand:
    """Puts a frame's words on every log line of this thread while entered."""

    # Entered several times for each frame, and most write no line: the words are made when one does.
    __slots__ = ("_frame", "_token")

    def __init__(self, frame_id: str, line: str, station: str) -> None:
        self._frame = (frame_id, line, station)

    def __enter__(self) -> None:
        self._token = _in_hand.set(self._frame)

    def __exit__(self, *_: object) -> None:
        _in_hand.reset(self._token)


def traceparent(frame_id: str) -> dict[str, str]:
    """The header of messages on the frame; none for what is no frame id."""
    carrier: dict[str, str] = {}
    W3C.inject(carrier, _part(frame_id))
    return carrier


# --- steps


def begin_part(frame_id: str, attributes: Attributes) -> Span:
    """The first span of a frame's trace. Whoever begins it ends it, or lets it go unrecorded."""
    if not are_recorded():
        return trace.INVALID_SPAN
    token = first_ids.set(trace.get_current_span(_part(frame_id)).get_span_context())
    try:
        part = _tracer.start_span("part", Context(), attributes=_named(frame_id, attributes))
    finally:
        first_ids.reset(token)
    # Not among the links it begins with: a call that is recorded is no reason to record the part.
    call = trace.get_current_span().get_span_context()
    if call.is_valid:
        part.add_link(call)
    return part


def begin(
    name: str,
    frame_id: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    headers: Mapping[str, str] | None = None,
    start_s: float | None = None,
    attributes: Attributes | None = None,
) -> Span:
    """A step of the frame's trace, by its message's headers where there are some. Whoever begins it ends it.

    A sender of its own may have a trace of its own: it is linked, and the step is one of the frame's all the same.
    """
    if not are_recorded():
        return trace.INVALID_SPAN
    context, links = _part(frame_id), []
    if headers:
        theirs = W3C.extract(headers, Context())
        sender = trace.get_current_span(theirs).get_span_context()
        if f"{sender.trace_id:032x}" == trace_id_of(frame_id):
            context = theirs
        elif sender.is_valid:
            links = [Link(sender)]
    return _tracer.start_span(
        name,
        context,
        kind,
        attributes=_named(frame_id, attributes or {}),
        links=links,
        start_time=None if start_s is None else int(start_s * 1e9),
    )


def end(span: Span, error: BaseException | None = None) -> None:
    """Ends a step, with what it failed of. A second end does nothing."""
    if span.is_recording():
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"[:500]))
        span.end()


def begin_batch(name: str, images: Iterable[contextvars.Context]) -> Span:
    """One pass over several images, each given by the context in which it came: a span that links what was current
    there, for `end`. Recorded when one of these is."""
    if not are_recorded():
        return trace.INVALID_SPAN
    came = [context.run(trace.get_current_span).get_span_context() for context in images]
    links = [Link(each) for each in came if each.trace_flags.sampled]
    if not links:
        return trace.INVALID_SPAN
    return _tracer.start_span(name, Context(), links=links, attributes={"inspectbus.images": len(came)})


def on_log_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: adds the words of the frame in hand, and the step that the line belongs to."""
    frame = _in_hand.get()
    if frame is not None:
        for name, value in words(*frame).items():
            event.setdefault(name, value)
    here = trace.get_current_span().get_span_context()
    if here.is_valid:
        event.setdefault("trace_id", f"{here.trace_id:032x}")
        event.setdefault("span_id", f"{here.span_id:016x}")
    return event


def _named(frame_id: str, attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {"inspectbus.frame_id": frame_id, **{f"inspectbus.{name}": value for name, value in attributes.items()}}


def _part(frame_id: str) -> Context:
    """The context of whatever happens to a frame; empty for what is no frame id."""
    digits = trace_id_of(frame_id)
    if not digits:
        return Context()
    ids = SpanContext(int(digits, 16), int(digits[16:], 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(ids), Context())
