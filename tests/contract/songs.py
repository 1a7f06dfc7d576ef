"""Jobs as they end, for the tests of dialects."""

from __future__ import annotations

from dataclasses import replace

from models.music import Made, MusicRequest, SongPlan, Track
from serve_app.jobs.job import Job, Status

REFS = [f"{number:032x}" for number in range(8)]


def succeeded(job: Job) -> Job:
    return replace(
        job,
        status=Status.SUCCEEDED,
        made=made_of(job.request),
        queue_position=0,
        progress=1.0,
        stage="succeeded",
        started_at=1_700_000_001.0,
        finished_at=1_700_000_010.0,
    )


def failed(job: Job) -> Job:
    return replace(
        job,
        status=Status.FAILED,
        queue_position=0,
        stage="failed",
        error_code="bad_audio",
        error_message="silence came out",
        finished_at=1_700_000_010.0,
    )


def made_of(request: MusicRequest) -> Made:
    """Every song as it was asked for, in C major where no key was."""
    known = request.metas
    metas = known.model_copy(update={"key_scale": known.key_scale or "C major", "duration": known.duration or 30.0})
    plan = SongPlan(caption=request.prompt or "invented", lyrics=request.lyrics, language="en", metas=metas)
    tracks = [
        Track(ref=f"{ref}.{request.audio_format}", audio_format=request.audio_format, seconds=30.0, size=1, sha256="")
        for ref in REFS[: request.songs]
    ]
    return Made(
        tracks=tuple(tracks),
        plans=(plan,) * request.songs,
        dit_model=request.model,
        lm_model="acestep-5Hz-lm-0.6B" if request.thinking else None,
        seconds_by_stage={"plan": 1.5, "denoise": 6.0, "decode": 1.0},
        remarks=("shift: 3 applied instead of 2.9, the nearest this turbo model knows",) if request.shift else (),
    )
