"""What a caller asked for: filters become conditions, page tokens become cursors, and whatever is neither is refused.

A page token is a cursor with a digest over it and the filter it was made for: it can be neither invented, nor changed,
nor carried over to another question, where it would silently skip records.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import ColumnElement

from inspectbus.api.v1.decision_pb2 import Verdict
from inspectbus.api.v1.results_pb2 import DecisionFilter, GetAgreementRequest, ListDecisionsRequest
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField
from inspectbus.results.tables import decisions

MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_TEXT = 500
"""Characters of an id of the plant. The ledger indexes them, and PostgreSQL's indexes take at most 2.7 kB."""

_EARLIEST_S = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_LATEST_S = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
_CURSOR = struct.Struct(">Q")
_DIGEST_BYTES = 8


def conditions(wanted: DecisionFilter) -> list[ColumnElement[bool]]:
    """The filter as conditions on the columns of `decisions`. Raises BadField naming the field at fault."""
    where: list[ColumnElement[bool]] = []
    if wanted.line:
        where.append(decisions.c.line == checked_name(wanted.line, "filter.line"))
    if wanted.station:
        where.append(decisions.c.station == checked_name(wanted.station, "filter.station"))
    if wanted.run_id:
        where.append(decisions.c.run_id == checked_text(wanted.run_id, "filter.run_id"))
    if wanted.part_id:
        where.append(decisions.c.part_id == checked_text(wanted.part_id, "filter.part_id"))
    if wanted.lot_id:
        where.append(decisions.c.lot_id == checked_text(wanted.lot_id, "filter.lot_id"))
    if wanted.verdicts:
        for i, verdict in enumerate(wanted.verdicts):
            if verdict not in Verdict.values() or verdict == Verdict.VERDICT_UNSPECIFIED:
                raise BadField(f"{verdict} is no verdict to filter by", field=f"filter.verdicts[{i}]")
        where.append(decisions.c.verdict.in_(sorted(set(wanted.verdicts))))
    if wanted.model_version:
        # As scores name their groups, "elpv/0f3a...", or the version alone.
        model, _, version = checked_text(wanted.model_version, "filter.model_version").rpartition("/")
        where.append(decisions.c.model_version == version)
        if model:
            where.append(decisions.c.model == checked_name(model, "filter.model_version"))
    return where + _times(wanted)


def _times(wanted: DecisionFilter) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if wanted.HasField("since"):
        where.append(decisions.c.recorded_at_us >= microseconds(wanted.since, "filter.since"))
    if wanted.HasField("until"):
        where.append(decisions.c.recorded_at_us < microseconds(wanted.until, "filter.until"))
    if len(where) == 2 and wanted.until.ToNanoseconds() <= wanted.since.ToNanoseconds():
        raise BadField("filter.until must come after filter.since", field="filter.until")
    return where


def microseconds(moment: Timestamp, field: str) -> int:
    """The first microsecond at or after the moment, since records are timed in microseconds."""
    if not (_EARLIEST_S <= moment.seconds <= _LATEST_S and 0 <= moment.nanos < 1_000_000_000):
        raise BadField(f"{field} is no point in time: {moment.seconds} s, {moment.nanos} ns", field=field)
    return moment.seconds * 1_000_000 - -moment.nanos // 1000


def checked_text(value: str, field: str) -> str:
    """The value, when every database takes it. Raises BadField naming the field otherwise."""
    if len(value) > MAX_TEXT or "\0" in value:
        raise BadField(f"{field} must be text of at most {MAX_TEXT} characters without NUL", field=field)
    return value


def page_size(request: ListDecisionsRequest | GetAgreementRequest) -> int:
    """Raises BadField above the limit."""
    if request.page_size > MAX_PAGE:
        raise BadField(f"page_size is 1 to {MAX_PAGE}, not {request.page_size}", field="page_size")
    return request.page_size or DEFAULT_PAGE


def page_token(cursor: int, wanted: DecisionFilter) -> str:
    """Stands for "what follows this cursor, with the same filter"."""
    packed = _CURSOR.pack(cursor)
    return base64.urlsafe_b64encode(packed + _digest(packed, wanted)).decode()


def after(request: ListDecisionsRequest) -> int:
    """The cursor behind the request's token; 0 without one. Raises BadField when the token was not given for this."""
    if not request.page_token:
        return 0
    token = token_bytes(request.page_token)
    packed, digest = token[: _CURSOR.size], token[_CURSOR.size :]
    if len(packed) != _CURSOR.size or digest != _digest(packed, request.filter):
        raise BadField("page_token is not one that ListDecisions gave for this filter", field="page_token")
    return int(_CURSOR.unpack(packed)[0])


def token_bytes(token: str) -> bytes:
    """What a page token was made of; nothing where it is none."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""


def _digest(packed: bytes, wanted: DecisionFilter) -> bytes:
    return hashlib.sha256(packed + wanted.SerializeToString(deterministic=True)).digest()[:_DIGEST_BYTES]
