"""Music by chat completion, as OpenRouter and OpenAI's clients ask for it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from models.music import Made
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import read_object
from serve_app.dialects.catalogue_list import listed_models
from serve_app.dialects.desk import Desk
from serve_app.dialects.openrouter.inline_audio import Marks
from serve_app.dialects.openrouter.replies import (
    audio,
    chunk,
    codes_of,
    completion,
    content_of,
    progress_chunk,
    usage_chunk,
)
from serve_app.dialects.openrouter.requests import Asked, ChatBody, openapi_body, to_request
from serve_app.dialects.waiting import NOT_MADE, ClosedStream, attend, follow, made_of, open_made, verdict
from serve_app.jobs.job import Job, Terms

DOT_EVERY_S = 2.0
COMPLETIONS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The songs; with `stream`, chunks as server-sent events, the last of them `[DONE]`.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["id", "object", "choices", "usage"]}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **NOT_MADE,
}


def routes(desk: Desk, access: Access, timeout_s: float) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/chat/completions", response_model=None, openapi_extra=openapi_body(ChatBody), responses=COMPLETIONS
    )
    async def chat_completions(request: Request) -> Response:
        """Makes music and answers with it, in one piece or, with `stream`, as server-sent events."""
        owner = access.owner_by_header(request, Scope.GENERATE)
        asked = to_request(await read_object(request), desk.catalogue)
        job = await desk.submit(asked.request, owner, asked.attached, Terms(deadline_s=timeout_s))
        if asked.streams:
            return ClosedStream(_streamed(desk, job, asked, timeout_s))
        job = await attend(desk, request, job, timeout_s)
        marks = Marks()
        reply = completion(job, made_of(job), asked, await _audio_urls(desk, made_of(job), marks))
        return StreamingResponse(marks.replaced(json.dumps(reply)), media_type="application/json")

    @router.get("/api/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """What this server runs, its default first."""
        access.owner_by_header(request, Scope.READ)
        return listed_models(desk.catalogue)

    return router


async def _streamed(desk: Desk, job: Job, asked: Asked, timeout_s: float) -> AsyncGenerator[bytes]:
    """The role at once, a dot every two seconds, then words, audio and the end; or what went wrong."""
    head = chunk(job, asked, {"role": "assistant", "content": ""})
    yield _event(head | ({"warnings": list(asked.warnings)} if asked.warnings else {}))
    seen = job
    async with aclosing(follow(desk, job, timeout_s, DOT_EVERY_S)) as views:
        async for seen in views:
            if not seen.status.is_final:
                yield _event(progress_chunk(seen, asked))
    try:
        async with aclosing(_outcome(desk, seen, asked)) as events:
            async for event in events:
                yield event
    except HTTPException as error:
        yield _event(chunk(job, asked, {"content": f"\n\nError: {error.detail}"}))
        yield _event(chunk(job, asked, {}, "error"))
    yield format_sse_event(data_str="[DONE]")


async def _outcome(desk: Desk, job: Job, asked: Asked) -> AsyncGenerator[bytes]:
    status, message = verdict(job)
    if status != 200:
        raise HTTPException(status, message)
    made, marks = made_of(job), Marks()
    urls = await _audio_urls(desk, made, marks)
    words = chunk(job, asked, {"content": f"\n\n{content_of(made)}"})
    yield _event(words | ({"warnings": list(made.remarks)} if made.remarks else {}))
    for codes in codes_of(made):
        yield _event(chunk(job, asked, {"content": f"\n\n[audio_codes]{codes}[/audio_codes]"}))
    async for piece in marks.replaced(_event(chunk(job, asked, {"audio": audio(urls)})).decode()):
        yield piece
    yield _event(chunk(job, asked, {}, "stop"))
    if asked.wants_usage:
        yield _event(usage_chunk(job, made, asked))


async def _audio_urls(desk: Desk, made: Made, marks: Marks) -> list[str]:
    """Raises HTTPException where a file was deleted meanwhile."""
    return [marks.data_url(await open_made(desk, track)) for track in made.tracks]


def _event(data: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(data))
