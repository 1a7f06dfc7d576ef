"""From jobs to the replies of the v1 API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.music import MusicRequest
from serve_app.dialects.gradio_v1.requests import METHOD_OF, OUTPUTS
from serve_app.jobs.job import Job, Stats, Status

WORD_OF = {
    Status.QUEUED: "pending",
    Status.RUNNING: "processing",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "failed",
}
SCHEDULER_OF = {method: scheduler for scheduler, method in METHOD_OF.items()}


def refusal_reply(error: str) -> dict[str, Any]:
    """With HTTP 200, as this API's clients look at `success`."""
    return {"success": False, "error_message": error}


def to_reply(job: Job, sent: Mapping[str, Any] | None = None, not_applied: Sequence[str] = ()) -> dict[str, Any]:
    """A finished job. `params_json` is what was sent, and over it what became of it."""
    if job.made is None or not job.made.tracks:
        return refusal_reply(error_of(job)) | {"request_id": job.id}
    ref = job.made.tracks[0].ref
    return {
        "success": True,
        "audio_path": f"{OUTPUTS}{ref}",
        "audio_url": f"{OUTPUTS[1:]}{ref}",
        "request_id": job.id,
        "params_json": {
            **(sent or {}),
            **_applied(job.request),
            "audio_path": f"{OUTPUTS}{ref}",
            "timecosts": {stage: round(seconds, 3) for stage, seconds in job.made.seconds_by_stage.items()},
        },
        "not_applied": [*not_applied, *job.made.remarks],
    }


def status_reply(job: Job) -> dict[str, Any]:
    told = {
        "request_id": job.id,
        "status": WORD_OF[job.status],
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.finished_at,
    }
    if job.status is Status.SUCCEEDED:
        return told | {"result": to_reply(job)}
    return told | {"error": error_of(job)} if job.status.is_final else told


def queue_reply(stats: Stats) -> dict[str, Any]:
    counts = {
        "pending": stats.queued,
        "processing": stats.running,
        "completed": stats.succeeded,
        "failed": stats.failed + stats.cancelled,
    }
    return {"queue_size": stats.queued, "status_counts": counts, "total_requests": stats.total}


def error_of(job: Job) -> str:
    fallback = "cancelled by the caller" if job.status is Status.CANCELLED else "the server failed to make this song"
    return job.error_message or fallback


def _applied(request: MusicRequest) -> dict[str, Any]:
    return {
        "format": request.audio_format.value,
        "audio_duration": request.audio_duration,
        "prompt": request.prompt,
        "lyrics": request.lyrics,
        "infer_step": request.inference_steps,
        "guidance_scale": request.guidance_scale,
        "scheduler_type": SCHEDULER_OF[request.infer_method],
        "actual_seeds": list(request.seeds),
    }
