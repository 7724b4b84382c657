"""Where objects rest, by URL: files below a folder, or objects of a bucket.

    file:///var/inspectbus/frames ─> Folder ┐
    s3://bucket/prefix ────────────> Bucket ┴─> put, read, size, delete

Both write an object whole or not at all. Whatever a disk, botocore or aiohttp fails with becomes StorageFull or
StorageAway here; only a missing object is NotFound, because trying again does not bring it back.
"""

from __future__ import annotations

import asyncio
import errno
import os
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from inspectbus.errors import BadField, NotFound, NotPossibleNow, StorageAway, StorageFull

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 5.0
TRIES = 2
"""Of one request to a bucket. Callers try again by their own measure, so a bucket that hangs costs seconds only."""
CALL_TIMEOUT_S = 15.0
"""Of one call, whatever it waits for: a server that never says "100 Continue" is not covered by the other two."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BUCKET_FULL = ("XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "507")


class Objects(Protocol):
    """Bytes under keys such as line-1/top/3f/3f2a-original.png. Every call raises StorageFull or StorageAway."""

    def put(self, key: str, data: bytes) -> None:
        """Whole or not at all; replaces what is there."""

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """The object, or its beginning when it is longer than the limit. Raises NotFound."""

    def size(self, key: str) -> int:
        """Bytes. Raises NotFound."""

    def delete(self, key: str) -> None:
        """One that is gone already is no fault."""


def open_objects(url: str, *, fsync: bool) -> Objects:
    """A plain path is a folder too. Raises BadField for any other scheme, NotPossibleNow when a library is missing."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Folder(Path(url).absolute(), fsync=fsync)
    if scheme == "file" and rest.startswith("/"):
        return Folder(Path(rest), fsync=fsync)
    if scheme == "s3" and rest.strip("/"):
        return Bucket(rest.strip("/"))
    raise BadField(
        f"{url[:80]!r} names no frame store: use file:///folder or s3://bucket/prefix", field="frame_store_url"
    )


class Folder:
    def __init__(self, root: Path, *, fsync: bool) -> None:
        self._root = root
        self._fsync = fsync

    def put(self, key: str, data: bytes) -> None:
        path = self._root / key
        # A reader, or a restart, must never meet half an image.
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    file.write(data)
                    if self._fsync:
                        file.flush()
                        os.fsync(file.fileno())
                part.replace(path)
            except OSError:
                # On a full disk above all, what was begun must give its room back.
                with suppress(OSError):
                    part.unlink()
                raise
            if self._fsync:
                self._sync_names(path)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        with self._translated(), (self._root / key).open("rb") as file:
            return file.read(-1 if limit_bytes is None else limit_bytes)

    def size(self, key: str) -> int:
        with self._translated():
            return (self._root / key).stat().st_size

    def delete(self, key: str) -> None:
        with self._translated():
            (self._root / key).unlink(missing_ok=True)

    def _sync_names(self, path: Path) -> None:
        """The names on the way to the object, which a power cut could otherwise take although its bytes are safe."""
        for folder in path.parents:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if folder == self._root:
                return

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            # A volume that is not mounted has no objects either, but it comes back.
            if not self._root.is_dir():
                raise StorageAway(f"the frame store's folder {self._root} is not there") from error
            raise _missing() from None
        except OSError as error:
            raise _failed(error, full=error.errno in _FULL) from error


class Bucket:
    """Endpoint, region and credentials come from the usual AWS_* variables."""

    def __init__(self, root: str) -> None:
        try:
            from aiohttp import ClientError
            from botocore.exceptions import BotoCoreError
            from s3fs import S3FileSystem
        except ModuleNotFoundError as error:
            raise NotPossibleNow(
                f"a frame store in a bucket needs the library {error.name}: install inspectbus[s3]",
                field="frame_store_url",
            ) from error
        self._root = root
        # One client per store: s3fs would hand out the same one again after the environment has changed.
        self._files = S3FileSystem(
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "read_timeout": READ_TIMEOUT_S,
                "retries": {"total_max_attempts": 1},
            },
        )
        self._files.retries = TRIES
        self._foreign = (OSError, BotoCoreError, ClientError)

    def put(self, key: str, data: bytes) -> None:
        # A bucket shows an object only when it has all of it.
        self._call(self._files._pipe_file(f"{self._root}/{key}", data))

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        start = None if limit_bytes is None else 0
        try:
            return bytes(self._call(self._files._cat_file(f"{self._root}/{key}", start=start, end=limit_bytes)))
        except _EmptyObject:
            return b""

    def size(self, key: str) -> int:
        bucket, _, path = f"{self._root}/{key}".partition("/")
        # Not `size` of s3fs, which lists the bucket for a missing object and so needs the right to.
        return int(self._call(self._files._call_s3("head_object", Bucket=bucket, Key=path))["ContentLength"])

    def delete(self, key: str) -> None:
        self._call(self._files._rm_file(f"{self._root}/{key}"))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs it on s3fs's own loop and thread."""
        try:
            bounded = asyncio.wait_for(work, CALL_TIMEOUT_S)
            return asyncio.run_coroutine_threadsafe(bounded, self._files.loop).result(2 * CALL_TIMEOUT_S)
        except self._foreign as error:
            code = _code(error)
            if code == "InvalidRange":  # an empty object has no first byte
                raise _EmptyObject from None
            if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
                raise _missing() from None
            raise _failed(error, full=code in _BUCKET_FULL) from error


class _EmptyObject(Exception):
    pass


def _code(error: BaseException) -> str:
    """What the bucket's own error was, before s3fs made an OSError of it."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _missing() -> NotFound:
    return NotFound("the frame store has no such object", field="key")


def _failed(error: BaseException, *, full: bool) -> StorageFull | StorageAway:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if full:
        return StorageFull(f"the frame store takes no more: {words}")
    return StorageAway(f"the frame store does not answer: {words}")
