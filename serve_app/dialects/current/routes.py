"""The current API's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from models.errors import InvalidRequest
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import read_fields, read_query_fields
from serve_app.dialects.current import adapters, management, models, samples, words
from serve_app.dialects.current.models import ModelsFormat
from serve_app.dialects.current.requests import terms_of, to_request
from serve_app.dialects.current.results import eta_seconds, to_reply, unknown_reply
from serve_app.dialects.desk import Desk
from serve_app.dialects.downloads import DOCUMENTED, send_track
from serve_app.dialects.parameters import openapi_body, short_body
from serve_app.dialects.replies import CONFLICTS, envelope
from serve_app.dialects.strict_json import BadJson, read_json

IDS_AT_MOST = 1000


def read_task_ids(value: Any) -> list[str]:
    """A list, JSON of one in a string, ids separated by commas, or one id."""
    if isinstance(value, str):
        try:
            value = read_json(value)
        except BadJson:
            value = value.split(",")
    if isinstance(value, str):
        value = [value]
    ids = [str(id_).strip() for id_ in value if isinstance(id_, (str, int))] if isinstance(value, list) else []
    if len(ids) > IDS_AT_MOST:
        raise InvalidRequest(f"task_id_list holds {len(ids)} ids; allowed: {IDS_AT_MOST}")
    return [id_ for id_ in ids if id_]


def routes(desk: Desk, access: Access, models_format: ModelsFormat = "wrapped") -> APIRouter:
    router = APIRouter()
    router.include_router(words.routes(desk, access))
    router.include_router(samples.routes(access))
    router.include_router(models.routes(desk, access, models_format))
    router.include_router(adapters.routes(desk, access))
    router.include_router(management.routes(desk, access))

    @router.post("/release_task", openapi_extra=openapi_body(has_files=True), responses=CONFLICTS)
    async def release_task(request: Request) -> dict[str, Any]:
        """Takes a job of one to eight songs and answers at once; `/query_result` tells what became of it.

        With a header `Idempotency-Key` it is one job, however often it is sent.
        """
        async with read_fields(request) as fields:
            owner = access.owner_by_fields(request, fields.values, Scope.GENERATE)
            asked, attachments, warnings = to_request(fields, desk.catalogue)
            terms = await terms_of(fields, request.headers.get("idempotency-key"))
            job = await desk.submit(asked, owner, attachments, terms)
        eta_s = eta_seconds(job, await desk.stats())
        data = {
            "task_id": job.id,
            "status": "queued",
            "queue_position": max(1, job.queue_position),
            "eta_seconds": eta_s,
        }
        return envelope(data | {"warnings": warnings} if warnings else data)

    @router.post("/query_result", openapi_extra=short_body("task_id_list", ["5f0c6a52-8d0f-4d5a-9d1c-6a1f0f3f9a11"]))
    async def query_result(request: Request) -> dict[str, Any]:
        """State and result of jobs, in the order asked: status 0 under way, 1 done, 2 failed."""
        fields = await read_query_fields(request)
        owner = access.owner_by_fields(request, fields.values, Scope.READ)
        ids = read_task_ids(fields.values.get("task_id_list"))
        jobs = await desk.look_up(ids, owner)
        is_waited_for = any(job is not None and not job.status.is_final for job in jobs)
        stats = await desk.stats() if is_waited_for else None
        entries = [
            unknown_reply(id_) if job is None else to_reply(job, stats) for id_, job in zip(ids, jobs, strict=True)
        ]
        return envelope(entries)

    @router.post("/cancel_task", openapi_extra=short_body("task_id", "5f0c6a52-8d0f-4d5a-9d1c-6a1f0f3f9a11"))
    async def cancel_task(request: Request) -> dict[str, Any]:
        """Withdraws a job: at once while it is queued, within a second or so when it runs."""
        fields = await read_query_fields(request)
        owner = access.owner_by_fields(request, fields.values, Scope.GENERATE)
        task_id = str(fields.values.get("task_id") or "")
        job = await desk.cancel(task_id, owner)
        if job is None:
            raise HTTPException(404, f"no task {task_id!r}")
        return envelope({"task_id": job.id, "status": job.status.value})

    def ask_by_query(request: Request) -> None:
        access.owner_by_query(request, Scope.READ)

    @router.head("/v1/audio", include_in_schema=False, dependencies=[Depends(ask_by_query)])
    @router.get("/v1/audio", response_class=Response, responses=DOCUMENTED, dependencies=[Depends(ask_by_query)])
    async def audio(request: Request, path: str) -> Response:
        """A finished file, whole or in part."""
        if path.startswith(("/", "\\")) or ".." in path:
            raise HTTPException(403, "Access denied: path outside allowed directory")
        file = await desk.open_track(path)
        if file is None:
            raise HTTPException(404, "Audio file not found")
        return send_track(file, request)

    return router
