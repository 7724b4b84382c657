"""The frame store: image bytes under keys, in a folder or a bucket, and the claim checks that travel instead of them.

    bytes ─ claim ─> object, and Claim(key, sha256, size) ─> message ─ fetch ─> the same bytes, or an error

Messages and records carry keys, never paths or URLs; a key is spelt by this room and checked on every use.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from inspectbus.api.v1.frame_pb2 import Claim, Frame
from inspectbus.errors import BadField, CorruptObject, NotFound
from inspectbus.stores.objects import open_objects

INLINE_MAX_BYTES = 256 * 1024
"""From here on a message costs the bus more than a second trip to the store costs the reader."""
LARGEST_OBJECT_BYTES = 512 * 1024 * 1024
"""As large as any message may be; who fetches knows a smaller limit."""

_KEY = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}(/[A-Za-z0-9][A-Za-z0-9_-]{0,62}){1,4}(\.[a-z]{2,5})?\Z")
_SUFFIXES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"BM", "bmp"), (b"II*\x00", "tif"), (b"MM\x00*", "tif"))


def default_url(state_dir: Path) -> str:
    """The store of a machine that was told none."""
    return f"file://{(state_dir / 'frames').absolute()}"


class FrameStore:
    """Bytes by key below one root URL, such as file:///var/inspectbus/frames or s3://bucket/prefix. Thread-safe.

    Every method raises BadField for what is no key, StorageFull and StorageAway when the storage fails.
    """

    def __init__(self, url: str, *, fsync: bool = False) -> None:
        """`fsync` brings each file to the disk itself before `put` returns: it survives a power cut, for some
        milliseconds each. A bucket does so in any case."""
        self._objects = open_objects(url, fsync=fsync)
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    def put(self, key: str, data: bytes) -> None:
        """Writes the object whole or not at all; writing the same again changes nothing."""
        self._objects.put(_checked(key), data)

    def get(self, key: str) -> bytes:
        """Raises NotFound when there is no such object."""
        try:
            return self._objects.read(_checked(key))
        except NotFound:
            raise _missing(key) from None

    def claim(self, key: str, data: bytes) -> Claim:
        """Puts the object, and gives what its message carries instead."""
        self.put(key, data)
        return Claim(key=key, sha256=hashlib.sha256(data).digest(), size=len(data))

    def fetch(self, claim: Claim, limit_bytes: int = LARGEST_OBJECT_BYTES) -> bytes:
        """The very bytes that were claimed, and never more than the limit in memory.

        Raises NotFound when the object is missing, CorruptObject when it is another than the one claimed, BadField
        when the claim is larger than the limit.
        """
        _checked(claim.key)
        if claim.size > limit_bytes:
            raise BadField(
                f"object {claim.key} is claimed to have {claim.size} bytes; at most {limit_bytes} are taken",
                field="claim.size",
            )
        try:
            # One byte more, which a longer object shows by.
            data = self._objects.read(claim.key, claim.size + 1)
        except NotFound:
            raise _missing(claim.key) from None
        if len(data) != claim.size:
            is_now = f"more than {claim.size}" if len(data) > claim.size else str(len(data))
            raise CorruptObject(f"object {claim.key} has {is_now} bytes; {claim.size} were claimed", field="claim.size")
        if hashlib.sha256(data).digest() != claim.sha256:
            raise CorruptObject(
                f"object {claim.key} is changed: its sha256 is not the one claimed", field="claim.sha256"
            )
        return data

    def size(self, key: str) -> int:
        """Bytes. Raises NotFound."""
        try:
            return self._objects.size(_checked(key))
        except NotFound:
            raise _missing(key) from None

    def delete(self, key: str) -> None:
        """One that is gone already is no fault: two may delete at once."""
        self._objects.delete(_checked(key))


def evidence_key(line: str, station: str, frame_id: str, part: str, suffix: str) -> str:
    """line-1/top/3f/3f2a…-original.png; or 'prepared', or 'heatmap'. Two hex digits keep folders small."""
    return f"{_prefix(line, station, frame_id)}{part}.{suffix}"


def original_key(frame: Frame, image: bytes) -> str:
    """Where a frame's image file rests, claimed or as evidence; its suffix is told by the first bytes."""
    suffix = next((suffix for magic, suffix in _SUFFIXES if image.startswith(magic)), "bin")
    return evidence_key(frame.line, frame.station, frame.frame_id, "original", suffix)


def is_key_of(key: str, line: str, station: str, frame_id: str) -> bool:
    """True when the key is one of this very frame.

    What a message claims will be fetched, and later deleted: nobody's message may name another's object.
    """
    return bool(_KEY.match(key)) and key.startswith(_prefix(line, station, frame_id))


def checked_claim(claim: Claim, frame: Frame, field: str) -> Claim:
    """The claim, when it names an object of this frame. Raises BadField naming the claim's key."""
    if not is_key_of(claim.key, frame.line, frame.station, frame.frame_id):
        raise BadField(
            f"{field}.key {claim.key[:100]!r} is no frame-store key of frame {frame.frame_id}", field=f"{field}.key"
        )
    return claim


def _prefix(line: str, station: str, frame_id: str) -> str:
    return f"{line}/{station}/{frame_id[:2]}/{frame_id}-"


def _checked(key: str) -> str:
    if not _KEY.match(key):
        raise BadField(f"{key[:100]!r} is not a frame-store key", field="key")
    return key


def _missing(key: str) -> NotFound:
    return NotFound(f"the frame store has no object {key}", field="key")
