"""The v1 API's routes, on the shared port and on one of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from models.errors import RequestError
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.desk import Desk
from serve_app.dialects.gradio_v1 import lookups
from serve_app.dialects.gradio_v1.lookups import AUDIO, download
from serve_app.dialects.gradio_v1.requests import DOCUMENTED, GenerateMusic, to_request
from serve_app.dialects.gradio_v1.results import error_of, refusal_reply, to_reply
from serve_app.dialects.replies import refusal
from serve_app.dialects.waiting import stay
from serve_app.examples import Examples, FullExample
from serve_app.jobs.job import Job

IsReady = Callable[[], Awaitable[bool]]


class Initialize(BaseModel):
    """What a server of one's own would be set up with."""

    model_config = ConfigDict(frozen=True, extra="allow")

    checkpoint_path: str = ""
    device_id: int = Field(0, ge=0)
    bf16: bool = True
    torch_compile: bool = False
    cpu_offload: bool = False
    overlapped_decode: bool = False


def routes(desk: Desk, access: Access, examples: Examples, within_s: float) -> APIRouter:
    """`within_s`: how long a caller is kept waiting for a song."""
    router = APIRouter()
    router.include_router(lookups.routes(desk, access))

    generating, reading = access.asking(Scope.GENERATE), access.asking(Scope.READ)

    async def take(asked: GenerateMusic, owner: str) -> tuple[Job, list[str]]:
        request, attachments, not_applied = to_request(asked, desk.catalogue)
        return await desk.submit(request, owner, attachments), not_applied

    def still_made(job: Job) -> str:
        return f"not finished within {within_s:g} s; it goes on as request {job.id}, see /status/{job.id}"

    @router.post("/initialize")
    async def initialize(
        request: Request,
        by_query: Annotated[Initialize, Query()],
        by_body: Initialize | None = None,
        owner: str = Depends(reading),
    ) -> dict[str, Any]:
        """Checks what is sent and changes nothing: the models of a shared server are its operator's."""
        asked = sorted({*request.query_params, *(by_body.model_dump(exclude_unset=True) if by_body else ())})
        told = [f"{name}: not applied, the operator of this server has set up its models" for name in asked]
        return {"success": True, "message": "Pipeline initialized successfully", "not_applied": told}

    @router.post("/generate_music")
    async def generate_music(
        request: Request, asked: GenerateMusic, owner: str = Depends(generating)
    ) -> dict[str, Any]:
        """Makes a song and answers when it is there. What a 1.5 model cannot do is in `not_applied`."""
        try:
            job, not_applied = await take(asked, owner)
        except RequestError as error:
            return refusal_reply(str(error))
        job = await stay(desk, request, job, within_s)
        if not job.status.is_final:
            return refusal_reply(still_made(job)) | {"request_id": job.id, "not_applied": not_applied}
        return to_reply(job, asked.documented(), not_applied)

    @router.post("/generate_music_direct", response_class=Response, responses=AUDIO)
    async def generate_music_direct(
        request: Request, asked: GenerateMusic, owner: str = Depends(generating)
    ) -> Response:
        """Makes a song and answers with the file itself."""
        job, _ = await take(asked, owner)
        job = await stay(desk, request, job, within_s)
        if not job.status.is_final:
            return refusal(504, still_made(job))
        if job.made is None:
            return refusal(500, error_of(job))
        return await download(desk, request, job.made.tracks[0].ref)

    @router.post("/generate_music_async")
    async def generate_music_async(asked: GenerateMusic, owner: str = Depends(generating)) -> dict[str, Any]:
        """Takes a song and answers at once; `/status/{request_id}` tells what became of it."""
        job, not_applied = await take(asked, owner)
        message = "Request has been queued for processing"
        return {"request_id": job.id, "status": "queued", "message": message, "not_applied": not_applied}

    @router.get("/sample_data")
    async def sample_data(owner: str = Depends(reading)) -> dict[str, Any]:
        """An example to send to `/generate_music`."""
        example = examples.draw(is_simple=False)
        assert isinstance(example, FullExample)
        words = {"prompt": example.caption, "lyrics": example.lyrics, "audio_duration": example.duration}
        return {"success": True, "sample": DOCUMENTED | words}

    return router


def health_route(is_ready: IsReady) -> APIRouter:
    """Of a port where nothing but the v1 API is; the shared one tells its health in the current API's words."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Alive; `pipeline_loaded` once every model is up."""
        return {"status": "healthy", "pipeline_loaded": await is_ready()}

    return router
