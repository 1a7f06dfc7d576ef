"""Priorities, deadlines, idempotency keys, lost workers counted apart, and counts of the queue."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

SPANS_MS = (4096, 262_144, 16_777_216, 1_073_741_824)
INDEXES = {
    "jobs_in_turn": ["status", "turn", "number"],
    "jobs_of_a_model_in_turn": ["status", "model", "turn", "number"],
    "jobs_by_lease": ["status", "lease_until"],
    "jobs_by_deadline": ["status", "deadline"],
    "jobs_by_status_and_end": ["status", "finished_at"],
}


def upgrade() -> None:
    for column in (
        sa.Column("priority", sa.String(8), nullable=False, server_default="normal"),
        sa.Column("turn", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
        sa.Column("deadline", sa.Float),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("body_sha256", sa.String(64)),
    ):
        op.add_column("jobs", column)
    op.execute("UPDATE jobs SET turn = CAST((created_at + 120) * 1000 AS BIGINT)")
    # so far every claim but the last ended in a loss, or was taken back from the count
    op.execute(
        "UPDATE jobs SET losses = CASE WHEN status = 'queued' THEN attempt ELSE attempt - 1 END WHERE attempt > 0"
    )
    for name in ("jobs_by_status", "jobs_by_end"):
        op.drop_index(name, "jobs")
    for name, columns in INDEXES.items():
        op.create_index(name, "jobs", columns)
    op.create_index("jobs_by_idempotency_key", "jobs", ["owner", "idempotency_key"], unique=True)
    _count()


def _count() -> None:
    op.create_table(
        "tallies",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("jobs", sa.Integer, nullable=False),
    )
    op.create_table(
        "stretches",
        sa.Column("span", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("jobs", sa.Integer, nullable=False),
    )
    for kind, name, which in (
        ("status", "status", "true"),
        ("owner", "owner", "status = 'queued'"),
        ("failure", "coalesce(error_code, '')", "status = 'failed'"),
    ):
        op.execute(f"INSERT INTO tallies SELECT '{kind}', {name}, count(*) FROM jobs WHERE {which} GROUP BY {name}")
    for span in SPANS_MS:
        op.execute(
            f"INSERT INTO stretches SELECT {span}, turn / {span}, count(*) FROM jobs "
            f"WHERE status = 'queued' GROUP BY turn / {span}"
        )
