"""The tables. Times are seconds since the epoch on the database's clock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
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
    Column("priority", String(8), nullable=False, server_default="normal"),
    # the queue's order, then `number`: when it was submitted plus its priority's handicap, in ms
    Column("turn", BigInteger, nullable=False, server_default="0"),
    Column("losses", Integer, nullable=False, server_default="0"),
    Column("deadline", Float),
    Column("idempotency_key", String(255)),
    Column("body_sha256", String(64)),
    Column("request_sha256", String(64)),
    Column("events", Integer, nullable=False, server_default="1"),  # so far; the newest is what this row says
    Column("changed_at", Float),
    Column("done", Integer, nullable=False, server_default="0"),
    Column("planned", Integer, nullable=False, server_default="0"),
    Column("webhook", Text),
)
Index("jobs_in_turn", jobs.c.status, jobs.c.turn, jobs.c.number)
Index("jobs_of_a_model_in_turn", jobs.c.status, jobs.c.model, jobs.c.turn, jobs.c.number)
Index("jobs_by_lease", jobs.c.status, jobs.c.lease_until)
Index("jobs_by_deadline", jobs.c.status, jobs.c.deadline)
Index("jobs_by_status_and_end", jobs.c.status, jobs.c.finished_at)
Index("jobs_by_idempotency_key", jobs.c.owner, jobs.c.idempotency_key, unique=True)

Index("jobs_by_owner", jobs.c.owner, jobs.c.number)
Index("jobs_by_request", jobs.c.owner, jobs.c.request_sha256)

# What happened to a job, for those who watch it; `job` is its number. Old ones go before their job does.
events = Table(
    "events",
    metadata,
    Column("job", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("status", String(16), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("done", Integer, nullable=False),
    Column("planned", Integer, nullable=False),
    Column("progress", Float, nullable=False),
)
Index("events_by_age", events.c.at)

# What is still to be told to webhooks. `due_at`: when it is to be tried, or until when whoever tries has it alone.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("job", String(36), nullable=False),
    Column("url", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("due_at", Float, nullable=False),
)
Index("deliveries_by_time", deliveries.c.due_at)

# How many jobs there are of a kind: of a status, of an error code, waiting for an owner. None: no row.
tallies = Table(
    "tallies",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("jobs", Integer, nullable=False),
)

# How many jobs wait in each stretch of the queue: those whose turn // span is `place`. None: no row.
stretches = Table(
    "stretches",
    metadata,
    Column("span", BigInteger, primary_key=True, autoincrement=False),
    Column("place", BigInteger, primary_key=True, autoincrement=False),
    Column("jobs", Integer, nullable=False),
)

# The files that jobs made; `job` is a job's number. They go with their job.
tracks = Table(
    "tracks",
    metadata,
    Column("job", BigInteger, primary_key=True, autoincrement=False),
    Column("ref", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),  # bytes
)
Index("tracks_by_ref", tracks.c.ref)


class now(FunctionElement[float]):
    """The database's clock when a statement begins: not the asking process's, and not when the transaction began."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_of_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_of_postgresql(*_: Any, **__: Any) -> str:
    # not clock_timestamp(), which may change within a statement and so cannot be looked up in an index
    return "(extract(epoch FROM statement_timestamp())::double precision)"
