"""Jobs, model versions, aliases and their history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Counting = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "training_jobs",
        sa.Column("number", _Counting, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(36), nullable=False, unique=True),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("model_version", sa.String(16), nullable=False),
        sa.Column("requested_by", sa.String(200), nullable=False),
        sa.Column("cancelled_by", sa.String(200), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("lease_until", sa.BigInteger),
    )
    op.create_index("training_jobs_by_state", "training_jobs", ["state", "number"])
    op.create_table(
        "model_versions",
        sa.Column("number", _Counting, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("registered_at", sa.BigInteger, nullable=False),
    )
    op.create_index("model_versions_by_id", "model_versions", ["name", "version"], unique=True)
    op.create_table(
        "model_aliases",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("alias", sa.String(63), primary_key=True),
        sa.Column("version", sa.String(16), nullable=False),
        sa.ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
    )
    op.create_table(
        "model_alias_history",
        sa.Column("number", _Counting, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("alias", sa.String(63), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("set_at", sa.BigInteger, nullable=False),
        sa.Column("by", sa.String(200), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
    )
    op.create_index("model_alias_history_by_alias", "model_alias_history", ["name", "alias", "number"])
