"""`/v2/capabilities`: what may be asked of this server, so that a form can be built from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from models.audio import ALLOWED_KBIT_PER_S, KBIT_PER_S, MEDIA_TYPES, sample_rates_of
from models.checkpoints import CODE_TASKS, GUIDANCE_FIELDS, variant_named
from models.editing import TASKS_OF
from models.music import (
    KEYSCALES,
    LANGUAGES,
    MAX_LORAS,
    MAX_LYRICS_LETTERS,
    MAX_PROMPT_LETTERS,
    MAX_SECONDS,
    MAX_SONGS,
    MIN_SECONDS,
    SOURCE_TASKS,
    TIME_SIGNATURES,
    AudioFormat,
    Task,
)
from models.source_audio import ALLOWED, SAMPLE_RATES, AudioLimits
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.desk import Desk, ModelCard
from serve_app.dialects.native import schema
from serve_app.dialects.native.fields import MAX_DEADLINE_S
from serve_app.dialects.native.preferences import MAX_WAIT_S
from serve_app.dialects.native.problems import documented


class ModelView(BaseModel):
    name: str
    is_default: bool
    is_turbo: bool
    tasks: list[Task]
    parameters: list[str] = Field(description="Those that mean something to it.")
    defaults: dict[str, int | float] = Field(description="Where they are its own.")
    ranges: dict[str, dict[str, int]] = Field(description="Where they are narrower than those of `parameters`.")


class LmView(BaseModel):
    name: str
    is_default: bool


class TaskView(BaseModel):
    needs_source: bool = Field(description="Of audio, unless audio codes stand in for it.")
    takes_audio_codes: bool
    parameters: list[str] = Field(description="Those that mean something to it.")


class FormatView(BaseModel):
    media_type: str
    sample_rates: list[int]
    kbit_per_s: list[int] = Field(description="Of audio_bitrate; empty where there is none to choose.")
    default_kbit_per_s: int | None


class Limits(BaseModel):
    seconds: tuple[float, float] = Field(description="Least and most of a song.")
    songs: int
    prompt_letters: int
    lyrics_letters: int
    loras: int
    wait_s: int = Field(description="Of `Prefer: wait`.")
    deadline_s: int


class UploadLimits(BaseModel):
    file_bytes: int
    seconds: float
    channels: int
    sample_rates: tuple[int, int] = Field(description="Least and most, in Hz.")
    kinds: str


class Capabilities(BaseModel):
    models: list[ModelView] = Field(description="The default first.")
    lm_models: list[LmView] = Field(description="The default first; empty on a server without an LM.")
    tasks: dict[Task, TaskView]
    parameters: dict[str, dict[str, Any]] = Field(description="JSON schemas of the fields of `POST /v2/jobs`.")
    formats: dict[AudioFormat, FormatView]
    languages: list[str]
    keys: list[str]
    time_signatures: list[str]
    adapters: list[str] = Field(description="Names for `loras`.")
    limits: Limits
    uploads: UploadLimits


def add_routes(router: APIRouter, desk: Desk, access: Access, max_upload_bytes: int) -> None:
    @router.get("/capabilities", response_model=Capabilities, responses=documented())
    async def capabilities(request: Request) -> Capabilities:
        """Models, tasks, parameters with their ranges and defaults, formats, adapters and limits."""
        access.owner_by_header(request, Scope.READ)
        lms = desk.catalogue.lm_models
        return Capabilities(
            models=[_model(card) for card in desk.catalogue.models],
            lm_models=[LmView(name=name, is_default=name == lms[0]) for name in lms],
            tasks={task: _task(task) for task in Task if any(task in card.tasks for card in desk.catalogue.models)},
            parameters={name: dict(field) for name, field in schema.fields().items()},
            formats={audio_format: _format(audio_format) for audio_format in AudioFormat},
            languages=[*LANGUAGES],
            keys=[*KEYSCALES],
            time_signatures=[*TIME_SIGNATURES],
            adapters=[*await desk.adapters()],
            limits=Limits(
                seconds=(MIN_SECONDS, MAX_SECONDS),
                songs=MAX_SONGS,
                prompt_letters=MAX_PROMPT_LETTERS,
                lyrics_letters=MAX_LYRICS_LETTERS,
                loras=MAX_LORAS,
                wait_s=MAX_WAIT_S,
                deadline_s=MAX_DEADLINE_S,
            ),
            uploads=_uploads(max_upload_bytes),
        )


def _model(card: ModelCard) -> ModelView:
    variant = variant_named(card.name)
    defaults: dict[str, int | float] = {"inference_steps": variant.default_steps, "shift": variant.default_shift}
    return ModelView(
        name=card.name,
        is_default=card.is_default,
        is_turbo=card.is_turbo,
        tasks=[*variant.tasks],
        parameters=[*_parameters(variant.tasks, is_guided=not card.is_turbo)],
        defaults=defaults if card.is_turbo else {**defaults, "guidance_scale": variant.default_guidance},
        ranges={"inference_steps": {"minimum": 1, "maximum": variant.max_steps}},
    )


def _task(task: Task) -> TaskView:
    return TaskView(
        needs_source=task in SOURCE_TASKS,
        takes_audio_codes=task in CODE_TASKS,
        parameters=[*_parameters((task,), is_guided=True)],
    )


def _parameters(tasks: tuple[Task, ...], *, is_guided: bool) -> Iterator[str]:
    for name in schema.fields():
        if not is_guided and name in GUIDANCE_FIELDS:
            continue
        if name == "audio_codes" and not set(tasks) & set(CODE_TASKS):
            continue
        if set(tasks) & set(TASKS_OF.get(name, tasks)):
            yield name


def _format(audio_format: AudioFormat) -> FormatView:
    return FormatView(
        media_type=MEDIA_TYPES[audio_format],
        sample_rates=[*sample_rates_of(audio_format)],
        kbit_per_s=[*ALLOWED_KBIT_PER_S] if audio_format in KBIT_PER_S else [],
        default_kbit_per_s=KBIT_PER_S.get(audio_format),
    )


def _uploads(max_upload_bytes: int) -> UploadLimits:
    limits = AudioLimits()
    return UploadLimits(
        file_bytes=min(limits.file_bytes, max_upload_bytes),
        seconds=limits.seconds,
        channels=limits.channels,
        sample_rates=SAMPLE_RATES,
        kinds=ALLOWED,
    )
