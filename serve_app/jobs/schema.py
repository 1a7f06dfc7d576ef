"""The tables. Times are seconds since the epoch on the database's clock."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),  # the queue's order
    Column("id", String(36), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("model", String(64), nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("attempt", Integer, nullable=False, default=0),
    Column("fence", Integer, nullable=False, default=0),
    Column("worker", String(128)),
    Column("lease_until", Float),
    Column("cancel_requested", Integer, nullable=False, default=0),
    Column("stage", String(16), nullable=False),
    Column("progress", Float, nullable=False, default=0.0),
    Column("error_code", String(32)),
    Column("error_message", Text),
    Column("made", Text),
)
Index("jobs_by_status", jobs.c.status, jobs.c.number)
Index("jobs_by_end", jobs.c.finished_at)
