"""What each change of an alias replaced, whether it was forced or rolled back, and what a job did not promote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # A database that has rows already needs something to put into them.
    op.add_column("training_jobs", sa.Column("not_promoted", sa.Text, nullable=False, server_default=""))
    op.add_column("model_alias_history", sa.Column("previous", sa.String(16), nullable=False, server_default=""))
    op.add_column("model_alias_history", sa.Column("forced", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("model_alias_history", sa.Column("restored", sa.BigInteger))
    op.execute(
        """
        UPDATE model_alias_history SET previous = coalesce((
            SELECT before.version FROM model_alias_history AS before
            WHERE before.name = model_alias_history.name AND before.alias = model_alias_history.alias
              AND before.number < model_alias_history.number
            ORDER BY before.number DESC LIMIT 1), '')
        """
    )
