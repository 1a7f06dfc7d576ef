"""Callers who wait for their songs in the request itself.

Whoever leaves takes the job along: its songs would travel on this connection only, and a caller who tries again would
have them made twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
from fastapi import HTTPException, Request
from fastapi.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from models.errors import DeadlineExceeded, RequestError
from models.music import Made, Track
from serve_app.dialects.desk import Desk, TrackFile
from serve_app.dialects.replies import REFUSED
from serve_app.jobs.job import Job, Status

TIMED_OUT = "Generation timeout"
LEFT = 499  # nobody reads it but the log
DO_NOT_RETRY = {"x-should-retry": "false"}  # OpenAI's clients would, and have the songs made again
NOT_MADE: dict[int | str, dict[str, Any]] = {  # of routes that wait for a song, beside what any may answer
    409: {"description": "The job was withdrawn.", "content": REFUSED},
    504: {"description": "It took longer than a caller may wait.", "content": REFUSED},
}


async def stay(desk: Desk, request: Request, job: Job, within_s: float) -> Job:
    """The job as it ended, or as it is when the time is over. Raises HTTPException 499 where the caller left."""
    ending = asyncio.ensure_future(desk.wait(job.id, job.owner, within_s))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((ending, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            raise HTTPException(LEFT, "the caller left before the songs were done")
        return ending.result() or job
    except BaseException:
        await _cancel_unless_ended(desk, job)
        raise
    finally:
        ending.cancel()
        leaving.cancel()


async def attend(desk: Desk, request: Request, job: Job, within_s: float) -> Job:
    """The job as it succeeded. Raises HTTPException 504 when the time is over, and others that tell why it did not."""
    seen = await stay(desk, request, job, within_s)
    await _cancel_unless_ended(desk, seen)
    status, message = verdict(seen)
    if status != 200:
        raise HTTPException(status, message, DO_NOT_RETRY)
    return seen


async def follow(desk: Desk, job: Job, within_s: float, every_s: float) -> AsyncGenerator[Job]:
    """The job as it is every so often, last as it ended or as it was when the time was over. To be closed."""
    seen, until = job, time.monotonic() + within_s
    try:
        while not seen.status.is_final and (left_s := until - time.monotonic()) > 0:
            seen = await desk.wait(job.id, job.owner, min(every_s, left_s)) or seen
            yield seen
    finally:
        await _cancel_unless_ended(desk, seen)


def verdict(job: Job) -> tuple[int, str]:
    """The HTTP status that this job is the answer with, and what is told with any but 200."""
    if job.status is Status.SUCCEEDED:
        return 200, ""
    if not job.status.is_final or job.error_code == DeadlineExceeded.code:
        return 504, TIMED_OUT
    message = job.error_message or "the server failed to make this song"
    if job.status is Status.CANCELLED:
        return 409, message
    return 400 if job.error_code in _faults_of_callers() else 500, message


def made_of(job: Job) -> Made:
    """What came of a job that succeeded."""
    assert job.made is not None
    return job.made


async def open_made(desk: Desk, track: Track) -> TrackFile:
    """Raises HTTPException where the file was deleted meanwhile."""
    file = await desk.open_track(track.ref)
    if file is None:
        raise HTTPException(500, "the audio was deleted before it could be sent", DO_NOT_RETRY)
    return file


class ClosedStream(EventSourceResponse):
    """Closes what it streams from, also when the caller leaves in its middle."""

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel_unless_ended(desk: Desk, job: Job) -> None:
    """Also while the request itself is being cancelled."""
    if not job.status.is_final:
        with anyio.CancelScope(shield=True):
            await desk.cancel(job.id, job.owner)


def _faults_of_callers() -> set[str]:
    """Error codes."""
    errors: tuple[type[RequestError], ...] = (RequestError, *RequestError.__subclasses__())
    return {error.code for error in errors}
