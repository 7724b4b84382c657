"""Tables of which the first row of a key stays and every repeat is counted.

    sayings ─> fold those that say the same ─> turns: each key once ─> one upsert a turn ─> what became of each

Delivering is at least once, so writing must be idempotent: the upsert never touches what was said first. It only
counts: the same again is a duplicate, what differs a conflict.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import Connection, Engine, Table, case
from sqlalchemy.dialects import postgresql, sqlite


class Fate(Enum):
    """What became of one thing that was given to the ledger."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Saying:
    """One row that somebody wants to be the first of its key."""

    key: tuple[object, ...]
    """Values of the table's primary key."""
    fingerprint: bytes
    """Equal for what says the same."""
    row: dict[str, object]
    """The table's other columns."""


class FirstWins:
    """A table with the columns `fingerprint`, `duplicates` and `conflicts` beside its own."""

    def __init__(self, engine: Engine, table: Table) -> None:
        upsert: sqlite.Insert | postgresql.Insert
        upsert = sqlite.insert(table) if engine.dialect.name == "sqlite" else postgresql.insert(table)
        same = table.c.fingerprint == upsert.excluded.fingerprint
        # A row brings the repeats folded into it as `duplicates`; itself makes one more.
        came = upsert.excluded.duplicates + 1
        self._keys = [column.name for column in table.primary_key]
        self._upsert = upsert.on_conflict_do_update(
            index_elements=self._keys,
            set_={
                "duplicates": table.c.duplicates + case((same, came), else_=0),
                "conflicts": table.c.conflicts + case((same, 0), else_=came),
            },
        ).returning(*table.primary_key, table.c.fingerprint, table.c.duplicates)

    def write(self, connection: Connection, sayings: Sequence[Saying]) -> list[Fate]:
        """One statement, as a rule. The result is the same as of writing one by one, in the order given.

        Two transactions that write the same keys at once must take turns, or they may deadlock.
        """
        fates = [Fate.DUPLICATE] * len(sayings)
        for turn in _turns(sayings):
            rows = [self._row(sayings[indices[0]], len(indices) - 1) for indices in turn]
            standing = {
                tuple(key): (bytes(print_), duplicates)
                for *key, print_, duplicates in connection.execute(self._upsert, rows)
            }
            for indices in turn:
                saying = sayings[indices[0]]
                print_, duplicates = standing[saying.key]
                if print_ != saying.fingerprint:
                    for index in indices:
                        fates[index] = Fate.CONFLICT
                elif duplicates == len(indices) - 1:
                    # No more of them than came with it: nobody was here before.
                    fates[indices[0]] = Fate.RECORDED
        return fates

    def _row(self, saying: Saying, repeats: int) -> dict[str, object]:
        key = dict(zip(self._keys, saying.key, strict=True))
        return {**key, **saying.row, "fingerprint": saying.fingerprint, "duplicates": repeats, "conflicts": 0}


def _turns(sayings: Sequence[Saying]) -> list[list[list[int]]]:
    """The indices of equal sayings, grouped as statements can take them: a key's next differing saying the next turn.

    Nearly always one turn: it takes a conflict inside one batch to make a second.
    """
    by_key: dict[tuple[object, ...], dict[bytes, list[int]]] = {}
    for index, saying in enumerate(sayings):
        by_key.setdefault(saying.key, {}).setdefault(saying.fingerprint, []).append(index)
    turns = itertools.zip_longest(*(equal.values() for equal in by_key.values()))
    return [[indices for indices in turn if indices is not None] for turn in turns]
