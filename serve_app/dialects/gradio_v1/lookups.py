"""The v1 API's routes about requests that were taken, and for the files that came of them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from serve_app.dialects.access import Access, Scope
from serve_app.dialects.desk import Desk
from serve_app.dialects.downloads import send_track
from serve_app.dialects.gradio_v1.results import WORD_OF, queue_reply, status_reply, to_reply
from serve_app.jobs.job import Job, Status

AUDIO: dict[int | str, dict[str, Any]] = {  # for the API page
    200: {"description": "The file", "content": {"audio/*": {"schema": {"type": "string", "format": "binary"}}}}
}


def routes(desk: Desk, access: Access) -> APIRouter:
    router = APIRouter()

    reading, generating = access.asking(Scope.READ), access.asking(Scope.GENERATE)

    async def theirs(request_id: str, owner: str) -> Job:
        (job,) = await desk.look_up([request_id], owner)
        if job is None:
            raise HTTPException(404, "Request not found")
        return job

    @router.get("/status/{request_id}")
    async def status(request_id: str, owner: str = Depends(reading)) -> dict[str, Any]:
        """pending, processing, completed or failed."""
        return status_reply(await theirs(request_id, owner))

    @router.get("/result/{request_id}")
    async def result(request_id: str, owner: str = Depends(reading)) -> dict[str, Any]:
        """What `/generate_music` would have answered."""
        job = await theirs(request_id, owner)
        if job.status is not Status.SUCCEEDED:
            raise HTTPException(400, f"Request is {WORD_OF[job.status]}, not completed")
        return to_reply(job)

    @router.delete("/request/{request_id}")
    async def cancel(request_id: str, owner: str = Depends(generating)) -> dict[str, Any]:
        """Withdraws a song, also one that is being made."""
        job = await theirs(request_id, owner)
        if job.status.is_final:
            raise HTTPException(400, f"Cannot cancel request in {WORD_OF[job.status]} status")
        await desk.cancel(request_id, owner)
        return {"message": "Request cancelled"}

    @router.get("/queue/status")
    async def queue_status(owner: str = Depends(reading)) -> dict[str, Any]:
        """The queue in numbers."""
        return queue_reply(await desk.stats())

    @router.head("/outputs/{ref}", include_in_schema=False)
    @router.get("/outputs/{ref}", response_class=Response, responses=AUDIO)
    async def output(request: Request, ref: str) -> Response:
        """A finished file by the last part of its `audio_path`, whole or in part."""
        access.owner_by_query(request, Scope.READ)
        return await download(desk, request, ref)

    return router


async def download(desk: Desk, request: Request, ref: str) -> Response:
    file = await desk.open_track(ref)
    if file is None:
        raise HTTPException(404, "Audio file not found")
    sent = send_track(file, request)
    sent.headers["content-disposition"] = f'attachment; filename="{ref}"'
    return sent
