"""From jobs to the entries of `/query_result`."""

from __future__ import annotations

import json
from typing import Any

from models.music import Made, MusicRequest, SongPlan
from serve_app.dialects.replies import NOT_KNOWN, generation_info, track_address
from serve_app.jobs.job import Job, Status

ENVIRONMENT = "development"  # what the reference puts into every result
NUMBER_OF = {Status.QUEUED: 0, Status.RUNNING: 0, Status.SUCCEEDED: 1, Status.FAILED: 2, Status.CANCELLED: 2}


def to_reply(job: Job) -> dict[str, Any]:
    """One entry of `/query_result`. `result` is JSON in a string, and a list, whatever the state."""
    items = _tracks(job, job.made) if job.made else [_item(job)]
    entry = {
        "task_id": job.id,
        "status": NUMBER_OF[job.status],
        "result": json.dumps(items, ensure_ascii=False),
        "progress_text": _progress_text(job),
    }
    return entry if job.error_message is None else entry | {"error": job.error_message}


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


def _tracks(job: Job, made: Made) -> list[dict[str, Any]]:
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
            "file": track_address(track.ref),
            "prompt": plan.caption,
            "lyrics": plan.lyrics,
            "metas": _metas(job.request, plan),
            "audio_codes": "".join(f"<|audio_code_{code}|>" for code in plan.codes),
            **shared,
            **({"debug": {"lm_trace": list(plan.trace)}} if plan.trace else {}),
        }
        for track, plan in zip(made.tracks, made.plans, strict=True)
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
