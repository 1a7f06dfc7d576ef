"""One transaction that changes jobs; the only place where a job gets another status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Row, Select, case, delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serve_app.jobs import queries
from serve_app.jobs.deliveries import owed
from serve_app.jobs.hints import hint
from serve_app.jobs.job import NEXT, Status
from serve_app.jobs.schema import deliveries, events, jobs, now
from serve_app.jobs.tally import Counted, Tally


class Change:
    """Locks jobs first and counts last, so that no two changes ever wait for each other."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._tally = Tally()
        self._events: list[dict[str, Any]] = []
        self._owed: list[dict[str, Any]] = []

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
        self._tell(row)
        return int(row.number)

    async def move(self, row: Row[Any], status: Status, **values: Any) -> Row[Any]:
        """Gives a locked job another status; its whole row as it is then."""
        before = Status(row.status)
        if status not in NEXT[before]:
            raise ValueError(f"job {row.number} is {before}, which may become {sorted(NEXT[before])}, not {status}")
        values |= {"status": status, "stage": status, "done": 0, "planned": 0}
        values |= {"events": jobs.c.events + 1, "changed_at": now()}
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
        self._tell(after)
        if status.is_final and after.webhook is not None:
            self._owed.append(owed(after))
        return after

    async def report(self, row: Row[Any], stage: str, progress: float, done: int, planned: int) -> None:
        """How far a locked job has got. Progress that would fall stays where it is."""
        highest = case((jobs.c.progress > progress, jobs.c.progress), else_=progress)
        values = {"stage": stage, "progress": highest, "done": done, "planned": planned}
        values |= {"events": jobs.c.events + 1, "changed_at": now()}
        is_it = jobs.c.number == row.number
        reported = await self.connection.execute(update(jobs).where(is_it).values(**values).returning(*queries.TOLD))
        self._tell(reported.one())

    async def delete(self, rows: Sequence[Row[Any]]) -> None:
        """Locked jobs that have ended."""
        numbers = [row.number for row in rows]
        await self.connection.execute(delete(events).where(events.c.job.in_(numbers)))
        await self.connection.execute(delete(jobs).where(jobs.c.number.in_(numbers)))
        for row in rows:
            self._tally.remove(_counted(row))

    async def count(self) -> dict[tuple[str, str], int]:
        """Writes what changed; those tallies as they are now. Nothing may be locked after it."""
        told, self._events = self._events, []
        if told:
            await self.connection.execute(insert(events).values(at=now()), told)
        to_webhooks, self._owed = self._owed, []
        if to_webhooks:
            await self.connection.execute(insert(deliveries).values(due_at=now()), to_webhooks)
        tally, self._tally = self._tally, Tally()
        return await tally.write(self.connection)

    def _tell(self, row: Row[Any]) -> None:
        names = ("status", "stage", "done", "planned", "progress")
        self._events.append({"job": row.number, "number": row.events} | {name: getattr(row, name) for name in names})


def _counted(row: Row[Any]) -> Counted:
    return Counted(Status(row.status), row.owner, row.turn, row.error_code)
