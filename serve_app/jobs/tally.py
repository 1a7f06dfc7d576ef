"""What is counted of the jobs, kept in the transaction that changes them, so that no question walks the whole queue.

The queue is cut into stretches of time, these into shorter ones, 64 in each; each knows how many jobs wait in it. A
place in the queue is then the sum over at most 63 stretches of every length, and a look at the few jobs of the
shortest one: its cost grows with the logarithm of the queue.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, delete, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningInsert

from serve_app.jobs.job import Status
from serve_app.jobs.schema import jobs, stretches, tallies

FAN_OUT = 64
SPANS_MS = tuple(4096 * FAN_OUT**level for level in range(4))  # 4 s, 4 min, 5 h, 12 days


class Counted(NamedTuple):
    """What of a job is counted."""

    status: Status
    owner: str
    turn: int
    error_code: str | None = None


class Tally:
    """Changes of the counts, written together and last in a transaction, in one order of rows: so no two transactions
    ever wait for each other."""

    def __init__(self) -> None:
        self._tallies: Counter[tuple[str, str]] = Counter()
        self._stretches: Counter[tuple[int, int]] = Counter()

    def add(self, job: Counted, by: int = 1) -> None:
        self._tallies["status", job.status] += by
        if job.status == Status.QUEUED:
            self._tallies["owner", job.owner] += by
            for span in SPANS_MS:
                self._stretches[span, job.turn // span] += by
        elif job.status == Status.FAILED:
            self._tallies["failure", job.error_code or ""] += by

    def remove(self, job: Counted) -> None:
        self.add(job, -1)

    async def write(self, connection: AsyncConnection) -> dict[tuple[str, str], int]:
        """The tallies that changed, as they are now."""
        tallied = await _count(connection, tallies, self._tallies)
        await _count(connection, stretches, self._stretches)
        return tallied


async def _count(connection: AsyncConnection, table: Table, changes: Counter[Any]) -> dict[Any, int]:
    rows = [(*key, by) for key, by in sorted(changes.items()) if by]
    if not rows:
        return {}
    changed = [dict(zip(table.c.keys(), row, strict=True)) for row in rows]
    counted = await connection.execute(_upsert(table, connection.dialect.name), changed)
    counts = {tuple(key): count for *key, count in counted}
    none = [key for key, count in counts.items() if count == 0]
    if none:
        await connection.execute(delete(table).where(tuple_(*table.primary_key).in_(none)))
    return counts


@cache
def _upsert(table: Table, dialect: str) -> ReturningInsert[Any]:
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    added = {"jobs": table.c.jobs + insert.excluded.jobs}
    keys = [column.name for column in table.primary_key]
    return insert.on_conflict_do_update(index_elements=keys, set_=added).returning(*table.c)


@cache
def place_in_queue() -> ColumnElement[int]:
    """Of a row of `jobs` that is queued: how many come before it, and itself."""
    near = jobs.alias()
    of_its_stretch = near.c.turn >= jobs.c.turn // SPANS_MS[0] * SPANS_MS[0]
    up_to_it = tuple_(near.c.turn, near.c.number) <= tuple_(jobs.c.turn, jobs.c.number)
    parts = [select(func.count()).where(near.c.status == Status.QUEUED, of_its_stretch, up_to_it)]
    for span, longer in pairwise((*SPANS_MS, None)):
        before = [stretches.c.span == span, stretches.c.place < jobs.c.turn // span]
        if longer is not None:
            before.append(stretches.c.place >= jobs.c.turn // longer * FAN_OUT)
        parts.append(select(func.coalesce(func.sum(stretches.c.jobs), 0)).where(*before))
    return functools.reduce(operator.add, (part.correlate(jobs).scalar_subquery() for part in parts))
