"""Where jobs are kept: one SQL database that every ingress and conductor opens for itself.

A job is committed before its caller hears of it. Whoever claims one holds it under a lease, on the database's clock,
and under a fence that grows with every claim: a write under an older fence is refused, so a job that was given to
another conductor cannot be finished twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Row, and_, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.errors import EngineError, Overloaded, RequestError, StoreAway
from models.music import Made, MusicRequest
from serve_app.jobs import forgetting, queries
from serve_app.jobs.change import Change
from serve_app.jobs.database import ONLY_READS, PATIENCE, Patience, open_database, to_its_end
from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.forgetting import ASKED_AT_ONCE, Forgotten
from serve_app.jobs.hints import Hints
from serve_app.jobs.job import DEFAULT_TERMS, Idempotency, Job, JobEvent, Priority, Stats, Status, Terms
from serve_app.jobs.schema import events, jobs, now

log = logging.getLogger(__name__)

FIRST_GUESS_S = 5.0  # of a job's run time, before any has run
SECONDS_BETWEEN_OPENINGS = 2.0


class LeaseLost(EngineError):
    """The job was claimed by another conductor, or has ended; what was made of it here must be dropped."""

    code = "lease_lost"


class IdempotencyConflict(RequestError):
    """One idempotency key, two requests."""

    code = "idempotency_conflict"


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """`jobs` may wait at a time, `jobs_per_owner` of them of one key; a job fails as lost after `attempts` losses."""

    jobs: int
    attempts: int
    jobs_per_owner: int | None = None


@dataclass(frozen=True, slots=True)
class Happened:
    """To the job of this number, whose newest event is `newest`; `is_over` when nothing more will."""

    job: int
    newest: int
    is_over: bool
    events: list[JobEvent]


CANCELLED = {"error_code": "cancelled", "error_message": "cancelled by the caller"}
UNREADABLE = {
    "error_code": "unreadable_request",
    "error_message": "this version of the server cannot make what another version took; ask again",
}
OVERDUE = {"error_code": "deadline_exceeded", "error_message": "the deadline passed before it was made"}
EVENTS_AT_ONCE = 5000  # deleted in one transaction
NEWEST = 2**62  # above every job's number


class JobStore:
    def __init__(self, engine: AsyncEngine, limits: QueueLimits) -> None:
        self._engine = engine
        self._reading = engine.execution_options(**{ONLY_READS: True})
        self._limits = limits

    @classmethod
    async def open(cls, url: str, limits: QueueLimits, patience: Patience = PATIENCE) -> Self:
        """Raises BadDatabase and StoreAway. Any number of processes may open the same database."""
        return cls(await open_database(url, patience), limits)

    @classmethod
    async def open_when_there(cls, url: str, limits: QueueLimits, patience: Patience = PATIENCE) -> Self:
        """As `open`, but waits for a database that is away."""
        while True:
            try:
                return await cls.open(url, limits, patience)
            except StoreAway as error:
                log.warning("no jobs yet: %s", error)
                await asyncio.sleep(SECONDS_BETWEEN_OPENINGS)

    async def close(self) -> None:
        await self._engine.dispose()

    @property
    def deliveries(self) -> Deliveries:
        return Deliveries(self._engine)

    def hints(self) -> Hints:
        """Of jobs that came or came back, from whatever process."""
        return Hints(self._engine)

    @to_its_end
    async def ping(self) -> None:
        """Raises StoreAway."""
        async with self._reading.connect() as connection:
            await connection.execute(select(1))

    @to_its_end
    async def submit(
        self,
        request: MusicRequest,
        owner: str,
        terms: Terms = DEFAULT_TERMS,
        id_: str | None = None,
        at_most: int | None = None,
    ) -> Job:
        """The new job, or the one the terms say is as good. `id_`: a UUID that a new one is to have. `at_most`: how
        many of this owner may wait, if not what holds for all.

        Raises Overloaded when there is no room for it, and IdempotencyConflict; both store nothing.
        """
        once, asked = terms.idempotency, request.model_dump_json()
        request_sha256 = hashlib.sha256(asked.encode()).hexdigest()
        async with Change.begin(self._engine) as change:
            if terms.reuse:
                same = {"owner": owner, "request_sha256": request_sha256}
                number = await change.connection.scalar(queries.number_of_reusable(), same)
                if number is not None:
                    return _job((await change.connection.execute(queries.job_by_number(), {"number": number})).one())
            number = await change.insert(
                id=id_ or str(uuid.uuid4()),
                owner=owner,
                model=request.model,
                request=asked,
                request_sha256=request_sha256,
                priority=terms.priority,
                handicap_s=terms.priority.handicap_s,
                deadline_s=terms.deadline_s,
                idempotency_key=once and once.key,
                body_sha256=once and once.body_sha256,
                webhook=terms.webhook,
            )
            if number is None:
                assert once is not None
                return await _known_by(change.connection, owner, once)
            self._admit(await change.count(), owner, at_most or self._limits.jobs_per_owner)
            return _job((await change.connection.execute(queries.job_by_number(), {"number": number})).one())

    @to_its_end
    async def get(self, ids: Sequence[str], owner: str) -> list[Job | None]:
        """In the order asked; `None` for what is unknown or another owner's."""
        async with self._reading.connect() as connection:
            found = await connection.execute(queries.jobs_by_id(), {"ids": list(set(ids)), "owner": owner})
            by_id = {job.id: job for job in map(_job, found)}
        return [by_id.get(id_) for id_ in ids]

    @to_its_end
    async def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are jobs', whoever owns them."""
        async with self._reading.connect() as connection:
            parts = [ids[first : first + ASKED_AT_ONCE] for first in range(0, len(ids), ASKED_AT_ONCE)]
            return {id_ for part in parts for id_ in await connection.scalars(queries.known_ids(), {"ids": part})}

    @to_its_end
    async def claim(self, worker: str, lease_s: float, models: Collection[str]) -> Job | None:
        """The job whose turn it is, of those these models can make. Ends or re-queues what was lost meanwhile."""
        async with Change.begin(self._engine) as change:
            await self._reap(change)
            for row in await change.locked(queries.state_of_next(tuple(sorted(models)))):
                claimed = await change.move(
                    row,
                    Status.RUNNING,
                    attempt=jobs.c.attempt + 1,
                    fence=jobs.c.fence + 1,
                    worker=worker,
                    lease_until=now() + lease_s,
                    started_at=now(),
                )
                if _makeable(claimed.request) is not None:
                    return _job(claimed, queue_position=0)
                await change.move(claimed, Status.FAILED, **UNREADABLE)
        return None

    @to_its_end
    async def reap(self) -> None:
        """What `claim` does first, for those who have no room for another job."""
        async with Change.begin(self._engine) as change:
            await self._reap(change)

    @to_its_end
    async def list_jobs(
        self, owner: str, statuses: Collection[Status] = (), before: int | None = None, at_most: int = 50
    ) -> list[Job]:
        """Those numbered below `before`, the newest first; of all statuses where none is named."""
        which = {"owner": owner, "before": NEWEST if before is None else before, "at_most": at_most}
        async with self._reading.connect() as connection:
            found = await connection.execute(queries.newest_jobs(tuple(sorted(statuses))), which)
            return [_job(row) for row in found]

    @to_its_end
    async def happened(self, id_: str, owner: str, after: int = 0) -> Happened | None:
        """What happened to a job since event `after`, as far as it is remembered; the newest event always is. `None`
        for a job that is unknown or another owner's."""
        async with self._reading.connect() as connection:
            newest = (await connection.execute(queries.newest_event(), {"id": id_, "owner": owner})).one_or_none()
            if newest is None:
                return None
            later = await connection.execute(queries.events_after(), {"job": newest.number, "after": after})
            happened = [_event(row, row.number, row.at) for row in later if row.number <= newest.events]
        if newest.events > max([after, *(event.number for event in happened)]):
            happened.append(_event(newest, newest.events, newest.changed_at))
        return Happened(newest.number, newest.events, Status(newest.status).is_final, happened)

    @to_its_end
    async def event_counts(self, numbers: Sequence[int]) -> dict[int, int]:
        """Of jobs by their numbers, as far as there are such."""
        async with self._reading.connect() as connection:
            parts = [numbers[first : first + ASKED_AT_ONCE] for first in range(0, len(numbers), ASKED_AT_ONCE)]
            counted = [await connection.execute(queries.event_counts(), {"numbers": part}) for part in parts]
            return {number: count for rows in counted for number, count in rows}

    @to_its_end
    async def renew(self, job: Job, lease_s: float) -> bool:
        """Whether the caller asked for the job to be cancelled. Raises LeaseLost."""
        return await self._write(job, lease_until=now() + lease_s)

    @to_its_end
    async def report(self, job: Job, stage: str, progress: float, done: int = 0, planned: int = 0) -> None:
        """`done` of `planned` units of a stage. Progress that would fall stays where it is. Raises LeaseLost."""
        async with self._held(job) as (change, row):
            await change.report(row, stage, progress, done, planned)

    @to_its_end
    async def succeed(self, job: Job, made: Made) -> None:
        """Raises LeaseLost."""
        async with self._held(job) as (change, row):
            await change.move(row, Status.SUCCEEDED, made=made.model_dump_json(), progress=1.0)
            await forgetting.note(change, row.number, made.tracks)

    @to_its_end
    async def fail(self, job: Job, code: str, message: str) -> None:
        """`message` is for the caller's eyes. Raises LeaseLost."""
        async with self._held(job) as (change, row):
            await change.move(row, Status.FAILED, error_code=code, error_message=message)

    @to_its_end
    async def mark_cancelled(self, job: Job) -> None:
        """Raises LeaseLost."""
        async with self._held(job) as (change, row):
            await change.move(row, Status.CANCELLED, **CANCELLED)

    @to_its_end
    async def give_back(self, job: Job) -> None:
        """Back to where it stood in the queue, as if not claimed; a job withdrawn meanwhile ends. Raises LeaseLost."""
        async with self._held(job) as (change, row):
            if row.cancel_requested:
                await change.move(row, Status.CANCELLED, **CANCELLED)
            else:
                await change.move(row, Status.QUEUED, attempt=jobs.c.attempt - 1, worker=None)

    @to_its_end
    async def cancel(self, id_: str, owner: str) -> Job | None:
        """A queued job ends at once, a running one at its conductor's next heartbeat; an ended one stays as it is."""
        async with Change.begin(self._engine) as change:
            for row in await change.locked(queries.state_of_theirs(), id=id_, owner=owner):
                if row.status == Status.QUEUED:
                    await change.move(row, Status.CANCELLED, **CANCELLED)
                elif row.status == Status.RUNNING:
                    running = update(jobs).where(jobs.c.number == row.number)
                    await change.connection.execute(running.values(cancel_requested=1))
                return _job((await change.connection.execute(queries.job_by_number(), {"number": row.number})).one())
        return None

    @to_its_end
    async def forget(self, age_s: float, at_most: int = 500) -> Forgotten:
        """Deletes jobs that ended so long ago."""
        async with Change.begin(self._engine) as change:
            rows = await change.locked(queries.state_of_ended(), age_s=age_s, at_most=at_most)
            return await forgetting.forget(change, rows)

    @to_its_end
    async def forget_oldest(self, most_bytes: int, at_most: int = 500) -> Forgotten:
        """Deletes jobs, those that succeeded first, until all tracks together take no more than that."""
        async with self._reading.connect() as connection:
            if await forgetting.total_bytes(connection) <= most_bytes:
                return Forgotten()
        async with Change.begin(self._engine) as change:
            return await forgetting.forget_oldest(change, most_bytes, at_most)

    @to_its_end
    async def known_tracks(self, refs: Sequence[str]) -> set[str]:
        """Those of the ids that are tracks' of jobs, whoever owns them."""
        async with self._reading.connect() as connection:
            return await forgetting.known(connection, refs)

    @to_its_end
    async def running_since(self) -> float | None:
        """When the job that runs longest was claimed; what it has made so far is no job's yet."""
        async with self._reading.connect() as connection:
            since: float | None = await connection.scalar(queries.first_start())
            return since

    @to_its_end
    async def forget_events(self, age_s: float) -> None:
        """Deletes what happened so long ago, but for what jobs still are."""
        is_old = events.c.at < now() - age_s
        some = select(events.c.job, events.c.number).where(is_old).limit(EVENTS_AT_ONCE)
        these = tuple_(events.c.job, events.c.number).in_(some.with_for_update(skip_locked=True))
        while True:  # in parts, so that nobody waits long for the lock
            async with self._engine.begin() as connection:
                deleted = await connection.execute(delete(events).where(these))
            if deleted.rowcount < EVENTS_AT_ONCE:
                return

    @to_its_end
    async def stats(self) -> Stats:
        async with self._reading.connect() as connection:
            counted = await connection.execute(queries.counts())
            counts = {(kind, name): int(count) for kind, name, count in counted}
            average = await connection.scalar(queries.average_seconds())
        of = {status: counts.get(("status", status), 0) for status in Status}
        return Stats(
            total=sum(of.values()),
            queued=of[Status.QUEUED],
            running=of[Status.RUNNING],
            succeeded=of[Status.SUCCEEDED],
            failed=of[Status.FAILED],
            cancelled=of[Status.CANCELLED],
            queue_limit=self._limits.jobs,
            avg_job_seconds=FIRST_GUESS_S if average is None else float(average),
            failures={name: count for (kind, name), count in counts.items() if kind == "failure"},
        )

    @to_its_end
    async def retry_after_s(self) -> int:
        """When a place in a full queue is likely to be free: when the next running job ends."""
        return max(1, math.ceil((await self.stats()).seconds_between_ends))

    @asynccontextmanager
    async def _held(self, job: Job) -> AsyncIterator[tuple[Change, Row[Any]]]:
        """A change of a job that is still held under the fence it was claimed with. Raises LeaseLost."""
        async with Change.begin(self._engine) as change:
            rows = await change.locked(queries.state_of_held(), id=job.id, fence=job.fence)
            if not rows:
                raise _lost(job)
            yield change, rows[0]

    async def _write(self, job: Job, **values: Any) -> bool:
        """Whether the job, still held under its fence, was withdrawn. Raises LeaseLost."""
        held = update(jobs).where(_is_held(job)).values(**values).returning(jobs.c.cancel_requested)
        async with self._engine.begin() as connection:
            row = (await connection.execute(held)).one_or_none()
        if row is None:
            raise _lost(job)
        return bool(row.cancel_requested)

    def _admit(self, counts: Mapping[tuple[str, str], int], owner: str, of_one: int | None) -> None:
        """Raises Overloaded; `counts` include the new job."""
        if counts["status", Status.QUEUED] > self._limits.jobs:
            raise Overloaded("Server busy: queue is full")
        if of_one is not None and counts["owner", owner] > of_one:
            raise Overloaded(f"Server busy: {of_one} jobs of this key are waiting, as many as may")

    async def _reap(self, change: Change) -> None:
        """Takes jobs from workers that went silent, and ends those past their deadlines."""
        for row in await change.locked(queries.state_of_reaped()):
            losses = row.losses + bool(row.is_silent)
            if row.cancel_requested:
                status, why = Status.CANCELLED, CANCELLED
            elif row.is_overdue:
                status, why = Status.FAILED, OVERDUE
            elif losses < self._limits.attempts:
                status, why = Status.QUEUED, {}
            else:
                message = f"the process that made it was lost {losses} times"
                status, why = Status.FAILED, {"error_code": "worker_lost", "error_message": message}
            await change.move(row, status, losses=losses, worker=None, **why)


def _makeable(text: str) -> MusicRequest | None:
    """A job of another version of this server may ask for what this one does not know."""
    try:
        return MusicRequest.model_validate_json(text)
    except ValidationError:
        return None


def _request(text: str) -> MusicRequest:
    """As it was asked, by whichever version of this server: a job that is only looked at need not be makeable."""
    return _makeable(text) or MusicRequest.model_construct(**json.loads(text))


def _is_held(job: Job) -> ColumnElement[bool]:
    return and_(jobs.c.id == job.id, jobs.c.fence == job.fence, jobs.c.status == Status.RUNNING)


def _lost(job: Job) -> LeaseLost:
    return LeaseLost(f"job {job.id} is no longer held under fence {job.fence}")


async def _known_by(connection: AsyncConnection, owner: str, once: Idempotency) -> Job:
    row = (await connection.execute(queries.job_of_key(), {"owner": owner, "key": once.key})).one()
    if row.body_sha256 != once.body_sha256:
        raise IdempotencyConflict(f"idempotency key {once.key!r} was sent with another body before; take a new key")
    return _job(row)


def _event(row: Row[Any], number: int, at: float) -> JobEvent:
    return JobEvent(number, at, Status(row.status), row.stage, row.done, row.planned, row.progress)


def _job(row: Row[Any], queue_position: int | None = None) -> Job:
    return Job(
        id=row.id,
        owner=row.owner,
        status=Status(row.status),
        request=_request(row.request),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        fence=row.fence,
        stage=row.stage,
        progress=row.progress,
        queue_position=row.queue_position if queue_position is None else queue_position,
        error_code=row.error_code,
        error_message=row.error_message,
        made=None if row.made is None else Made.model_validate_json(row.made),
        priority=Priority(row.priority),
        deadline=row.deadline,
        losses=row.losses,
        number=row.number,
        done=row.done,
        planned=row.planned,
        events=row.events,
        read_at=row.started_at if queue_position == 0 else row.read_at,
    )
