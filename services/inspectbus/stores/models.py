"""Where model versions rest: immutable folders, found by name and version, trusted only as far as their hashes.

training ─> folder ─> publish ─> <store>/<name>/<version>/ ─> fetch ─> verified folder in the local cache ─> inference

model.json names every other file by sha256, and the version is the sha256 of model.json itself: so no byte of a
version can change without the change being named.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from pydantic import ValidationError

from inspectbus.domain.model_version import CARD_FILE, EXPORT_FILE, WEIGHTS_FILE, ModelCard
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField, CorruptModel, InspectBusError, ModelNotReady, NotFound

MAX_CARD_BYTES = 1024 * 1024
"""A card is a page or two; a longer one is no card."""
MAX_FILE_BYTES = 4 * 1024**3
"""One file of a version. The largest backbones weigh less than half of it."""
_CHUNK_BYTES = 1024 * 1024
_VERSION = re.compile(r"^[0-9a-f]{16}\Z")


def default_url(state_dir: Path) -> str:
    """The store of a machine that was told none."""
    return f"file://{(state_dir / 'models').absolute()}"


def write_card(folder: Path, card: ModelCard) -> None:
    """Writes model.json, whose sha256 begins with the version. The last step of making a version."""
    part = folder / f".{CARD_FILE}.{uuid.uuid4().hex[:8]}.part"
    part.write_bytes(_bytes(card))
    part.replace(folder / CARD_FILE)


def read_card(folder: Path, version: str | None = None) -> ModelCard:
    """The card of a version folder, once every file fits it.

    With `version`, the card must be that one: a changed card is another version. Raises NotFound when there is no
    card, CorruptModel naming the first file that is changed, missing, additional or no plain file.
    """
    _checked_plain(folder, CARD_FILE)
    with (folder / CARD_FILE).open("rb") as file:
        card = _parsed(file.read(MAX_CARD_BYTES + 1), version)
    for found in _files_below(folder):
        if found != CARD_FILE and found not in card.files:
            raise _corrupt(found, "stands in the folder, but not on the card")
    for name, sha256 in card.files.items():
        _checked_plain(folder, name)
        with (folder / name).open("rb") as file:
            _check_hash(name, hashlib.file_digest(file, "sha256").hexdigest(), sha256)
    return card


class ModelStore:
    """Versions below one root URL, such as file:///var/inspectbus/models, and a local cache of those in use."""

    def __init__(self, url: str, cache_dir: Path) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._url = url
        self._cache_dir = cache_dir

    @property
    def url(self) -> str:
        return self._url

    def publish(self, folder: Path) -> ModelCard:
        """Puts a version into the store. Doing it again changes nothing, and completes or mends what is there.

        The card goes last, so a version that can be found is whole. Raises what read_card raises, and OSError when
        the storage fails.
        """
        card = read_card(folder)
        target = f"{self._root}/{card.name}/{card.version}"
        for name in card.files:
            self._put((folder / name), f"{target}/{name}")
        self._put(folder / CARD_FILE, f"{target}/{CARD_FILE}")
        return card

    def fetch(self, name: str, version: str) -> Path:
        """A verified folder of the version on this machine: from the cache, or copied into it.

        Raises NotFound when the store has no such version, CorruptModel naming the file when it is damaged there,
        ModelNotReady when the store cannot be reached and the cache has no sound copy.
        """
        checked_name(name, "model")
        if not _VERSION.match(version):
            raise BadField(f"{version[:40]!r} is not a model version: 16 hex digits", field="model_version")
        cached = self._cache_dir / name / version
        try:
            card = read_card(cached, version)
        except (NotFound, CorruptModel, OSError):
            card = self._copy(f"{self._root}/{name}/{version}", cached, version)
        if card.name != name:
            raise CorruptModel(f"model version {version} is of {card.name}, not of {name}", field=CARD_FILE)
        return cached

    def verify(self, name: str, version: str) -> ModelCard:
        """The card, once every file in the store itself fits it, whatever lies in the cache.

        Raises NotFound when the store has no such version, CorruptModel naming the first file that is damaged or
        missing there, ModelNotReady when the store cannot be reached.
        """
        origin = f"{self._root}/{checked_name(name, 'model')}/{version}"
        with self._reachable(version):
            card = _parsed(b"".join(self._chunks(origin, CARD_FILE, MAX_CARD_BYTES, missing=NotFound)), version)
            if card.name != name:
                raise CorruptModel(f"model version {version} is of {card.name}, not of {name}", field=CARD_FILE)
            for file, sha256 in card.files.items():
                digest = hashlib.sha256()
                for chunk in self._chunks(origin, file, MAX_FILE_BYTES, missing=CorruptModel):
                    digest.update(chunk)
                _check_hash(file, digest.hexdigest(), sha256)
        return card

    def read(self, card: ModelCard, file: str, limit: int) -> bytes:
        """One file of a version in the store, at most `limit` bytes. Raises NotFound when the version has no such file,
        and else what `verify` raises."""
        if file not in card.files:
            raise NotFound(f"model version {card.version} has no {file}", field=file)
        with self._reachable(card.version):
            origin = f"{self._root}/{card.name}/{card.version}"
            data = b"".join(self._chunks(origin, file, limit, missing=CorruptModel))
        _check_hash(file, hashlib.sha256(data).hexdigest(), card.files[file])
        return data

    def _put(self, source: Path, path: str) -> None:
        with source.open("rb") as file:
            expected = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            with self._files.open(path, "rb") as there:
                if hashlib.file_digest(there, "sha256").hexdigest() == expected:
                    return
        except FileNotFoundError:
            pass
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        # A reader, or a restart, must never meet half a file under its final name.
        part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        self._files.put_file(str(source), part)
        self._files.mv(part, path)

    def _copy(self, origin: str, cached: Path, version: str) -> ModelCard:
        part = cached.with_name(f".{version}.{uuid.uuid4().hex[:8]}.part")
        try:
            part.mkdir(parents=True)
            self._download(origin, CARD_FILE, part, MAX_CARD_BYTES, missing=NotFound)
            for name in _parsed((part / CARD_FILE).read_bytes(), version).files:
                self._download(origin, name, part, MAX_FILE_BYTES, missing=CorruptModel)
            card = read_card(part, version)
            shutil.rmtree(cached, ignore_errors=True)
            part.rename(cached)
        except OSError as error:
            # The rename fails where another process was quicker; its copy is as good as ours, if it is sound.
            if cached.exists():
                return read_card(cached, version)
            raise ModelNotReady(f"model version {version} cannot be fetched: {error}", field="model") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return card

    def _download(self, origin: str, name: str, folder: Path, limit: int, missing: type[InspectBusError]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("wb") as copy:
            for chunk in self._chunks(origin, name, limit, missing):
                copy.write(chunk)

    def _chunks(self, origin: str, name: str, limit: int, missing: type[InspectBusError]) -> Iterator[bytes]:
        try:
            source = self._files.open(f"{origin}/{name}", "rb")
        except FileNotFoundError:
            raise missing(f"{origin}/{name} is not in the model store", field=name) from None
        with source:
            left = limit
            while chunk := source.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise _corrupt(name, f"is larger than {limit} bytes")
                yield chunk

    @contextmanager
    def _reachable(self, version: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelNotReady(f"model version {version} cannot be read: {error}", field="model") from error


def _bytes(card: ModelCard) -> bytes:
    return card.model_dump_json().encode()


def _parsed(data: bytes, version: str | None) -> ModelCard:
    if len(data) > MAX_CARD_BYTES:
        raise _corrupt(CARD_FILE, f"is larger than {MAX_CARD_BYTES} bytes")
    try:
        card = ModelCard.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise _corrupt(CARD_FILE, f"is not a card: {where}: {first['msg']}"[:500]) from None
    # A card that means the same but is spelt otherwise would not have the hash that names the version.
    if data != _bytes(card):
        raise _corrupt(CARD_FILE, "has been rewritten: it is not spelt the way cards are written")
    if version is not None and card.version != version:
        raise _corrupt(CARD_FILE, f"is the card of version {card.version}, not of {version}")
    exported = (EXPORT_FILE,) if card.export is not None else ()
    for needed in (WEIGHTS_FILE, *exported, *(image.file for image in card.pinned)):
        if needed not in card.files:
            raise _corrupt(CARD_FILE, f"gives no sha256 for {needed}")
    return card


def _files_below(folder: Path) -> Iterator[str]:
    """Every name that is no directory; one that links to a directory counts as such a name."""
    for root, folders, files in os.walk(folder):
        for name in sorted([*files, *(inner for inner in folders if (Path(root) / inner).is_symlink())]):
            yield (Path(root) / name).relative_to(folder).as_posix()


def _checked_plain(folder: Path, name: str) -> None:
    """A link or a pipe is refused before anything is read: it could lead anywhere, or never end."""
    try:
        mode = (folder / name).lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        kind = NotFound if name == CARD_FILE else CorruptModel
        raise kind(f"{name} is missing from model folder {folder}", field=name) from None
    if not stat.S_ISREG(mode):
        raise _corrupt(name, "is no plain file")


def _check_hash(name: str, found: str, sha256: str) -> None:
    if found != sha256:
        raise _corrupt(name, "is not the file that was tested: its sha256 differs from the card's")


def _corrupt(name: str, fault: str) -> CorruptModel:
    return CorruptModel(f"model file {name} {fault}", field=name)
