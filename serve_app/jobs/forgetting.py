"""The files that jobs made, how much room they take, and which jobs go to make room."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.music import Track
from serve_app.jobs import queries
from serve_app.jobs.change import Change
from serve_app.jobs.schema import tracks

ASKED_AT_ONCE = 500  # ids in one statement
FORGETTING_LOCK = 0x0ACE57EA  # of PostgreSQL's advisory locks, which are numbers


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many jobs are no more, and the files they leave, tracks and what these were made from, to be deleted next."""

    jobs: int = 0
    files: tuple[str, ...] = ()


async def note(change: Change, number: int, made: Iterable[Track]) -> None:
    """The files of a locked job that has none yet."""
    rows = [{"job": number, "ref": track.ref, "size": track.size} for track in made]
    if rows:
        await change.connection.execute(insert(tracks), rows)


async def forget(change: Change, rows: Sequence[Row[Any]]) -> Forgotten:
    """Deletes locked jobs that have ended."""
    await change.delete(rows)
    theirs = delete(tracks).where(tracks.c.job.in_([row.number for row in rows])).returning(tracks.c.ref)
    made = await change.connection.scalars(theirs)
    return Forgotten(len(rows), (*made, *(ref for row in rows for ref in _made_from(row))))


async def forget_oldest(change: Change, most_bytes: int, at_most: int) -> Forgotten:
    """Deletes jobs with tracks, the oldest first, until all tracks take no more than that. One process at a time does:
    two that count at once would make room twice."""
    if not await _is_alone(change.connection):
        return Forgotten()
    excess = await total_bytes(change.connection) - most_bytes
    going = []
    for row in await change.locked(queries.state_of_oldest(), at_most=at_most):
        if excess <= 0:
            break
        going.append(row)
        excess -= row.bytes
    return await forget(change, going)


async def total_bytes(connection: AsyncConnection) -> int:
    return int(await connection.scalar(queries.bytes_of_tracks()) or 0)


async def known(connection: AsyncConnection, refs: Sequence[str]) -> set[str]:
    """Those of the tracks that jobs have made."""
    parts = [refs[first : first + ASKED_AT_ONCE] for first in range(0, len(refs), ASKED_AT_ONCE)]
    return {ref for part in parts for ref in await connection.scalars(queries.known_tracks(), {"refs": part})}


async def _is_alone(connection: AsyncConnection) -> bool:
    """To the end of the transaction. Whoever changes an SQLite database always is."""
    if connection.dialect.name != "postgresql":
        return True
    return bool(await connection.scalar(select(func.pg_try_advisory_xact_lock(FORGETTING_LOCK))))


def _made_from(row: Row[Any]) -> list[str]:
    """Read without judging it: a request of an older version has to go as well."""
    request = json.loads(row.request)
    return [ref for name in ("src_audio", "reference_audio") if (ref := request.get(name))]
