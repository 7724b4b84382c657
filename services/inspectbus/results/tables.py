"""The ledger's tables. `migrations/` makes them; a test keeps the two alike."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

metadata = MetaData()

# SQLite numbers rows by itself only in a column of type INTEGER.
_RowNumber = BigInteger().with_variant(Integer, "sqlite")

decisions = Table(
    "decisions",
    metadata,
    Column("frame_id", Text, primary_key=True),
    # In the order of commit; see ledger.py.
    Column("cursor", BigInteger, nullable=False),
    # Microseconds since the epoch, as is `labels.at_us`.
    Column("recorded_at_us", BigInteger, nullable=False),
    Column("line", Text, nullable=False),
    Column("station", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("part_id", Text, nullable=False),
    Column("lot_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    # A number of the contract's enum, as is `labels.label`.
    Column("verdict", SmallInteger, nullable=False),
    # What must be equal for a repeat to be a duplicate; see `fingerprint` in rows.py.
    Column("fingerprint", LargeBinary, nullable=False),
    Column("duplicates", Integer, nullable=False),
    Column("conflicts", Integer, nullable=False),
    # The whole Decision, serialised: the columns above are what is searched for.
    Column("decision", LargeBinary, nullable=False),
    Index("decisions_by_cursor", "cursor", unique=True),
    Index("decisions_by_station", "line", "station", "cursor"),
    Index("decisions_by_run", "run_id", "cursor"),
    Index("decisions_by_part", "part_id", "cursor"),
    Index("decisions_by_lot", "lot_id", "cursor"),
    Index("decisions_by_model_version", "model_version", "cursor"),
    Index("decisions_by_time", "recorded_at_us"),
)

# Neither of the next two points at `decisions`: an outcome or a replay's decision may come before the first decision.

outcomes = Table(
    "outcomes",
    metadata,
    Column("frame_id", Text, primary_key=True),
    Column("recorded_at_us", BigInteger, nullable=False),
    # By the station's wall clock.
    Column("at_us", BigInteger, nullable=False),
    Column("line", Text, nullable=False),
    Column("station", Text, nullable=False),
    # Numbers of the contract's enums.
    Column("action", SmallInteger, nullable=False),
    Column("reason", SmallInteger, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("duplicates", Integer, nullable=False),
    Column("conflicts", Integer, nullable=False),
    # The whole GateOutcome, serialised.
    Column("outcome", LargeBinary, nullable=False),
)

revisions = Table(
    "revisions",
    metadata,
    Column("frame_id", Text, primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("recorded_at_us", BigInteger, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("duplicates", Integer, nullable=False),
    Column("conflicts", Integer, nullable=False),
    Column("decision", LargeBinary, nullable=False),
)

ledger_cursor = Table(
    "ledger_cursor",
    metadata,
    # One row, which every recording transaction updates first.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)

claims = Table(
    "claims",
    metadata,
    # Of an object in the frame store that a message named.
    Column("key", Text, primary_key=True),
    # When a decision last named it; microseconds since the epoch.
    Column("named_at_us", BigInteger, nullable=False),
    # Never swept; see claims.py.
    Column("pinned", Boolean, nullable=False),
    Index("claims_by_time", "pinned", "named_at_us", "key"),
)

shadows = Table(
    "shadows",
    metadata,
    # Points at no decision: it may come before the one it is compared with.
    Column("frame_id", Text, primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("recorded_at_us", BigInteger, nullable=False),
    Column("line", Text, nullable=False),
    Column("station", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("verdict", SmallInteger, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("duplicates", Integer, nullable=False),
    Column("conflicts", Integer, nullable=False),
    # The whole ShadowDecision, serialised.
    Column("shadow", LargeBinary, nullable=False),
    Index("shadows_by_model", "model", "recorded_at_us", "frame_id", "model_version"),
    Index("shadows_by_time", "recorded_at_us"),
)

labels = Table(
    "labels",
    metadata,
    # The newest label of a frame is the one with the highest id.
    Column("id", _RowNumber, primary_key=True, autoincrement=True),
    Column("frame_id", Text, ForeignKey("decisions.frame_id"), nullable=False),
    Column("label", SmallInteger, nullable=False),
    Column("by", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Index("labels_by_frame", "frame_id", "id"),
)
