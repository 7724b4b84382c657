"""What shadows say of frames that others decide."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "shadows",
        sa.Column("frame_id", sa.Text, primary_key=True),
        sa.Column("model_version", sa.Text, primary_key=True),
        sa.Column("recorded_at_us", sa.BigInteger, nullable=False),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("station", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("verdict", sa.SmallInteger, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("duplicates", sa.Integer, nullable=False),
        sa.Column("conflicts", sa.Integer, nullable=False),
        sa.Column("shadow", sa.LargeBinary, nullable=False),
    )
    op.create_index("shadows_by_model", "shadows", ["model", "recorded_at_us", "frame_id", "model_version"])
    op.create_index("shadows_by_time", "shadows", ["recorded_at_us"])
