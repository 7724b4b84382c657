"""How often a job was begun."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Every job that is there was begun once at most: those that wait count anew from here.
    op.add_column("training_jobs", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))
