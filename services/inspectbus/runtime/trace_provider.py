"""The provider of traces: which ids they get, and which are recorded. The one file that needs OpenTelemetry's SDK.

Sampled by the trace's id, which is the frame's: with one OTEL_TRACES_SAMPLER for all services, each decides alike on a
part without being told, so a part's trace is whole or not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from inspectbus import spans
from inspectbus.errors import BadField

SAMPLER, SAMPLER_ARG = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
BY_RATIO = ("traceidratio", "parentbased_traceidratio")


def provider_for(service_name: str, environ: Mapping[str, str]) -> TracerProvider:
    """Raises BadField for a ratio that is none. What else the environment says the SDK reads for itself."""
    sampler = None
    if environ.get(SAMPLER) in BY_RATIO:
        sampler = by_frame(_ratio(environ.get(SAMPLER_ARG, "1")))
    own_name = {} if environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service_name}
    return TracerProvider(sampler=sampler, resource=Resource.create(own_name), id_generator=FrameIds())


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise BadField(f"{SAMPLER_ARG} is the share of parts to trace, 0 to 1, not {text[:40]!r}", field=SAMPLER_ARG)
    return ratio


class FrameIds(IdGenerator):
    """Random, but for the first span of a part, whose ids are the frame's."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()

    def generate_trace_id(self) -> int:
        first = spans.first_ids.get()
        return first.trace_id if first is not None and first.is_valid else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        first = spans.first_ids.get()
        return first.span_id if first is not None and first.is_valid else self._random.generate_span_id()


def by_frame(ratio: float) -> Sampler:
    """Records this share of the parts, the same in every service."""
    evenly = _Evenly(ratio)
    return ParentBased(evenly, remote_parent_sampled=evenly, remote_parent_not_sampled=evenly)


class _Evenly(TraceIdRatioBased):
    """By the id's last 56 bits, which are the random ones (W3C Trace Context 2).

    The standard's sampler compares all of the last 64, of which the first two are the same in every UUID: it would
    record all parts or none. And a batch is recorded with any of its frames.
    """

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if any(link.context.trace_flags.sampled for link in links or ()):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        spread = (trace_id << 8) & self.TRACE_ID_LIMIT
        return super().should_sample(parent_context, spread, name, kind, attributes, links, trace_state)
