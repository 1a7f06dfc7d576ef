"""The two databases jobs are kept in: how each is opened, and brought to the tables of this version."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from models.errors import EngineError
from serve_app.jobs.away import telling_away

P = ParamSpec("P")
T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_WAIT_S = 600  # for a migration, one's own or another process's
ONLY_READS = "only_reads"  # the execution option of an engine whose transactions write nothing
MIGRATION_LOCK = 0x0ACE57E9  # of PostgreSQL's advisory locks, which are numbers


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a database that does not answer is waited for: all of it together is less than a lease, so that a job
    outlives a connection that went dead while it ran."""

    ping_s: float = 2  # whether a connection, unused for a while, still leads anywhere
    connect_s: float = 4  # and until another is free, where all are in use
    answer_s: float = 8  # a statement, and the locks it waits for
    stalled_s: float = 5  # a process that stops amid a transaction holds up all others no longer; less than `answer_s`


PATIENCE = Patience()


class BadDatabase(EngineError):
    """A database that cannot hold the jobs of this server."""

    code = "bad_database"
    is_public = False


def to_its_end(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Once begun, a call is finished even when whoever waits for it is cancelled. Raises StoreAway besides its own.

    A statement cut short would leave its connection inside a transaction, holding the lock that all others wait for.
    """

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with telling_away():
            return await asyncio.shield(asyncio.ensure_future(method(*args, **kwargs)))

    return call


async def open_database(url: str, patience: Patience = PATIENCE) -> AsyncEngine:
    """Any number of processes may do so at once: one brings the tables up to date, the others wait for it.

    Raises BadDatabase for a database of another kind, or of a newer version of this server; StoreAway.
    """
    known = _known(url)
    migrating = _engine(known, replace(patience, answer_s=MIGRATION_WAIT_S))
    try:
        with telling_away():
            async with migrating.begin() as connection:
                await connection.run_sync(_migrate)
    finally:
        await migrating.dispose()
    return _engine(known, patience)


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


def _engine(url: URL, patience: Patience) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, pool_timeout=patience.answer_s, connect_args={"timeout": patience.answer_s})
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    # whatever this server's administrator chose as defaults: a commit is on disk, a statement sees what others
    # committed before it, and nobody is waited for who gave up or vanished without a word
    promised = {
        "application_name": "acestep",
        "synchronous_commit": "on",
        "default_transaction_isolation": "read committed",
        "statement_timeout": f"{int(patience.answer_s * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{int(patience.stalled_s * 1000)}ms",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "20s",
    }
    engine = create_async_engine(
        url,
        pool_timeout=patience.connect_s,
        connect_args={
            "timeout": patience.connect_s,
            "command_timeout": patience.answer_s,
            "server_settings": promised,
        },
    )

    def ping(connection: Any, record: ConnectionPoolEntry, _: object) -> None:
        """Before each use but the first. SQLAlchemy's own ping waits as long as a statement, and fails on silence."""
        if not record.info.setdefault("was_used", False):
            record.info["was_used"] = True
            return
        try:
            connection.run_async(lambda driver: driver.execute("SELECT 1", timeout=patience.ping_s))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise InvalidatePoolError from error

    event.listen(engine.sync_engine, "checkout", ping)
    event.listen(engine.sync_engine, "close", _hang_up)
    event.listen(engine.sync_engine, "handle_error", _give_up_after_silence)
    return engine


def _hang_up(connection: Any, _: object) -> None:
    """Without the goodbye that a connection which leads nowhere would wait for."""
    connection.driver_connection.terminate()


def _give_up_after_silence(context: ExceptionContext) -> None:
    """After a statement without an answer nothing more is said on its connection: it would wait as long again."""
    if isinstance(context.original_exception, TimeoutError):
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False


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
