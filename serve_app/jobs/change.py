"""One transaction that changes jobs; the only place where a job gets another status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Row, Select, delete, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serve_app.jobs import queries
from serve_app.jobs.hints import hint
from serve_app.jobs.job import NEXT, Status
from serve_app.jobs.schema import jobs, now
from serve_app.jobs.tally import Counted, Tally


class Change:
    """Locks jobs first and counts last, so that no two changes ever wait for each other."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._tally = Tally()

    @classmethod
    @asynccontextmanager
    async def begin(cls, engine: AsyncEngine) -> AsyncIterator[Change]:
        """Commits at the end, or changes nothing when an error leaves the block."""
        async with engine.begin() as connection:
            change = cls(connection)
            yield change
            await change.count()

    async def locked(self, query: Select[Any], **parameters: Any) -> Sequence[Row[Any]]:
        rows: Sequence[Row[Any]] = (await self.connection.execute(query, parameters)).all()
        return rows

    async def insert(self, **values: Any) -> int | None:
        """The new job's number; `None` where its owner has a job under its idempotency key already."""
        inserted = await self.connection.execute(queries.new_job(self.connection.dialect.name), values)
        row = inserted.one_or_none()
        if row is None:
            return None
        self._tally.add(_counted(row))
        return int(row.number)

    async def move(self, row: Row[Any], status: Status, **values: Any) -> Row[Any]:
        """Gives a locked job another status; its whole row as it is then."""
        before = Status(row.status)
        if status not in NEXT[before]:
            raise ValueError(f"job {row.number} is {before}, which may become {sorted(NEXT[before])}, not {status}")
        values |= {"status": status, "stage": status}
        if status is not Status.RUNNING:
            values["lease_until"] = None
        if status.is_final:
            values["finished_at"] = now()
        told = hint(self.connection.dialect.name) if status is Status.QUEUED else ()
        is_it = jobs.c.number == row.number
        moved = await self.connection.execute(update(jobs).where(is_it).values(**values).returning(*jobs.c, *told))
        after = moved.one()
        self._tally.remove(_counted(row))
        self._tally.add(_counted(after))
        return after

    async def delete(self, rows: Sequence[Row[Any]]) -> None:
        """Locked jobs that have ended."""
        await self.connection.execute(delete(jobs).where(jobs.c.number.in_([row.number for row in rows])))
        for row in rows:
            self._tally.remove(_counted(row))

    async def count(self) -> dict[tuple[str, str], int]:
        """Writes what changed; those tallies as they are now. Nothing may be locked after it."""
        tally, self._tally = self._tally, Tally()
        return await tally.write(self.connection)


def _counted(row: Row[Any]) -> Counted:
    return Counted(Status(row.status), row.owner, row.turn, row.error_code)
