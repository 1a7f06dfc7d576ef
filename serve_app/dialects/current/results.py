"""From jobs to the entries of `/query_result`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from models.music import Analysis, Made, MusicRequest, SongPlan
from serve_app.dialects.current.analysis import codes_text, heard_codes, heard_song
from serve_app.dialects.replies import NOT_KNOWN, generation_info, track_address
from serve_app.jobs.job import Job, Stats, Status

ENVIRONMENT = "development"  # what the reference puts into every result
NUMBER_OF = {Status.QUEUED: 0, Status.RUNNING: 0, Status.SUCCEEDED: 1, Status.FAILED: 2, Status.CANCELLED: 2}


def to_reply(job: Job, stats: Stats | None = None) -> dict[str, Any]:
    """One entry of `/query_result`. `result` is JSON in a string, and a list, whatever the state; for audio
    that is only heard, it is one object once it has been.

    With `stats` of the queue a job that has not ended is told when it is likely to.
    """
    items = _result(job, job.made) if job.made else [_item(job)]
    entry = {
        "task_id": job.id,
        "status": NUMBER_OF[job.status],
        "result": json.dumps(items, ensure_ascii=False),
        "progress_text": _progress_text(job),
    }
    if stats is not None and not job.status.is_final:
        entry["eta_seconds"] = eta_seconds(job, stats)
    return entry if job.error_message is None else entry | {"error": job.error_message}


def eta_seconds(job: Job, stats: Stats) -> float:
    """0 once it has ended."""
    if job.status.is_final:
        return 0.0
    if job.status is Status.QUEUED:
        return round(stats.eta_s(job.queue_position), 1)
    return round(stats.avg_job_seconds * (1 - job.progress), 1)


def unknown_reply(task_id: str) -> dict[str, Any]:
    return {"task_id": task_id, "status": 0, "result": "[]"}


def _item(job: Job) -> dict[str, Any]:
    return {
        "file": "",
        "wave": "",
        "status": NUMBER_OF[job.status],
        "create_time": int(job.created_at),
        "env": ENVIRONMENT,
        "prompt": job.request.prompt,
        "lyrics": job.request.lyrics,
        "metas": {},
        "progress": round(job.progress, 4),
        "stage": job.stage,
        "error": job.error_message,
    }


def _result(job: Job, made: Made) -> list[dict[str, Any]] | dict[str, Any]:
    match job.request.analysis:
        case Analysis.SONG:
            return heard_song(made.plans[0], _metas(job.request, made.plans[0]))
        case Analysis.CODES:
            return heard_codes(made.plans[0])
        case Analysis.PLAN:
            told = {"generation_info": "Analysis Only Mode Complete", "dit_model": "None (Analysis Only)"}
            return [item | told for item in _songs(job, made, [""])]
        case None:
            return _songs(job, made, [track_address(track.ref) for track in made.tracks])


def _songs(job: Job, made: Made, files: Sequence[str]) -> list[dict[str, Any]]:
    shared = {
        "wave": "",
        "status": 1,
        "create_time": int(job.created_at),
        "env": ENVIRONMENT,
        "generation_info": generation_info(made),
        "seed_value": ",".join(map(str, job.request.seeds)),
        **({"retake_seed_value": ",".join(map(str, retakes))} if (retakes := job.request.retake_seeds) else {}),
        "lm_model": made.lm_model or "",
        "dit_model": made.dit_model,
        "progress": 1.0,
        "stage": job.stage,
        "warnings": list(made.remarks),
    }
    return [
        {
            "file": file,
            "prompt": plan.caption,
            "lyrics": plan.lyrics,
            "metas": _metas(job.request, plan),
            "audio_codes": codes_text(plan),
            **shared,
            **({"debug": {"lm_trace": list(plan.trace)}} if plan.trace else {}),
        }
        for file, plan in zip(files, made.plans, strict=True)
    ]


def _metas(request: MusicRequest, plan: SongPlan) -> dict[str, Any]:
    """The music as planned, with the words as the caller sent them."""
    known = {
        "bpm": plan.metas.bpm,
        "duration": plan.metas.duration,
        "genres": None,
        "keyscale": plan.metas.key_scale,
        "timesignature": plan.metas.time_signature,
    }
    metas = {name: NOT_KNOWN if value is None else value for name, value in known.items()}
    return {**metas, "prompt": request.prompt, "lyrics": request.lyrics}


def _progress_text(job: Job) -> str:
    if job.status is Status.QUEUED:
        return f"queued, number {job.queue_position} in line"
    if job.status.is_final:
        return job.error_message or job.status.value
    return f"{job.stage}, {job.progress:.0%}"
