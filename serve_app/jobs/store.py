"""Where jobs are kept: one SQL database that every ingress and conductor of a host opens for itself.

A job is committed before its caller hears of it. Whoever claims one holds it under a lease, on the database's clock,
and under a fence that grows with every claim: a write under an older fence is refused, so a job that was given to
another conductor cannot be finished twice.
"""

from __future__ import annotations

import asyncio
import functools
import math
import uuid
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import ColumnElement, Row, Select, and_, case, event, func, literal_column, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from models.errors import EngineError, Overloaded
from models.music import Made, MusicRequest
from serve_app.jobs.job import Job, Stats, Status
from serve_app.jobs.schema import jobs, metadata

P = ParamSpec("P")
T = TypeVar("T")

LOCK_WAIT_S = 30
ONLY_READS = "only_reads"
AVERAGED_JOBS = 50
CANCELLED_MESSAGE = "cancelled by the caller"
FIRST_GUESS_S = 5.0  # of a job's run time, before any has run
NOW: ColumnElement[float] = literal_column("(julianday('now') - 2440587.5) * 86400.0")


class LeaseLost(EngineError):
    """The job was claimed by another conductor, or has ended; what was made of it here must be dropped."""

    code = "lease_lost"


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """`jobs` may wait at a time; one job may be claimed `attempts` times before its worker counts as lost."""

    jobs: int
    attempts: int


def to_its_end(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Once begun, a call is finished even when whoever waits for it is cancelled.

    A statement cut short would leave its connection inside a transaction, holding the lock that all others wait for.
    """

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.shield(asyncio.ensure_future(method(*args, **kwargs)))

    return call


class JobStore:
    def __init__(self, engine: AsyncEngine, limits: QueueLimits) -> None:
        self._engine = engine
        self._reading = engine.execution_options(**{ONLY_READS: True})
        self._limits = limits

    @classmethod
    async def open(cls, url: str, limits: QueueLimits) -> JobStore:
        """Opens the database and makes its tables where there are none; several processes may do so at once."""
        engine = create_async_engine(url, connect_args={"timeout": LOCK_WAIT_S})
        event.listen(engine.sync_engine, "connect", _set_up_connection)
        event.listen(engine.sync_engine, "begin", _begin_immediately)
        async with engine.begin() as connection:  # holds the write lock, so one of them makes the tables
            await connection.run_sync(metadata.create_all)
        return cls(engine, limits)

    async def close(self) -> None:
        await self._engine.dispose()

    @to_its_end
    async def submit(self, request: MusicRequest, owner: str) -> Job:
        """Raises Overloaded when the queue is full, and stores nothing then."""
        async with self._engine.begin() as connection:
            waiting = await connection.scalar(select(func.count()).where(jobs.c.status == Status.QUEUED))
            if waiting is not None and waiting >= self._limits.jobs:
                raise Overloaded("Server busy: queue is full")
            id_ = str(uuid.uuid4())
            await connection.execute(
                jobs.insert().values(
                    id=id_,
                    owner=owner,
                    status=Status.QUEUED,
                    stage=Status.QUEUED,
                    model=request.model,
                    request=request.model_dump_json(),
                    created_at=NOW,
                )
            )
            return _job((await connection.execute(_jobs_where(jobs.c.id == id_))).one())

    @to_its_end
    async def get(self, ids: Sequence[str], owner: str) -> list[Job | None]:
        """In the order asked; `None` for what is unknown or another owner's."""
        async with self._reading.connect() as connection:
            found = await connection.execute(_jobs_where(jobs.c.id.in_(set(ids)), jobs.c.owner == owner))
            by_id = {job.id: job for job in map(_job, found)}
        return [by_id.get(id_) for id_ in ids]

    @to_its_end
    async def claim(self, worker: str, lease_s: float, models: Collection[str]) -> Job | None:
        """The job that has waited longest of those these models can make, or one whose worker went silent."""
        async with self._engine.begin() as connection:
            await self._end_lost(connection)
            # time goes on between these statements: what runs out only now is left for the next claim to end
            is_heirless = and_(
                jobs.c.status == Status.RUNNING,
                jobs.c.lease_until < NOW,
                jobs.c.attempt < self._limits.attempts,
                jobs.c.cancel_requested == 0,
            )
            is_free = or_(jobs.c.status == Status.QUEUED, is_heirless)
            oldest = select(jobs.c.number).where(is_free, jobs.c.model.in_(models)).order_by(jobs.c.number).limit(1)
            number = await connection.scalar(
                update(jobs)
                .where(jobs.c.number == oldest.scalar_subquery())
                .values(
                    status=Status.RUNNING,
                    stage=Status.RUNNING,
                    attempt=jobs.c.attempt + 1,
                    fence=jobs.c.fence + 1,
                    worker=worker,
                    lease_until=NOW + lease_s,
                    started_at=NOW,
                )
                .returning(jobs.c.number)
            )
            if number is None:
                return None
            return _job((await connection.execute(_jobs_where(jobs.c.number == number))).one())

    @to_its_end
    async def renew(self, job: Job, lease_s: float) -> bool:
        """Whether the caller asked for the job to be cancelled. Raises LeaseLost."""
        row = await self._write(job, lease_until=NOW + lease_s)
        return bool(row.cancel_requested)

    @to_its_end
    async def report(self, job: Job, stage: str, progress: float) -> None:
        """Progress that would fall stays where it is. Raises LeaseLost."""
        highest = case((jobs.c.progress > progress, jobs.c.progress), else_=progress)
        await self._write(job, stage=stage, progress=highest)

    @to_its_end
    async def succeed(self, job: Job, made: Made) -> None:
        """Raises LeaseLost."""
        await self._end(job, Status.SUCCEEDED, made=made.model_dump_json(), progress=1.0)

    @to_its_end
    async def fail(self, job: Job, code: str, message: str) -> None:
        """`message` is for the caller's eyes. Raises LeaseLost."""
        await self._end(job, Status.FAILED, error_code=code, error_message=message)

    @to_its_end
    async def mark_cancelled(self, job: Job) -> None:
        """Raises LeaseLost."""
        await self._end(job, Status.CANCELLED, error_code="cancelled", error_message=CANCELLED_MESSAGE)

    @to_its_end
    async def give_back(self, job: Job) -> None:
        """Back to where it stood in the queue, as if not claimed; a job withdrawn meanwhile ends. Raises LeaseLost."""
        if (await self._write(job, worker=None)).cancel_requested:
            await self.mark_cancelled(job)
            return
        await self._write(
            job, status=Status.QUEUED, stage=Status.QUEUED, attempt=jobs.c.attempt - 1, worker=None, lease_until=None
        )

    @to_its_end
    async def cancel(self, id_: str, owner: str) -> Job | None:
        """A queued job ends at once, a running one at its conductor's next heartbeat; an ended one stays as it is."""
        is_theirs = and_(jobs.c.id == id_, jobs.c.owner == owner)
        queued = update(jobs).where(is_theirs, jobs.c.status == Status.QUEUED)
        running = update(jobs).where(is_theirs, jobs.c.status == Status.RUNNING)
        async with self._engine.begin() as connection:
            await connection.execute(
                queued.values(
                    status=Status.CANCELLED,
                    stage=Status.CANCELLED,
                    finished_at=NOW,
                    error_code="cancelled",
                    error_message=CANCELLED_MESSAGE,
                )
            )
            await connection.execute(running.values(cancel_requested=1))
            row = (await connection.execute(_jobs_where(is_theirs))).one_or_none()
        return None if row is None else _job(row)

    @to_its_end
    async def stats(self) -> Stats:
        async with self._reading.connect() as connection:
            counted = await connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
            of = {status: int(count) for status, count in counted}
            average = await self._average_s(connection)
        return Stats(
            total=sum(of.values()),
            queued=of.get(Status.QUEUED, 0),
            running=of.get(Status.RUNNING, 0),
            succeeded=of.get(Status.SUCCEEDED, 0),
            failed=of.get(Status.FAILED, 0),
            cancelled=of.get(Status.CANCELLED, 0),
            queue_limit=self._limits.jobs,
            avg_job_seconds=average,
        )

    @to_its_end
    async def retry_after_s(self) -> int:
        """When a place in a full queue is likely to be free: after one job's run time."""
        async with self._reading.connect() as connection:
            return max(1, math.ceil(await self._average_s(connection)))

    async def _average_s(self, connection: AsyncConnection) -> float:
        """Mean run time of the jobs that succeeded last."""
        last = (
            select((jobs.c.finished_at - jobs.c.started_at).label("seconds"))
            .where(jobs.c.status == Status.SUCCEEDED)
            .order_by(jobs.c.finished_at.desc())
            .limit(AVERAGED_JOBS)
            .subquery()
        )
        average = await connection.scalar(select(func.avg(last.c.seconds)))
        return FIRST_GUESS_S if average is None else float(average)

    async def _end_lost(self, connection: AsyncConnection) -> None:
        """Ends jobs whose workers went silent: those that were withdrawn, and those that lost one too often."""
        is_silent = and_(jobs.c.status == Status.RUNNING, jobs.c.lease_until < NOW)
        ends = (
            (jobs.c.cancel_requested == 1, Status.CANCELLED, "cancelled", CANCELLED_MESSAGE),
            (
                jobs.c.attempt >= self._limits.attempts,
                Status.FAILED,
                "worker_lost",
                f"the process that made it was lost {self._limits.attempts} times",
            ),
        )
        for is_meant, status, code, message in ends:
            await connection.execute(
                update(jobs)
                .where(is_silent, is_meant)
                .values(
                    status=status,
                    stage=status,
                    finished_at=NOW,
                    error_code=code,
                    error_message=message,
                    fence=jobs.c.fence + 1,
                )
            )

    async def _end(self, job: Job, status: Status, **values: Any) -> None:
        await self._write(job, status=status, stage=status, finished_at=NOW, lease_until=None, **values)

    async def _write(self, job: Job, **values: Any) -> Row[Any]:
        """Every write of a conductor: only under the fence it claimed the job with, only while the job runs."""
        holds = and_(jobs.c.id == job.id, jobs.c.fence == job.fence, jobs.c.status == Status.RUNNING)
        async with self._engine.begin() as connection:
            written = await connection.execute(
                update(jobs).where(holds).values(**values).returning(jobs.c.cancel_requested)
            )
            row: Row[Any] | None = written.one_or_none()
        if row is None:
            raise LeaseLost(f"job {job.id} is no longer held under fence {job.fence}")
        return row


def _jobs_where(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Jobs with, computed, their places in the queue."""
    ahead = jobs.alias()
    position = (
        select(func.count())
        .select_from(ahead)
        .where(ahead.c.status == Status.QUEUED, ahead.c.number <= jobs.c.number, jobs.c.status == Status.QUEUED)
        .correlate(jobs)
        .scalar_subquery()
    )
    return select(*jobs.c, position.label("queue_position")).where(*conditions)


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        owner=row.owner,
        status=Status(row.status),
        request=MusicRequest.model_validate_json(row.request),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        fence=row.fence,
        stage=row.stage,
        progress=row.progress,
        queue_position=row.queue_position,
        error_code=row.error_code,
        error_message=row.error_message,
        made=None if row.made is None else Made.model_validate_json(row.made),
    )


def _set_up_connection(connection: Any, _: object) -> None:
    """Durable (a commit is on disk) and readable while written; transactions are begun by `_begin_immediately`."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", f"busy_timeout = {LOCK_WAIT_S * 1000}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediately(connection: Any) -> None:
    """Writers take the lock at once: one that reads first and writes later fails when another was in between."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(ONLY_READS) else "BEGIN IMMEDIATE")
