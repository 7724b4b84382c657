"""The recipes' table. `migrations/` makes it; a test keeps the two alike."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text

metadata = MetaData()

recipes = Table(
    "recipes",
    metadata,
    Column("name", Text, primary_key=True),
    # Counts from 1 for each name.
    Column("version", Integer, primary_key=True, autoincrement=False),
    # Canonical: every default written out.
    Column("yaml", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    # Microseconds since the epoch.
    Column("created_at_us", BigInteger, nullable=False),
)
