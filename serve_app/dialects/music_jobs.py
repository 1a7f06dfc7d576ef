"""The older ACE-Step API: `/v1/music/generate`, `/v1/music/random`, `/v1/jobs/{id}`. Its parameters are those of the
current one, its replies are not wrapped, and both sides know the other's jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from models.music import Made
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import Fields, read_fields
from serve_app.dialects.current.requests import terms_of, to_request
from serve_app.dialects.desk import Desk
from serve_app.dialects.parameters import openapi_body
from serve_app.dialects.replies import CONFLICTS, NOT_KNOWN, generation_info, track_address
from serve_app.jobs.job import Job, Stats, Status


def accepted(job: Job, warnings: Sequence[str]) -> dict[str, Any]:
    told = {"job_id": job.id, "status": "queued", "queue_position": max(1, job.queue_position)}
    return told | {"warnings": list(warnings)} if warnings else told


def to_reply(job: Job, stats: Stats) -> dict[str, Any]:
    """This API has no word for a job that was withdrawn: it failed, and `error` says why."""
    is_queued, is_cancelled = job.status is Status.QUEUED, job.status is Status.CANCELLED
    return {
        "job_id": job.id,
        "status": "failed" if is_cancelled else job.status.value,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "queue_position": job.queue_position,
        "eta_seconds": round(stats.eta_s(job.queue_position), 1) if is_queued else None,
        "avg_job_seconds": round(stats.avg_job_seconds, 3),
        "result": None if job.made is None else _result(job, job.made),
        "error": job.error_message or ("the job was cancelled" if is_cancelled else None),
    }


def _result(job: Job, made: Made) -> dict[str, Any]:
    """The metadata are the first song's: with `null` for what nobody knows, in `metas` with the reference's N/A."""
    addresses = [track_address(track.ref) for track in made.tracks]
    plan = made.plans[0]
    metas = {
        "bpm": plan.metas.bpm,
        "duration": plan.metas.duration,
        "keyscale": plan.metas.key_scale,
        "timesignature": plan.metas.time_signature,
        "genres": None,
    }
    return {
        "first_audio_path": addresses[0] if addresses else None,
        "second_audio_path": addresses[1] if len(addresses) > 1 else None,
        "audio_paths": addresses,
        "generation_info": generation_info(made),
        "status_message": f"Generated {len(addresses)} song{'' if len(addresses) == 1 else 's'}",
        "seed_value": ",".join(map(str, job.request.seeds)),
        "prompt": plan.caption,
        "lyrics": plan.lyrics,
        **metas,
        "metas": {
            **{name: NOT_KNOWN if value is None else value for name, value in metas.items()},
            "caption": plan.caption,
            "lyrics": plan.lyrics,
        },
        "lm_model": made.lm_model,
        "dit_model": made.dit_model,
        "warnings": list(made.remarks),
    }


def random_fields(sent: Mapping[str, Any]) -> Fields:
    """A song that the LM invents, and plans unless told not to."""
    given = {name.lower() if name == "Thinking" else name: value for name, value in sent.items() if value is not None}
    return Fields({"thinking": True, **given, "sample_mode": True})


def routes(desk: Desk, access: Access) -> APIRouter:
    router = APIRouter()

    async def take(request: Request, fields: Fields) -> dict[str, Any]:
        owner = access.owner_by_fields(request, fields.values, Scope.GENERATE)
        asked, attachments, warnings = to_request(fields, desk.catalogue)
        terms = await terms_of(fields, request.headers.get("idempotency-key"))
        return accepted(await desk.submit(asked, owner, attachments, terms), warnings)

    @router.post("/v1/music/generate", openapi_extra=openapi_body(has_files=True), responses=CONFLICTS)
    async def generate(request: Request) -> dict[str, Any]:
        """Takes a job of one to eight songs and answers at once; `/v1/jobs/{job_id}` tells what became of it."""
        async with read_fields(request) as fields:
            return await take(request, fields)

    without_body = {"requestBody": openapi_body()["requestBody"] | {"required": False}}

    @router.post("/v1/music/random", openapi_extra=without_body, responses=CONFLICTS)
    async def random(request: Request) -> dict[str, Any]:
        """A job whose words the LM invents. Without a body, the query has the parameters; `thinking` is true."""
        if not await request.body():
            return await take(request, random_fields(request.query_params))
        async with read_fields(request) as fields:
            return await take(request, random_fields(fields.values))

    @router.get("/v1/jobs/{job_id}")
    async def job(request: Request, job_id: str) -> dict[str, Any]:
        """State of a job, when it is likely to be done, and what came of it."""
        owner = access.owner_by_header(request, Scope.READ)
        (seen,) = await desk.look_up([job_id], owner)
        if seen is None:
            raise HTTPException(404, "Job not found")
        return to_reply(seen, await desk.stats())

    return router
