"""tokens.yaml, edited as its readers will read it, comments and all other lines left as they are.

text ─> is the name there? ─┬─ no ──> a line at the end ─────┐
                            └─ yes ─> its line, a hash more ─┴─> a file beside it ─> the services' reader ─> in place
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import yaml

from inspectbus.domain.strict_yaml import read_mapping, written
from inspectbus.errors import BadField
from inspectbus.runtime.tokens import Entry, checked_entry, read_tokens


def line_of(name: str, entry: Entry) -> str:
    """As it stands in the file, without its end."""
    hashes = entry.sha256[0] if len(entry.sha256) == 1 else list(entry.sha256)
    row = {
        "role": str(entry.role),
        "speaks_for": list(entry.speaks_for),
        "certificate": entry.certificate,
        "sha256": hashes,
    }
    told = {key: value for key, value in row.items() if value}
    flow = written({name: told}, default_flow_style=True, width=float("inf"))
    return flow.strip()[1:-1]


def keep_identity(file: Path, name: str, entry: Entry) -> Entry:
    """Adds the identity, or the token's hash to those of one that is there, and gives what stands there then.

    Raises BadField where the file cannot be read or written, where the name is there with another role, places or
    certificate, or where the services would refuse what comes out; the file is then as it was.
    """
    place = file.resolve()
    text = ""
    if place.exists():
        read_tokens(place)
        text = place.read_text(encoding="utf-8")
    row = read_mapping(text, "it").get(name)
    if row is None:
        kept = entry
        text = f"{text}\n" if text and not text.endswith("\n") else text
        text += line_of(name, kept) + "\n"
    else:
        kept = _together(file, name, checked_entry(name, row), entry)
        start, end = _span(text, name)
        text = text[:start] + line_of(name, kept) + text[end:]
    _replace(file, place, text)
    return kept


def _together(file: Path, name: str, there: Entry, new: Entry) -> Entry:
    differs = [
        f"{what} {getattr(there, what) or 'unset'}"
        for what in ("role", "speaks_for", "certificate")
        if getattr(new, what) != getattr(there, what) and (what == "role" or getattr(new, what))
    ]
    if differs:
        raise BadField(f"{name} is in {file} with {', '.join(differs)}: name the same, or change its line", field=name)
    return there.model_copy(update={"sha256": (*there.sha256, *new.sha256)})


def _span(text: str, name: str) -> tuple[int, int]:
    """Where its line, or its block of lines, begins and ends."""
    mapping = cast("yaml.MappingNode", yaml.compose(text, yaml.SafeLoader))  # it was read as one
    ((key, value),) = (pair for pair in mapping.value if pair[0].value == name)
    return key.start_mark.index, _end(value)


def _end(node: yaml.Node) -> int:
    # A block ends, for the parser, where the next begins: comments between them belong to neither.
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _replace(file: Path, place: Path, text: str) -> None:
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        before = place.stat() if place.exists() else None
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as opened:
            if before is not None:
                # Its readers are other accounts than ours, often: they must go on to read it.
                os.fchown(opened.fileno(), before.st_uid, before.st_gid)
                os.fchmod(opened.fileno(), before.st_mode & 0o777)
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        read_tokens(part)
        part.replace(place)
    except BadField as error:
        raise BadField(error.message.replace(str(part), str(file)), field="file") from None
    except OSError as error:
        raise BadField(f"{file} cannot be written as its owner would: {error.strerror}", field="file") from None
    finally:
        part.unlink(missing_ok=True)
