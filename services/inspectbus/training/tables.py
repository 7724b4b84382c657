"""The training service's tables: jobs, model versions, and the aliases that point at them with their history.

Moments are microseconds since the epoch, UTC: whole numbers compare and sort alike on every database.
"""

from __future__ import annotations

import time

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

MAX_REASON_CHARS = 500

metadata = MetaData()

# SQLite counts up by itself only in a column that is exactly INTEGER.
Counting = BigInteger().with_variant(Integer, "sqlite")

jobs = Table(
    "training_jobs",
    metadata,
    Column("number", Counting, primary_key=True, autoincrement=True),
    Column("job_id", String(36), nullable=False, unique=True),
    Column("state", String(20), nullable=False),
    # Rises with every change; what watchers compare.
    Column("revision", Integer, nullable=False),
    Column("plan", Text, nullable=False),
    Column("progress", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("model", String(63), nullable=False),
    Column("model_version", String(16), nullable=False),
    Column("requested_by", String(200), nullable=False),
    Column("cancelled_by", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    # The worker that runs the job and until when it is believed alive without a new sign of life.
    Column("worker", String(200), nullable=False),
    Column("lease_until", BigInteger),
    # How often it was begun.
    Column("attempts", Integer, nullable=False),
    # Why production does not name the version that came of it.
    Column("not_promoted", Text, nullable=False),
    # What a comparison is told, as JSON; empty for a training.
    Column("comparison", Text, nullable=False),
    Index("training_jobs_by_state", "state", "number"),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("number", Counting, primary_key=True, autoincrement=True),
    Column("name", String(63), nullable=False),
    Column("version", String(16), nullable=False),
    Column("card", Text, nullable=False),
    Column("registered_at", BigInteger, nullable=False),
    Index("model_versions_by_id", "name", "version", unique=True),
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("version", String(16), nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
)

model_alias_history = Table(
    "model_alias_history",
    metadata,
    Column("number", Counting, primary_key=True, autoincrement=True),
    Column("name", String(63), nullable=False),
    Column("alias", String(63), nullable=False),
    Column("version", String(16), nullable=False),
    Column("set_at", BigInteger, nullable=False),
    Column("by", String(200), nullable=False),
    Column("reason", String(MAX_REASON_CHARS), nullable=False),
    # What the alias named before; empty when it was new.
    Column("previous", String(16), nullable=False),
    Column("forced", Boolean, nullable=False),
    # Of a rollback: the number of the change that it brought back.
    Column("restored", BigInteger),
    Index("model_alias_history_by_alias", "name", "alias", "number"),
)


def now_us() -> int:
    """This moment as the tables write it."""
    return time.time_ns() // 1000
