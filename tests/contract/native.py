"""Jobs as the native API's tests need them."""

from __future__ import annotations

from dataclasses import replace

from models.music import AudioFormat, Made, Metas, SongPlan, Track
from serve_app.jobs.job import Job, Status


def made(songs: int = 1, audio_format: AudioFormat = AudioFormat.MP3) -> Made:
    track = Track(ref=f"abc.{audio_format}", audio_format=audio_format, seconds=10.0, size=1024, sha256="ab" * 32)
    plan = SongPlan(caption="final", lyrics="words", language="en", metas=Metas(bpm=120, duration=10.0), codes=(1, 2))
    return Made(
        tracks=(track,) * songs,
        plans=(plan,) * songs,
        dit_model="acestep-v15-turbo",
        lm_model="acestep-5Hz-lm-0.6B",
        seconds_by_stage={"plan": 0.5, "denoise": 1.0},
        remarks=("shift: 3 applied instead of 2.9",),
    )


def succeeded(job: Job) -> Job:
    """What becomes of a job."""
    return replace(
        job,
        status=Status.SUCCEEDED,
        stage="succeeded",
        progress=1.0,
        queue_position=0,
        events=job.events + 1,
        started_at=job.created_at + 1,
        finished_at=job.created_at + 3,
        made=made(job.request.songs, job.request.audio_format),
    )


def failed(job: Job) -> Job:
    return replace(
        job,
        status=Status.FAILED,
        stage="failed",
        queue_position=0,
        events=job.events + 1,
        error_code="bad_audio",
        error_message="silence came out",
    )


def running(job: Job) -> Job:
    return replace(
        job,
        status=Status.RUNNING,
        stage="denoise",
        progress=0.5,
        done=4,
        planned=8,
        queue_position=0,
        events=job.events + 1,
        started_at=job.created_at + 1,
        read_at=job.created_at + 5,
    )
