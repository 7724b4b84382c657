"""Where reports of comparisons rest: beside the model versions, one file for each job, so that every door can read it.

worker ─> report folder ─> publish, packed ─> <model store>/_reports/<job id>.zip ─> read, in parts ─> ReadReport
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec

from inspectbus.errors import NotFound, StorageAway

PART_BYTES = 256 * 1024
"""Of a file on its way to a caller: as much as a message carries inline elsewhere, and far below what gRPC takes."""
_ROOM = "_reports"
"""No model's name begins like this, so no version's folder can stand in the way."""


class Reports:
    """Below one root URL, such as the model store's. Thread-safe; several processes may share one store."""

    def __init__(self, url: str) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)

    def publish(self, job_id: str, folder: Path) -> None:
        """Puts what the folder holds into the store, in the place of what an earlier attempt put there.

        Raises StorageAway when the storage fails.
        """
        path = self._path(job_id)
        # A reader must never meet half a report under its final name.
        part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        try:
            with tempfile.TemporaryDirectory(prefix="packed-", dir=folder.parent) as room:
                packed = shutil.make_archive(f"{room}/report", "zip", root_dir=folder)
                self._files.makedirs(f"{self._root}/{_ROOM}", exist_ok=True)
                self._files.put_file(packed, part)
            self._files.mv(part, path)
        except OSError as error:
            raise StorageAway(f"the report cannot be put into the model store: {error}") from error

    def read(self, job_id: str) -> Iterator[bytes]:
        """The ZIP file, in order, at most PART_BYTES each.

        Raises NotFound when the store has none, StorageAway when the storage fails.
        """
        try:
            with self._files.open(self._path(job_id), "rb") as file:
                while part := file.read(PART_BYTES):
                    yield part
        except FileNotFoundError:
            raise NotFound(f"the report of job {job_id} is no longer in the model store", field="job_id") from None
        except OSError as error:
            raise StorageAway(f"the report of job {job_id} cannot be read: {error}") from error

    def _path(self, job_id: str) -> str:
        return f"{self._root}/{_ROOM}/{job_id}.zip"
