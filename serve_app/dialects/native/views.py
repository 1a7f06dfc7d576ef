"""A job as the native API tells it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from models.music import AudioFormat, Made, Metas, MusicRequest, SongPlan, Track
from serve_app.jobs.job import Job, JobEvent, Priority, Stats, Status


class Steps(BaseModel):
    done: int
    total: int


class JobError(BaseModel):
    code: str = Field(description="A stable word for programs.", examples=["out_of_memory"])
    message: str


class PlanView(BaseModel):
    caption: str = Field(description="As the LM left it.")
    lyrics: str
    vocal_language: str
    metas: Metas
    codes: list[int] | None = Field(None, description="5 a second, fit for `audio_codes`; not in lists of jobs.")
    lm_trace: list[str] | None = Field(None, description="Where constrained_decoding_debug was asked for.")


class TrackView(PlanView):
    n: int = Field(description="1 for the first.")
    url: str = Field(examples=["/v2/jobs/5f0c6a52-8d0f-4d5a-9d1c-6a1f0f3f9a11/tracks/1"])
    seconds: float
    size: int = Field(description="Bytes.")
    sha256: str
    format: AudioFormat
    seed: int


class Links(BaseModel):
    self: str
    events: str


class JobView(BaseModel):
    id: str
    status: Status
    stage: str = Field(description="encode, plan, denoise or decode; the status where none of them runs.")
    progress: float = Field(ge=0, le=1, description="Never falls.")
    steps: Steps | None = Field(description="Of the stage: tokens, diffusion steps, or tracks.")
    queue_position: int | None = Field(description="1 for the next to run; null once it is claimed.")
    eta_seconds: float | None = Field(description="Until it is likely to be done; null once it has ended.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    priority: Priority
    request: MusicRequest = Field(description="What is made, with every default and every seed.")
    dit_model: str | None = Field(description="That made it.")
    lm_model: str | None = Field(description="That planned it; null where none did.")
    seconds_by_stage: dict[str, float]
    error: JobError | None
    tracks: list[TrackView]
    analysis: PlanView | None = Field(None, description="What a job with `analysis` tells instead of making a song.")
    warnings: list[str] = Field(description="What was asked for and could not be applied.")
    links: Links


class JobList(BaseModel):
    jobs: list[JobView] = Field(description="The newest first.")
    next: str | None = Field(description="Where the next older ones are; null where there are none.")


def job_path(id_: str) -> str:
    return f"/v2/jobs/{id_}"


def to_view(job: Job, stats: Stats | None, *, with_codes: bool) -> JobView:
    """`stats` may be left out where the job has ended."""
    eta_s = None if stats is None else stats.eta_of(job)
    made = job.made
    return JobView(
        id=job.id,
        status=job.status,
        stage=job.stage,
        progress=round(job.progress, 4),
        steps=steps_of(job),
        queue_position=job.queue_position or None,
        eta_seconds=None if eta_s is None else round(eta_s, 1),
        created_at=_moment(job.created_at),
        started_at=_moment_or_none(job.started_at),
        finished_at=_moment_or_none(job.finished_at),
        deadline_at=_moment_or_none(job.deadline),
        priority=job.priority,
        request=job.request,
        dit_model=made and made.dit_model,
        lm_model=made and made.lm_model,
        seconds_by_stage=made.seconds_by_stage if made else {},
        error=None if job.error_code is None else JobError(code=job.error_code, message=job.error_message or ""),
        tracks=[*_tracks(job, made, with_codes)] if made and made.tracks else [],
        analysis=PlanView(**_planned(made.plans[0], with_codes)) if made and not made.tracks else None,
        warnings=list(made.remarks) if made else [],
        links=Links(self=job_path(job.id), events=f"{job_path(job.id)}/events"),
    )


def steps_of(told: Job | JobEvent) -> Steps | None:
    return Steps(done=told.done, total=told.planned) if told.planned else None


def _tracks(job: Job, made: Made, with_codes: bool) -> Iterator[TrackView]:
    songs: Iterator[tuple[Track, SongPlan, int]] = zip(made.tracks, made.plans, job.request.seeds, strict=True)
    for n, (track, plan, seed) in enumerate(songs, 1):
        yield TrackView(
            n=n,
            url=f"{job_path(job.id)}/tracks/{n}",
            seconds=track.seconds,
            size=track.size,
            sha256=track.sha256,
            format=track.audio_format,
            seed=seed,
            **_planned(plan, with_codes),
        )


def _planned(plan: SongPlan, with_codes: bool) -> dict[str, Any]:
    return {
        "caption": plan.caption,
        "lyrics": plan.lyrics,
        "vocal_language": plan.language,
        "metas": plan.metas,
        "codes": list(plan.codes) if with_codes and plan.codes else None,
        "lm_trace": list(plan.trace) or None,
    }


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _moment_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)
