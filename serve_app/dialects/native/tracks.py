"""`/v2/jobs/{id}/tracks/{n}`: finished songs, and their waveforms."""

# no postponed annotations here: FastAPI reads those of the routes, and some name a function inside another

import re
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from models.audio import MEDIA_TYPES
from models.music import MAX_SONGS, Track
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.desk import Desk, TrackFile
from serve_app.dialects.downloads import send_track
from serve_app.dialects.native.jobs import no_job
from serve_app.dialects.native.preferences import is_known
from serve_app.dialects.native.problems import Refused, documented
from serve_app.jobs.job import Job

MAX_POINTS = 4000
NAME_LETTERS = 60
IMMUTABLE = "private, immutable, max-age=31536000"
BINARY = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file", "content": BINARY},
    206: {"description": "The range asked for", "content": BINARY},
    304: {"description": "As the caller knows it, by If-None-Match"},
    **documented(404, 410, 416),
}
N = Annotated[int, Path(ge=1, le=MAX_SONGS, description="1 for the first.")]


class PeaksView(BaseModel):
    """Of every span the lowest and the highest sample of any channel, within -1 and 1."""

    seconds: float
    points: int = Field(description="As many as asked for, or fewer where the track is too short to fill them.")
    lowest: list[float]
    highest: list[float]


def add_routes(router: APIRouter, desk: Desk, access: Access) -> None:
    async def reader(request: Request) -> str:
        """Asked before anything else is looked at."""
        return access.owner_by_query(request, Scope.READ)

    async def find(owner: str, id: str, n: int) -> tuple[Job, Track]:
        (job,) = await desk.look_up([id], owner)
        if job is None:
            raise no_job(id)
        if job.made is None:
            raise Refused(404, f"job {id} is {job.status.value}, and has no tracks", "no_track")
        if n > len(job.made.tracks):
            raise Refused(404, f"job {id} has {len(job.made.tracks)} tracks", "no_track")
        return job, job.made.tracks[n - 1]

    async def open_track(track: Track) -> TrackFile:
        file = await desk.open_track(track.ref)
        if file is None:
            raise Refused(410, "the track is no longer kept", "track_gone")
        return file

    @router.head("/jobs/{id}/tracks/{n}", responses=RESPONSES, response_class=Response)
    @router.get("/jobs/{id}/tracks/{n}", responses=RESPONSES, response_class=Response)
    async def track(owner: Annotated[str, Depends(reader)], request: Request, id: str, n: N) -> Response:
        """A finished song, whole or a range of it. It never changes."""
        job, found = await find(owner, id, n)
        named = {"content-disposition": f"inline; filename*=utf-8''{quote(name_of(job, found, n))}"}
        return send_track(await open_track(found), request, named)

    @router.get(
        "/jobs/{id}/tracks/{n}/peaks",
        response_model=PeaksView,
        responses={304: {"description": "As the caller knows it, by If-None-Match"}, **documented(404, 410)},
    )
    async def peaks(
        owner: Annotated[str, Depends(reader)],
        request: Request,
        id: str,
        n: N,
        points: Annotated[int, Query(ge=1, le=MAX_POINTS)] = 1000,
    ) -> Response:
        """What to draw of a finished song: its waveform in so many spans of equal length."""
        _, found = await find(owner, id, n)
        file = await open_track(found)
        headers = {"ETag": f'"{file.etag}-{points}"', "Cache-Control": IMMUTABLE}
        if is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        drawn = await desk.peaks(found.ref, points)
        view = PeaksView(
            seconds=drawn.seconds, points=len(drawn.lowest), lowest=[*drawn.lowest], highest=[*drawn.highest]
        )
        return Response(view.model_dump_json(), 200, headers, "application/json")


def name_of(job: Job, track: Track, n: int) -> str:
    """Of the file, once it is saved: the first words of what was asked for, and the seed."""
    words = "-".join(re.findall(r"\w+", job.request.prompt))[:NAME_LETTERS].strip("-_") or "song"
    return f"{words}-{job.request.seeds[n - 1]}.{track.audio_format}"
