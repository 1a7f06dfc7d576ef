"""What must hold of a job database at any time, computed the slow way from its rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Row, delete, select, update

from models.music import Made
from serve_app.jobs.database import open_database
from serve_app.jobs.job import Job, Status
from serve_app.jobs.schema import events, jobs, metadata, stretches, tallies, tracks
from serve_app.jobs.store import JobStore
from serve_app.jobs.tally import SPANS_MS, Counted, Tally


async def rows_of(store: JobStore) -> list[Row[Any]]:
    """Every job, in the queue's order."""
    async with store._engine.connect() as connection:
        return list(await connection.execute(select(jobs).order_by(jobs.c.turn, jobs.c.number)))


async def pass_time(store: JobStore, job: Job, **times: float) -> None:
    """Sets a job's times to what they would be had it come, been claimed or been due at another time."""
    async with store._engine.begin() as connection:
        is_it = jobs.c.id == job.id
        before = (await connection.execute(select(jobs).where(is_it))).one()
        await connection.execute(update(jobs).where(is_it).values(**times))
        after = (await connection.execute(select(jobs).where(is_it))).one()
        tally = Tally()
        tally.remove(Counted(before.status, before.owner, before.turn, before.error_code))
        tally.add(Counted(after.status, after.owner, after.turn, after.error_code))
        await tally.write(connection)


async def wipe(url: str) -> None:
    engine = await open_database(url)
    async with engine.begin() as connection:
        for table in metadata.tables.values():
            await connection.execute(delete(table))
    await engine.dispose()


async def broken_counts(store: JobStore) -> list[str]:
    """Where what is counted differs from what is there."""
    async with store._engine.connect() as connection:
        rows = list(await connection.execute(select(jobs).order_by(jobs.c.turn, jobs.c.number)))
        tallied = {(kind, name): count for kind, name, count in await connection.execute(select(tallies))}
        stretched = {(span, place): count for span, place, count in await connection.execute(select(stretches))}
        told = list(await connection.execute(select(events).order_by(events.c.job, events.c.number)))
        noted = [tuple(row) for row in await connection.execute(select(tracks))]
    queued = [row for row in rows if row.status == Status.QUEUED]
    true_tallies = Counter(("status", row.status) for row in rows)
    true_tallies.update(("owner", row.owner) for row in queued)
    true_tallies.update(("failure", row.error_code) for row in rows if row.status == Status.FAILED)
    true_stretches = Counter((span, row.turn // span) for row in queued for span in SPANS_MS)
    broken = [f"tallies {tallied}, truly {dict(true_tallies)}"] if tallied != true_tallies else []
    broken += [f"stretches {stretched}, truly {dict(true_stretches)}"] if stretched != true_stretches else []
    made = [(row.number, Made.model_validate_json(row.made).tracks) for row in rows if row.made is not None]
    true_tracks = [(number, track.ref, track.size) for number, theirs in made for track in theirs]
    broken += [f"tracks {noted}, truly {true_tracks}"] if sorted(noted) != sorted(true_tracks) else []
    broken += _broken_events(rows, told)
    for place, row in enumerate(queued, start=1):
        (job,) = await store.get([row.id], row.owner)
        if job is None or job.queue_position != place:
            broken.append(f"job {row.id} is at {job and job.queue_position}, truly {place}")
    return broken


def _broken_events(rows: list[Row[Any]], told: list[Row[Any]]) -> list[str]:
    """A job's events are 1, 2, 3 and so on up to what the job is now, and their progress never falls."""
    broken = [f"event of no job: {event}" for event in told if event.job not in {row.number for row in rows}]
    for row in rows:
        own = [event for event in told if event.job == row.number]
        if [event.number for event in own] != list(range(1, row.events + 1)):
            broken.append(f"job {row.id} has had {row.events} events, these are told: {own}")
        elif (own[-1].status, own[-1].stage, own[-1].progress) != (row.status, row.stage, row.progress):
            broken.append(f"job {row.id} is {row.status} {row.stage} {row.progress}, its newest event is {own[-1]}")
        if [event.progress for event in own] != sorted(event.progress for event in own):
            broken.append(f"job {row.id} falls back: {own}")
    return broken
