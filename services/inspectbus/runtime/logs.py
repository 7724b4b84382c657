"""Logs: one line per event, for people on a terminal or as JSON for machines. Never image bytes, never secrets.

A line on a frame names it: frame_id, trace_id, line and station, put there by whoever has the frame in hand (spans.py).
A line that is evidence says so: `audit: true`, by which a collector sends it where it is kept.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

from inspectbus import spans

AUDITED = frozenset({"call denied"})
"""Events that tell who tried what. What succeeded is in the records, with the caller's name."""


def configure(level: str = "info", form: Literal["text", "json"] = "text") -> None:
    """Called once by the command line. Logs go to standard error; standard output belongs to results."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            spans.on_log_line,
            _audit,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def _audit(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if event["event"] in AUDITED:
        event["audit"] = True
    return event
