"""Secrets made here, the broker's passwords and callers' tokens: kept in files that only their owner reads, printed
nowhere."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from inspectbus.errors import BadField

PASSWORD_BYTES = 24
MAX_FILE_BYTES = 4 * 1024 * 1024


def keep_passwords(file: Path, users: Sequence[str]) -> dict[str, str]:
    """A password for each user: the file's own, and new ones, written into it, for those it does not know.

    Raises BadField for a file that is no JSON of users and passwords, or that others may read.
    """
    known = _read(file)
    missing = [user for user in users if user not in known]
    if missing:
        known |= {user: secrets.token_urlsafe(PASSWORD_BYTES) for user in missing}
        _write(file, known)
    return {user: known[user] for user in users}


def keep_token(file: Path, token: str) -> None:
    """In a new file, because somebody may still use the token of an old one. Raises BadField when there is one."""
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            opened.write(token + "\n")
    except FileExistsError:
        raise BadField(f"{file} is there already, and its token may be in use: name another", field="out") from None
    except OSError as error:
        raise BadField(f"{file} cannot be written: {error.strerror}", field="out") from None


def _read(file: Path) -> dict[str, str]:
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadField(f"{file}: {error.strerror}", field="credentials") from None
    if mode & 0o077:
        raise BadField(f"{file} may be read or changed by others: chmod 600 it first", field="credentials")
    try:
        known = json.loads(data)
    except ValueError:
        known = None
    # The file's text is told to nobody: it holds passwords.
    if not isinstance(known, dict) or not all(isinstance(word, str) and word for word in known.values()):
        raise BadField(f"{file} is no JSON object of users and passwords", field="credentials")
    return known


def _write(file: Path, known: dict[str, str]) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            json.dump(known, opened, indent=2)
            opened.write("\n")
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
