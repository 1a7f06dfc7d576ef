"""`/v2/jobs/{id}/events`: a job as it goes on, as server-sent events."""

# no postponed annotations here: FastAPI reads those of the routes, and some name a function inside another

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from serve_app.dialects.access import Access, Scope
from serve_app.dialects.desk import Desk
from serve_app.dialects.native.jobs import no_job
from serve_app.dialects.native.problems import Refused, documented
from serve_app.dialects.native.slots import Slots
from serve_app.dialects.native.views import Steps, steps_of, to_view
from serve_app.jobs.job import Job, JobEvent, Status

RETRY_MS = 2000  # after which a caller whose connection broke comes back
PLACE_EVERY_S = 5.0
EventNumber = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Happening(BaseModel):
    """Data of an event `progress`, whose id is its number."""

    at: datetime
    status: Status
    stage: str
    steps: Steps | None
    progress: float


class Place(BaseModel):
    """Data of an event `place`: where a job stands in the queue."""

    queue_position: int
    eta_seconds: float | None


def add_routes(router: APIRouter, desk: Desk, access: Access, streams: Slots) -> None:
    async def find(request: Request, id: str) -> Job:
        """Before the stream begins, so that a refusal is an answer of its own."""
        (job,) = await desk.look_up([id], access.owner_by_query(request, Scope.READ))
        if job is None:
            raise no_job(id)
        return job

    async def hold(job: Annotated[Job, Depends(find)]) -> AsyncIterator[Job]:
        if streams.are_full:
            detail = f"{streams.most} callers watch jobs here already; ask /v2/jobs/ID now and then instead"
            raise Refused(503, detail, "too_many_streams", headers={"Retry-After": "5"})
        with streams.take():
            yield job

    @router.get(
        "/jobs/{id}/events",
        response_class=EventSourceResponse,
        responses={
            200: {"description": "Events `place`, `progress` and, as the last one, `end`"},
            **documented(404, 503),
        },
    )
    async def events(
        job: Annotated[Job, Depends(hold)],
        last_event_id: Annotated[EventNumber, Header(description="The last event the caller has seen.")] = 0,
        last_event_id_: Annotated[
            EventNumber, Query(alias="last_event_id", description="The same, for who cannot set a header.")
        ] = 0,
    ) -> AsyncIterator[ServerSentEvent]:
        """What happens to a job, from its first event or behind `Last-Event-ID`: `progress` with an id, `place` without
        one while it is queued, and `end` with the whole job, after which the stream closes."""
        yield ServerSentEvent(retry=RETRY_MS, comment="what happens to a job")
        async with aclosing(_told(desk, job, last_event_id or last_event_id_)) as told:
            async for event in told:
                yield event


async def _told(desk: Desk, job: Job, after: int) -> AsyncGenerator[ServerSentEvent, None]:
    """Beside the job's own events, its place while it is queued."""
    happened: asyncio.Queue[JobEvent | None] = asyncio.Queue()
    watching = asyncio.create_task(_collect(desk.watch(job.id, job.owner, after), happened))
    is_queued, place = job.status is Status.QUEUED, None
    try:
        while True:
            if is_queued and (now := await _place(desk, job)) not in (None, place):
                place = now
                yield ServerSentEvent(event="place", data=place)
            with suppress(TimeoutError):
                async with asyncio.timeout(PLACE_EVERY_S if is_queued else None):
                    event = await happened.get()
                if event is None:
                    break
                is_queued = event.status is Status.QUEUED
                yield ServerSentEvent(event="progress", id=str(event.number), data=_happening(event))
        await watching  # for what went wrong with it
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    (ended,) = await desk.look_up([job.id], job.owner)
    if ended is not None and ended.status.is_final:
        yield ServerSentEvent(event="end", data=to_view(ended, None, with_codes=True))


async def _collect(events: AsyncIterator[JobEvent], into: asyncio.Queue[JobEvent | None]) -> None:
    """`None` behind the last one. A task of its own, since a watch is not to be broken off to look at the clock."""
    try:
        async for event in events:
            into.put_nowait(event)
    finally:
        into.put_nowait(None)


async def _place(desk: Desk, job: Job) -> Place | None:
    """`None` once it is claimed."""
    (seen,) = await desk.look_up([job.id], job.owner)
    if seen is None or seen.status is not Status.QUEUED:
        return None
    eta_s = (await desk.stats()).eta_of(seen)
    return Place(queue_position=seen.queue_position, eta_seconds=None if eta_s is None else round(eta_s, 1))


def _happening(event: JobEvent) -> Happening:
    return Happening(
        at=datetime.fromtimestamp(event.at, UTC),
        status=event.status,
        stage=event.stage,
        steps=steps_of(event),
        progress=round(event.progress, 4),
    )
