"""What happened to each job, in order; results found by their requests."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for column in (
        sa.Column("request_sha256", sa.String(64)),
        sa.Column("events", sa.Integer, nullable=False, server_default="1"),
        sa.Column("changed_at", sa.Float),
        sa.Column("done", sa.Integer, nullable=False, server_default="0"),
        sa.Column("planned", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("jobs", column)
    op.execute("UPDATE jobs SET changed_at = coalesce(finished_at, started_at, created_at)")
    op.create_index("jobs_by_owner", "jobs", ["owner", "number"])
    op.create_index("jobs_by_request", "jobs", ["owner", "request_sha256"])
    op.create_table(
        "events",
        sa.Column("job", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("planned", sa.Integer, nullable=False),
        sa.Column("progress", sa.Float, nullable=False),
    )
    op.create_index("events_by_age", "events", ["at"])
    op.execute("INSERT INTO events SELECT number, 1, changed_at, status, stage, done, planned, progress FROM jobs")
