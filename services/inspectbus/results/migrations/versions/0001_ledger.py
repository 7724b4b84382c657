"""Decisions, their labels and the cursor."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("frame_id", sa.Text, primary_key=True),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("recorded_at_us", sa.BigInteger, nullable=False),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("station", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("part_id", sa.Text, nullable=False),
        sa.Column("lot_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("verdict", sa.SmallInteger, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("duplicates", sa.Integer, nullable=False),
        sa.Column("conflicts", sa.Integer, nullable=False),
        sa.Column("decision", sa.LargeBinary, nullable=False),
    )
    op.create_index("decisions_by_cursor", "decisions", ["cursor"], unique=True)
    op.create_index("decisions_by_station", "decisions", ["line", "station", "cursor"])
    op.create_index("decisions_by_run", "decisions", ["run_id", "cursor"])
    op.create_index("decisions_by_part", "decisions", ["part_id", "cursor"])
    op.create_index("decisions_by_lot", "decisions", ["lot_id", "cursor"])
    op.create_index("decisions_by_model_version", "decisions", ["model_version", "cursor"])
    op.create_index("decisions_by_time", "decisions", ["recorded_at_us"])
    cursor = op.create_table(
        "ledger_cursor",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(cursor, [{"id": 1, "last": 0}])
    op.create_table(
        "labels",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("frame_id", sa.Text, sa.ForeignKey("decisions.frame_id"), nullable=False),
        sa.Column("label", sa.SmallInteger, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
    )
    op.create_index("labels_by_frame", "labels", ["frame_id", "id"])
