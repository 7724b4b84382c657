"""How a shadow is compared with what was decided: a request becomes conditions, places become page tokens.

As in `selection`, a token carries a digest over it and the question it was made for.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import uuid

from sqlalchemy import ColumnElement

from inspectbus.api.v1.results_pb2 import GetAgreementRequest, GetAgreementResponse
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField
from inspectbus.results.selection import checked_text, microseconds, page_size, token_bytes
from inspectbus.results.shadows import Place, ShadowBook
from inspectbus.results.tables import decisions, shadows

_PLACE = struct.Struct(">Q16s")
_DIGEST_BYTES = 8


def agreement(book: ShadowBook, request: GetAgreementRequest) -> GetAgreementResponse:
    """Raises BadField naming the field at fault."""
    where, size = _conditions(request), page_size(request)
    after = _after(request)
    # One more than asked for tells whether there is a next page.
    found = book.differences(where, after or Place(), size + 1)
    answer = GetAgreementResponse(disagreements=[difference for _, difference in found[:size]])
    if after is None:
        answer.rows.extend(book.agreement(where))
    if len(found) > size:
        answer.next_page_token = _token(found[size - 1][0], request)
    return answer


def _conditions(request: GetAgreementRequest) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [shadows.c.model == checked_name(request.model, "model")]
    if request.model_version:
        where.append(decisions.c.model_version == checked_text(request.model_version, "model_version"))
    if request.shadow_version:
        where.append(shadows.c.model_version == checked_text(request.shadow_version, "shadow_version"))
    if request.line:
        where.append(shadows.c.line == checked_name(request.line, "line"))
    if request.station:
        where.append(shadows.c.station == checked_name(request.station, "station"))
    if request.HasField("since"):
        where.append(shadows.c.recorded_at_us >= microseconds(request.since, "since"))
    if request.HasField("until"):
        where.append(shadows.c.recorded_at_us < microseconds(request.until, "until"))
        if request.HasField("since") and request.until.ToNanoseconds() <= request.since.ToNanoseconds():
            raise BadField("until must come after since", field="until")
    return where


def _token(place: Place, request: GetAgreementRequest) -> str:
    """Stands for "what follows this row, by the same question"."""
    packed = _PLACE.pack(place.recorded_at_us, uuid.UUID(place.frame_id).bytes) + place.model_version.encode()
    return base64.urlsafe_b64encode(_digest(packed, request) + packed).decode()


def _after(request: GetAgreementRequest) -> Place | None:
    """None for the first page."""
    if not request.page_token:
        return None
    token = token_bytes(request.page_token)
    digest, packed = token[:_DIGEST_BYTES], token[_DIGEST_BYTES:]
    if len(packed) < _PLACE.size or digest != _digest(packed, request):
        raise BadField("page_token is not one that GetAgreement gave for this question", field="page_token")
    recorded_at_us, frame_id = _PLACE.unpack(packed[: _PLACE.size])
    return Place(recorded_at_us, str(uuid.UUID(bytes=frame_id)), packed[_PLACE.size :].decode())


def _digest(packed: bytes, request: GetAgreementRequest) -> bytes:
    question = GetAgreementRequest()
    question.CopyFrom(request)
    question.ClearField("page_token")
    question.ClearField("page_size")
    return hashlib.sha256(packed + question.SerializeToString(deterministic=True)).digest()[:_DIGEST_BYTES]
