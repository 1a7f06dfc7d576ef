"""The current API's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from models.errors import InvalidRequest
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import read_fields, read_query_fields
from serve_app.dialects.current.catalogue import wrapped_models
from serve_app.dialects.current.requests import to_request
from serve_app.dialects.current.results import to_reply, unknown_reply
from serve_app.dialects.desk import Desk
from serve_app.dialects.downloads import send_track
from serve_app.dialects.parameters import openapi_body
from serve_app.dialects.replies import envelope
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


def routes(desk: Desk, access: Access) -> APIRouter:
    router = APIRouter()

    @router.post("/release_task", openapi_extra=openapi_body())
    async def release_task(request: Request) -> dict[str, Any]:
        """Takes a job of one to eight songs and answers at once; `/query_result` tells what became of it."""
        async with read_fields(request) as fields:
            owner = access.owner_by_fields(request, fields.values, Scope.GENERATE)
            asked, attachments, warnings = to_request(fields, desk.catalogue)
            job = await desk.submit(asked, owner, attachments)
        data = {"task_id": job.id, "status": "queued", "queue_position": max(1, job.queue_position)}
        return envelope(data | {"warnings": warnings} if warnings else data)

    @router.post("/query_result")
    async def query_result(request: Request) -> dict[str, Any]:
        """State and result of jobs, in the order asked: status 0 under way, 1 done, 2 failed."""
        fields = await read_query_fields(request)
        owner = access.owner_by_fields(request, fields.values, Scope.READ)
        ids = read_task_ids(fields.values.get("task_id_list"))
        jobs = await desk.look_up(ids, owner)
        entries = [unknown_reply(id_) if job is None else to_reply(job) for id_, job in zip(ids, jobs, strict=True)]
        return envelope(entries)

    @router.post("/cancel_task")
    async def cancel_task(request: Request) -> dict[str, Any]:
        """Withdraws a job: at once while it is queued, within a second or so when it runs."""
        fields = await read_query_fields(request)
        owner = access.owner_by_fields(request, fields.values, Scope.GENERATE)
        task_id = str(fields.values.get("task_id") or "")
        job = await desk.cancel(task_id, owner)
        if job is None:
            raise HTTPException(404, f"no task {task_id!r}")
        return envelope({"task_id": job.id, "status": job.status.value})

    @router.head("/v1/audio", include_in_schema=False)
    @router.get("/v1/audio")
    async def audio(request: Request, path: str) -> Response:
        """A finished file, whole or in part."""
        access.owner_by_query(request, Scope.READ)
        if path.startswith(("/", "\\")) or ".." in path:
            raise HTTPException(403, "Access denied: path outside allowed directory")
        file = await desk.open_track(path)
        if file is None:
            raise HTTPException(404, "Audio file not found")
        return send_track(file, request)

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """What this server runs, its default first."""
        access.owner_by_header(request, Scope.READ)
        data = wrapped_models(desk.catalogue)
        return {**envelope(data), "models": data["models"], "default_model": data["default_model"]}

    @router.get("/v1/stats")
    async def stats(request: Request) -> dict[str, Any]:
        """The queue in numbers."""
        access.owner_by_header(request, Scope.READ)
        seen = await desk.stats()
        jobs = {
            name: getattr(seen, name) for name in ("total", "queued", "running", "succeeded", "failed", "cancelled")
        }
        return envelope(
            {
                "jobs": jobs,
                "queue_size": seen.queued,
                "queue_maxsize": seen.queue_limit,
                "avg_job_seconds": round(seen.avg_job_seconds, 3),
            }
        )

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Alive, and able to take jobs; `/readyz` tells part by part whether all models are up."""
        told = {"status": "ok", "service": "ACE-Step API", "version": "1.0"}
        return {**envelope(told), **told, "healthy": True, "pipeline_loaded": True}

    return router
