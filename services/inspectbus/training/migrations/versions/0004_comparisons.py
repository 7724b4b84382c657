"""What a job that compares is told; every job before was a training."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # With a default, so that a door not yet replaced by this code's goes on writing trainings down.
    op.add_column("training_jobs", sa.Column("comparison", sa.Text, nullable=False, server_default=""))
