"""Who is known here: the file of identities, read anew whenever it changes.

    tokens.yaml ─> one line for each identity ─> by token's hash, by certificate's name
                     └── a file that cannot be read or is wrong: told in the log and to Prometheus, and the last good
                         one stays, in which nobody is withdrawn any more

    line-1-top: {role: station, speaks_for: [line-1/top], sha256: 4f1c...}
    anna: {role: reviewer, sha256: [81aa..., 0d3b...]}          # two while a token is being replaced
    results: {role: viewer, certificate: results.plant.svc}     # known by its client certificate

A plain hash is right for these: `new_token` draws 256 random bits, which nobody guesses, so a slow hash would protect
nothing and give everybody who can reach the port a way to keep its processors busy. A token of any other form is
refused unseen, so a password under such a hash opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from weakref import WeakSet

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inspectbus.domain.strict_yaml import MAX_CHARS, read_mapping
from inspectbus.errors import BadField
from inspectbus.runtime.roles import Role

log = structlog.get_logger(__name__)

TOKEN_PREFIX = "ibt_"  # noqa: S105 - by which scanners find one in a repository
_TOKEN = re.compile(rf"{TOKEN_PREFIX}[A-Za-z0-9_-]{{43}}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_OWN_NAMES = ("anonymous", "local")
"""What those are called who have no entry."""
_ROLES = tuple(role for role in Role if role is not Role.ANYBODY)
_PLACE = r"^[a-z0-9][a-z0-9-]{0,62}(/[a-z0-9][a-z0-9-]{0,62})?$"


def new_token() -> str:
    """256 random bits in a form that can be told from everything else."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """As the file holds it: sha256, 64 hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


class Entry(BaseModel):
    """One identity of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    role: Role
    speaks_for: tuple[Annotated[str, Field(pattern=_PLACE)], ...] = ()
    """Lines, or line/station, whose frames it may send; empty is all of them."""
    sha256: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    """Of its tokens."""
    certificate: str = ""
    """A name in its client certificate: DNS name, or common name."""

    @field_validator("role", mode="before")
    @classmethod
    def _of_an_identity(cls, given: object) -> object:
        if given not in _ROLES:
            raise ValueError(f"must be {', '.join(_ROLES[:-1])} or {_ROLES[-1]}")
        return given

    @field_validator("sha256", mode="before")
    @classmethod
    def _one_or_several(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _can_be_known(self) -> Entry:
        if not self.sha256 and not self.certificate:
            raise ValueError("it has neither sha256 nor certificate, so nobody could ever be it")
        return self


@dataclass(frozen=True)
class Known:
    """The file's identities: name and entry."""

    by_hash: Mapping[bytes, tuple[str, str, Entry]]
    """Keyed hash of the token's hash -> the hash, name, entry."""
    by_certificate: Mapping[str, tuple[str, Entry]]
    key: bytes = field(repr=False)
    """Of this process alone: how long a look-up takes says nothing about what the file holds."""

    def by_token(self, token: str) -> tuple[str, Entry] | None:
        if not _TOKEN.fullmatch(token):
            return None
        digest = hash_of(token)
        found = self.by_hash.get(_keyed(self.key, digest))
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1:]


class Tokens:
    """Thread-safe. Looks at the file with every question and reads it when it has changed."""

    def __init__(self, file: Path) -> None:
        """Raises BadField for a file that cannot be read, or saying what is wrong in it."""
        self._file = file
        self._lock = threading.Lock()
        self._seen = _stamp(file)
        self._known = read_tokens(file)
        self._outdated = False
        _in_use.add(self)

    @property
    def file(self) -> Path:
        return self._file

    @property
    def outdated(self) -> bool:
        """Whether the file, as it is now, is not the one in use."""
        self.now()
        return self._outdated

    def now(self) -> Known:
        stamp = _stamp(self._file)
        if stamp == self._seen:
            return self._known
        with self._lock:
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._known = read_tokens(self._file)
                    self._outdated = False
                    log.info("tokens read anew", file=str(self._file))
                except BadField as error:
                    self._outdated = True
                    log.error("tokens not read, the last good ones stay", file=str(self._file), error=error.message)
            return self._known


class Outdated(Collector):
    """Whether the tokens files of this process are in use as they are on disk, each by its name."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "inspectbus_tokens_outdated",
            "1 while the tokens file cannot be read or is wrong, and the last good one is in use; without a file there "
            "is none.",
            labels=["file"],
        )
        for name, outdated in {str(tokens.file): tokens.outdated for tokens in list(_in_use)}.items():
            family.add_metric([name], float(outdated))
        yield family


_in_use: WeakSet[Tokens] = WeakSet()
"""Of all doors of this process: each holds its own for as long as it is open."""


def read_tokens(file: Path) -> Known:
    """Raises BadField for a file that cannot be read, that others may write, or saying what is wrong in it."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            # One more than is allowed, in bytes: enough to be refused for.
            text = opened.read(4 * MAX_CHARS + 1).decode("utf-8")
    except OSError as error:
        raise BadField(f"tokens: cannot read {file}: {error.strerror}", field="tokens") from None
    except UnicodeDecodeError:
        raise BadField(f"tokens: {file} is not UTF-8", field="tokens") from None
    if mode & stat.S_IWOTH:
        raise BadField(f"tokens: {file} may be changed by everybody: chmod o-w it first", field="tokens")
    try:
        entries = {name: checked_entry(name, row) for name, row in read_mapping(text, "it").items()}
    except BadField as error:
        raise BadField(f"tokens: {file}: {error.message}", field="tokens") from None
    key = secrets.token_bytes(32)
    by_hash: dict[bytes, tuple[str, str, Entry]] = {}
    by_certificate: dict[str, tuple[str, Entry]] = {}
    for name, entry in entries.items():
        for digest in entry.sha256:
            if by_hash.setdefault(_keyed(key, digest), (digest, name, entry))[1] != name:
                raise BadField(f"tokens: {file}: {name} has another identity's sha256", field="tokens")
        if entry.certificate and by_certificate.setdefault(entry.certificate, (name, entry))[0] != name:
            raise BadField(f"tokens: {file}: {name} has another identity's certificate", field="tokens")
    return Known(by_hash, by_certificate, key)


def checked_entry(name: str, row: object) -> Entry:
    """Raises BadField saying what is wrong with the name or with the rest of its line."""
    if not _NAME.fullmatch(name) or name in _OWN_NAMES:
        raise BadField(f"{name[:80]!r} cannot be an identity's name", field="name")
    try:
        return Entry.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        step = ".".join(str(part) for part in (name, *first["loc"]))
        raise BadField(f"{step}: {first['msg'].removeprefix('Value error, ')}", field=step) from None


def _keyed(key: bytes, digest: str) -> bytes:
    return hmac.digest(key, digest.encode(), "sha256")


def _stamp(file: Path) -> tuple[int, int, int, int] | None:
    """Changes when the file does, its rights, or a link on the way to it; None while there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
