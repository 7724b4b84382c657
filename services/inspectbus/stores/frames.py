"""The frame store: image bytes under keys, in a folder or a bucket (fsspec).

Messages and records carry keys, never paths or URLs; a key is spelt by this room and checked on every use.
"""

from __future__ import annotations

import re
import uuid
from contextlib import suppress

import fsspec

from inspectbus.errors import BadField, NotFound

_KEY = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}(/[A-Za-z0-9][A-Za-z0-9_-]{0,62}){1,4}(\.[a-z]{2,5})?\Z")


class FrameStore:
    """Bytes by key below one root URL, such as file:///var/inspectbus/frames."""

    def __init__(self, url: str) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    def put(self, key: str, data: bytes) -> None:
        """Writes the object whole or not at all. Raises OSError when the storage fails."""
        path = self._path(key)
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        # A reader, or a restart, must never meet half an image.
        part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        try:
            self._files.pipe_file(part, data)
            self._files.mv(part, path)
        except OSError:
            # On a full disk above all, what was begun must give its room back.
            with suppress(OSError):
                self._files.rm_file(part)
            raise

    def get(self, key: str) -> bytes:
        """Raises NotFound when there is no such object."""
        try:
            return bytes(self._files.cat_file(self._path(key)))
        except FileNotFoundError:
            raise NotFound(f"the frame store has no object {key}", field="key") from None

    def delete(self, key: str) -> None:
        """One that is gone already is no fault: two may delete at once."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(key))

    def _path(self, key: str) -> str:
        if not _KEY.match(key):
            raise BadField(f"{key[:100]!r} is not a frame-store key", field="key")
        return f"{self._root}/{key}"


def evidence_key(line: str, station: str, frame_id: str, part: str, suffix: str) -> str:
    """`part` is 'original' or 'prepared': line-1/top/3f/3f2a…-original.png. Two hex digits keep folders small."""
    return f"{line}/{station}/{frame_id[:2]}/{frame_id}-{part}.{suffix}"
