"""The two databases jobs are kept in: how each is opened, and brought to the tables of this version."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from models.errors import EngineError

P = ParamSpec("P")
T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_WAIT_S = 30
MIGRATION_WAIT_S = 600  # for a migration, one's own or another process's
CONNECT_WITHIN_S = 10
STALLED_WITHIN_S = 10  # a process that stops amid a transaction holds up all others no longer; less than a lease
ONLY_READS = "only_reads"  # the execution option of an engine whose transactions write nothing
MIGRATION_LOCK = 0x0ACE57E9  # of PostgreSQL's advisory locks, which are numbers


class BadDatabase(EngineError):
    """A database that cannot hold the jobs of this server."""

    code = "bad_database"
    is_public = False


def to_its_end(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Once begun, a call is finished even when whoever waits for it is cancelled.

    A statement cut short would leave its connection inside a transaction, holding the lock that all others wait for.
    """

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.shield(asyncio.ensure_future(method(*args, **kwargs)))

    return call


async def open_database(url: str) -> AsyncEngine:
    """Any number of processes may do so at once: one brings the tables up to date, the others wait for it.

    Raises BadDatabase for a database of another kind, or of a newer version of this server.
    """
    known = _known(url)
    migrating = _engine(known, MIGRATION_WAIT_S)
    try:
        async with migrating.begin() as connection:
            await connection.run_sync(_migrate)
    finally:
        await migrating.dispose()
    return _engine(known, LOCK_WAIT_S)


def refuse_scattered(url: str, hosts: int) -> None:
    """Raises BadDatabase where each host would have jobs of its own."""
    if hosts > 1 and _known(url).get_backend_name() == "sqlite":
        raise BadDatabase(
            f"jobs would be kept in SQLite, a file of one host, and this cluster has {hosts} hosts; "
            "set ACESTEP_DATABASE_URL to postgresql://USER:PASSWORD@HOST/DATABASE, or run on one host"
        )


def _known(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise BadDatabase(
            "the database's URL cannot be read; write postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from error
    match parsed.get_backend_name():
        case "sqlite":
            return parsed.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres":
            query = {"ssl" if key == "sslmode" else key: value for key, value in parsed.query.items()}
            return parsed.set(drivername="postgresql+asyncpg", query=query)
        case other:
            raise BadDatabase(f"jobs cannot be kept in {other}; write postgresql://USER:PASSWORD@HOST/DATABASE")


def _engine(url: URL, wait_s: int) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, connect_args={"timeout": wait_s})
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    # whatever this server's administrator chose as defaults: a commit is on disk, and a statement sees what others
    # committed before it
    promised = {
        "application_name": "acestep",
        "synchronous_commit": "on",
        "default_transaction_isolation": "read committed",
        "idle_in_transaction_session_timeout": f"{STALLED_WITHIN_S}s",
    }
    return create_async_engine(
        url,
        pool_pre_ping=True,  # a connection may have died with the server since it was used last
        connect_args={
            "timeout": CONNECT_WITHIN_S,
            "command_timeout": wait_s,
            "server_settings": promised,
        },
    )


def _set_up_sqlite(connection: Any, _: object) -> None:
    """Durable (a commit is on disk) and readable while written; transactions are begun by `_begin_sqlite`."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Writers take the lock at once: one that reads first and writes later fails when another was in between."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(ONLY_READS) else "BEGIN IMMEDIATE")


def _migrate(connection: Connection) -> None:
    """In one transaction, which on SQLite holds the write lock already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise BadDatabase(
            f"the database is not one of this version of the server, perhaps of a newer: {error}"
        ) from error
