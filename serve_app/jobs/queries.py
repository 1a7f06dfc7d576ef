"""What is asked of the jobs. Each statement is built once, since building takes longer than running it."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    cast,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

from serve_app.jobs.hints import hint
from serve_app.jobs.job import FINAL, Status
from serve_app.jobs.schema import events, jobs, now, tallies, tracks
from serve_app.jobs.tally import place_in_queue

AVERAGED_JOBS = 50
REAPED_AT_ONCE = 100

# what a change has to know of a job before; request and result can be long and stay where they are
STATE = (
    jobs.c.number,
    jobs.c.status,
    jobs.c.owner,
    jobs.c.turn,
    jobs.c.error_code,
    jobs.c.losses,
    jobs.c.cancel_requested,
)
# what those who watch a job are told of it
TOLD = (
    jobs.c.number,
    jobs.c.events,
    jobs.c.changed_at,
    jobs.c.status,
    jobs.c.stage,
    jobs.c.done,
    jobs.c.planned,
    jobs.c.progress,
)


@cache
def jobs_by_id() -> Select[Any]:
    """Whole rows of `ids` of an `owner`, with their places in the queue."""
    return _whole().where(jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.owner == bindparam("owner"))


@cache
def newest_jobs(statuses: tuple[Status, ...]) -> Select[Any]:
    """Whole rows of up to `at_most` jobs of an `owner`, numbered below `before`, the newest first."""
    is_theirs = (jobs.c.owner == bindparam("owner"), jobs.c.number < bindparam("before"))
    newest = _whole().where(*is_theirs, *([jobs.c.status.in_(statuses)] if statuses else []))
    return newest.order_by(jobs.c.number.desc()).limit(bindparam("at_most", type_=Integer))


@cache
def newest_event() -> Select[Any]:
    """What the job `id` of an `owner` tells now."""
    return select(*TOLD).where(jobs.c.id == bindparam("id"), jobs.c.owner == bindparam("owner"))


@cache
def events_after() -> Select[Any]:
    """Events of a `job` behind the number `after`, in order."""
    is_it = (events.c.job == bindparam("job"), events.c.number > bindparam("after"))
    return select(events).where(*is_it).order_by(events.c.number)


@cache
def event_counts() -> Select[Any]:
    """How many events each of the jobs `numbers` has had."""
    return select(jobs.c.number, jobs.c.events).where(jobs.c.number.in_(bindparam("numbers", expanding=True)))


@cache
def number_of_reusable() -> Select[Any]:
    """The newest job of an `owner` that made this very request."""
    is_it = (jobs.c.owner == bindparam("owner"), jobs.c.request_sha256 == bindparam("request_sha256"))
    made = select(jobs.c.number).where(*is_it, jobs.c.status == Status.SUCCEEDED)
    return made.order_by(jobs.c.number.desc()).limit(1)


@cache
def known_ids() -> Select[Any]:
    """Those of `ids` that there are."""
    return select(jobs.c.id).where(jobs.c.id.in_(bindparam("ids", expanding=True)))


@cache
def job_by_number() -> Select[Any]:
    """The whole row of a `number`, with its place in the queue."""
    return _whole().where(jobs.c.number == bindparam("number"))


@cache
def new_job(dialect: str) -> ReturningInsert[Any]:
    """Takes what comes from the caller; `handicap_s` and `deadline_s` count from now. No row: its key is taken."""
    insert = sqlite.insert(jobs) if dialect == "sqlite" else postgresql.insert(jobs)
    turn_s = now() + bindparam("handicap_s", type_=Float)
    timed = insert.values(
        status=Status.QUEUED,
        stage=Status.QUEUED,
        created_at=now(),
        changed_at=now(),
        turn=cast(turn_s * 1000, BigInteger),
        deadline=now() + bindparam("deadline_s", type_=Float),
    )
    told = dict.fromkeys((*STATE, *TOLD, *hint(dialect)))
    return timed.on_conflict_do_nothing(index_elements=["owner", "idempotency_key"]).returning(*told)


@cache
def job_of_key() -> Select[Any]:
    """The whole row of an idempotency `key` of an `owner`, with its place in the queue."""
    return _whole().where(jobs.c.owner == bindparam("owner"), jobs.c.idempotency_key == bindparam("key"))


@cache
def counts() -> Select[Any]:
    return select(tallies).where(tallies.c.kind.in_(("status", "failure")))


@cache
def average_seconds() -> Select[Any]:
    """Mean run time of the jobs that succeeded last."""
    last = (
        select((jobs.c.finished_at - jobs.c.started_at).label("seconds"))
        .where(jobs.c.status == Status.SUCCEEDED)
        .order_by(jobs.c.finished_at.desc())
        .limit(AVERAGED_JOBS)
        .subquery()
    )
    return select(func.avg(last.c.seconds))


@cache
def state_of_theirs() -> Select[Any]:
    """Locks the job `id` of `owner`."""
    return _state(jobs.c.id == bindparam("id"), jobs.c.owner == bindparam("owner")).with_for_update()


@cache
def state_of_held() -> Select[Any]:
    """Locks the job `id` where it still runs under `fence`."""
    return _state(
        jobs.c.id == bindparam("id"), jobs.c.fence == bindparam("fence"), jobs.c.status == Status.RUNNING
    ).with_for_update()


@cache
def state_of_reaped() -> Select[Any]:
    """Locks jobs whose leases ran out or whose deadlines passed, but for those that others hold just now."""
    is_silent = and_(jobs.c.status == Status.RUNNING, jobs.c.lease_until < now())
    is_overdue = and_(jobs.c.status.in_((Status.QUEUED, Status.RUNNING)), jobs.c.deadline < now())
    return (
        select(*STATE, is_silent.label("is_silent"), is_overdue.label("is_overdue"))
        .where(or_(is_silent, is_overdue))
        .limit(REAPED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )


@cache
def state_of_ended() -> Select[Any]:
    """Locks up to `at_most` jobs that ended `age_s` ago or earlier, but for those that others hold just now."""
    return (
        select(*STATE, jobs.c.request)
        .where(jobs.c.status.in_(FINAL), jobs.c.finished_at <= now() - bindparam("age_s", type_=Float))
        .limit(bindparam("at_most", type_=Integer))
        .with_for_update(skip_locked=True)
    )


@cache
def state_of_oldest() -> Select[Any]:
    """Locks up to `at_most` jobs that succeeded, those that did first; with the bytes of their tracks."""
    theirs = select(func.coalesce(func.sum(tracks.c.size), 0)).where(tracks.c.job == jobs.c.number)
    return (
        select(*STATE, jobs.c.request, theirs.scalar_subquery().label("bytes"))
        .where(jobs.c.status == Status.SUCCEEDED)
        .order_by(jobs.c.finished_at)
        .limit(bindparam("at_most", type_=Integer))
        .with_for_update(of=jobs)
    )


@cache
def bytes_of_tracks() -> Select[Any]:
    return select(func.sum(tracks.c.size))


@cache
def known_tracks() -> Select[Any]:
    """Those of `refs` that a job has made."""
    return select(tracks.c.ref).where(tracks.c.ref.in_(bindparam("refs", expanding=True)))


@cache
def first_start() -> Select[Any]:
    """When the job that runs longest was claimed."""
    return select(func.min(jobs.c.started_at)).where(jobs.c.status == Status.RUNNING)


@cache
def state_of_next(models: tuple[str, ...]) -> Select[Any]:
    """Locks each model's first job in the queue, past those that others hold just now; of these, the first."""
    firsts = [
        select(jobs.c.number, jobs.c.turn)
        .where(jobs.c.status == Status.QUEUED, jobs.c.model == model)
        .order_by(jobs.c.turn, jobs.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)
        .subquery()
        for model in models
    ]
    first = union_all(*map(select, firsts)).subquery()
    number = select(first.c.number).order_by(first.c.turn, first.c.number).limit(1)
    return _state(jobs.c.number == number.scalar_subquery())


def _state(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(*STATE).where(*conditions)


def _whole() -> Select[Any]:
    place = case((jobs.c.status == Status.QUEUED, place_in_queue()), else_=0)
    return select(*jobs.c, place.label("queue_position"), now().label("read_at"))
