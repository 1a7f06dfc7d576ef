"""`/v2/jobs`: ask for songs, look, list, withdraw."""

# no postponed annotations here: FastAPI reads those of the routes, and some name a function inside another

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import TEXT_AT_MOST
from serve_app.dialects.desk import Desk
from serve_app.dialects.native import schema
from serve_app.dialects.native.preferences import idempotency_of, is_known, wait_of
from serve_app.dialects.native.problems import Fault, Refused, documented, refused_for
from serve_app.dialects.native.requests import read_request
from serve_app.dialects.native.slots import Slots
from serve_app.dialects.native.views import JobList, JobView, job_path, to_view
from serve_app.dialects.strict_json import MOST_VALUES, holds_too_much
from serve_app.jobs.job import Job, Stats, Status

MAX_RETRY_AFTER_S = 10
REQUEST_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema.whole()}}}}
REQUEST_HEADERS = [
    {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string"},
        "description": "`wait=N`: up to so many seconds, 60 at most, until the job has ended.",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": "A name for this request, under which it is done once however often it is sent.",
    },
]


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: list[Status] = Field([], description="Only jobs of these; may be repeated.")
    limit: int = Field(20, ge=1, le=100)
    cursor: str | None = Field(None, description="Of a `next` link; means nothing by itself.")


def add_routes(router: APIRouter, desk: Desk, access: Access, waiting: Slots) -> None:
    async def reader(request: Request) -> str:
        """Asked before anything else is looked at."""
        return access.owner_by_header(request, Scope.READ)

    async def stats_for(*jobs: Job) -> Stats | None:
        return await desk.stats() if any(not job.status.is_final for job in jobs) else None

    async def reply(job: Job, status: int, headers: Mapping[str, str] | None = None) -> Response:
        view = to_view(job, await stats_for(job), with_codes=True)
        told = {"ETag": etag_of(job), "Cache-Control": "private, no-cache", **(headers or {})}
        if not job.status.is_final:
            told["Retry-After"] = retry_after_of(view.eta_seconds)
        return Response(view.model_dump_json(), status, told, "application/json")

    @router.post(
        "/jobs",
        status_code=202,
        response_model=JobView,
        responses={200: {"model": JobView, "description": "It has ended"}, **documented(408, 413, 415)},
        openapi_extra={**REQUEST_BODY, "parameters": REQUEST_HEADERS},
    )
    async def submit(request: Request) -> Response:
        """Takes a job of one to eight songs: 202, or 200 where it has ended already, because `Prefer: wait` was sent,
        it was asked for before under the same `Idempotency-Key`, or `reuse` found it."""
        owner = access.owner_by_header(request, Scope.GENERATE)
        body = await _json_body(request)
        asked = await read_request(body, desk, owner)
        terms = replace(asked.terms, idempotency=idempotency_of(request, body))
        job = await desk.submit(asked.request, owner, asked.attached, terms)
        headers = {"Location": job_path(job.id), "Content-Location": job_path(job.id)}
        wait_s = wait_of(request)
        if wait_s is not None and not waiting.are_full:
            headers["Preference-Applied"] = f"wait={wait_s}"
            with waiting.take():
                job = await desk.wait(job.id, owner, wait_s) or job
        return await reply(job, 200 if job.status.is_final else 202, headers)

    @router.get("/jobs", response_model=JobList, responses=documented())
    async def list_jobs(owner: Annotated[str, Depends(reader)], query: Annotated[ListQuery, Query()]) -> Response:
        """The caller's own jobs, the newest first."""
        before = None if query.cursor is None else _number_of(query.cursor)
        jobs = await desk.list_jobs(owner, query.status, before, query.limit + 1)
        shown, is_more = jobs[: query.limit], len(jobs) > query.limit
        stats = await stats_for(*shown)
        next_ = _next_page(query, shown[-1]) if is_more else None
        page = JobList(jobs=[to_view(job, stats, with_codes=False) for job in shown], next=next_)
        headers = {"Cache-Control": "private, no-cache"} | ({"Link": f'<{next_}>; rel="next"'} if next_ else {})
        return Response(page.model_dump_json(), 200, headers, "application/json")

    @router.get(
        "/jobs/{id}",
        response_model=JobView,
        responses={304: {"description": "As the caller knows it, by If-None-Match"}, **documented(404)},
    )
    async def look_up(owner: Annotated[str, Depends(reader)], request: Request, id: str) -> Response:
        """A job as it is now."""
        (job,) = await desk.look_up([id], owner)
        if job is None:
            raise no_job(id)
        if not is_known(request, etag_of(job)):
            return await reply(job, 200)
        headers = {"ETag": etag_of(job), "Cache-Control": "private, no-cache"}
        if not job.status.is_final:
            headers["Retry-After"] = retry_after_of((await desk.stats()).eta_of(job))
        return Response(status_code=304, headers=headers)

    @router.delete(
        "/jobs/{id}",
        response_model=JobView,
        responses={
            202: {"model": JobView, "description": "It runs, and ends within a second or so"},
            **documented(404),
        },
    )
    async def cancel(request: Request, id: str) -> Response:
        """Withdraws a job; one that has ended stays as it is."""
        job = await desk.cancel(id, access.owner_by_header(request, Scope.GENERATE))
        if job is None:
            raise no_job(id)
        return await reply(job, 200 if job.status.is_final else 202)


def no_job(id_: str) -> Refused:
    """Also where it is somebody else's."""
    return Refused(404, f"there is no job {id_!r}", "unknown_job")


def etag_of(job: Job) -> str:
    """Weak: an expected time of the same event may differ."""
    return f'W/"{job.events}-{job.queue_position}"'


def retry_after_of(eta_s: float | None) -> str:
    """Seconds until a look is worth it: often for who is served soon."""
    return str(min(max(1, round((eta_s or 0) / 4)), MAX_RETRY_AFTER_S))


async def _json_body(request: Request) -> bytes:
    """Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refused(
            415, f"Content-Type {kind or '(missing)'}: send application/json", headers={"Accept": "application/json"}
        )
    body = await request.body()
    if len(body) > TEXT_AT_MOST or holds_too_much(body):
        raise Refused(413, f"a job takes at most {TEXT_AT_MOST} bytes and {MOST_VALUES} values")
    return body


def _next_page(query: ListQuery, last: Job) -> str:
    cursor = base64.urlsafe_b64encode(str(last.number).encode()).decode().rstrip("=")
    asked: list[tuple[str, Any]] = [*(("status", status.value) for status in query.status), ("limit", query.limit)]
    return f"/v2/jobs?{urlencode([*asked, ('cursor', cursor)])}"


def _number_of(cursor: str) -> int:
    """Raises Refused."""
    try:
        number = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if 0 < number < 2**62:
            return number
        raise ValueError
    except (ValueError, binascii.Error):
        raise refused_for([Fault(field="query cursor", message="not one of a `next` link")]) from None
