"""Objects that travelled by claim, until they are swept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "claims",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("named_at_us", sa.BigInteger, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
    )
    op.create_index("claims_by_time", "claims", ["pinned", "named_at_us", "key"])
