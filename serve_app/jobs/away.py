"""When a database cannot be used for a while, as told apart from a statement that is wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from models.errors import StoreAway

# https://www.postgresql.org/docs/current/errcodes-appendix.html
OF_POSTGRESQL = (
    "08",  # the connection broke
    "40",  # taken back: a deadlock
    "53",  # no room: connections, memory, disk
    "57",  # starting, stopping, or told to stop a statement
    "58",  # its own disk failed it
    "25006",  # it only reads: a standby
    "25P03",  # it ended a transaction that stood still
    "55P03",  # a lock was not to be had
)
OF_SQLITE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)


@contextmanager
def telling_away() -> Iterator[None]:
    """Raises StoreAway in place of whatever a database that is away makes its drivers raise; other errors stay."""
    try:
        yield
    except (DBAPIError, NoFreeConnection, OSError) as error:  # asyncpg's time limits are OSErrors
        if isinstance(error, DBAPIError) and not _is_away(error):
            raise
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise StoreAway(
            f"the job database cannot be used just now ({type(cause).__name__}); try again in a few seconds"
        ) from error


def _is_away(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in OF_SQLITE  # the rest of it tells which kind
    return str(getattr(error.orig, "sqlstate", None)).startswith(OF_POSTGRESQL)
