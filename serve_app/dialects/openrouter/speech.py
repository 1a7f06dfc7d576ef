"""`/v1/audio/speech` with a song for speech: the input is sung, the instructions are its style."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, ValidationError

from models.errors import InvalidRequest
from models.music import MAX_SEED, AudioFormat, MusicRequest
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import read_object
from serve_app.dialects.desk import Catalogue, Desk
from serve_app.dialects.openrouter.requests import Body, openapi_body, told
from serve_app.dialects.waiting import NOT_MADE, attend, made_of, open_made
from serve_app.jobs.job import Terms

# of OpenAI's speakers, which its clients must name; none of them sings here
SPEAKERS = "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse default".split()
WARNINGS = "x-warnings"  # JSON of a list, since the body is the song
NAMES = {"audio_duration": "duration", "audio_format": "response_format", "prompt": "instructions", "lyrics": "input"}
# MusicRequest field: of the body, for those taken over as they are where they are given
TAKEN_OVER = (
    "bpm key_scale time_signature vocal_language inference_steps guidance_scale shift thinking use_format "
    "use_cot_caption use_cot_language lm_temperature lm_cfg_scale"
).split()


class SpeechBody(Body):
    model: str = Field(
        "", description="A DiT, with or without a provider before a slash; this server's first unless given."
    )
    input: str = Field("", description="The lyrics; empty or [inst]: no voice.")
    instructions: str = Field("", description="What the music is like.")
    voice: str | dict[str, Any] = Field("", description="As instructions, where these are not given.")
    response_format: str = Field(AudioFormat.MP3.value, description="mp3, wav, flac, opus or aac.")
    speed: Annotated[float, Field(ge=1, le=1, description="1: a song is as fast as its bpm.")] = 1.0
    stream_format: str = Field("audio", description="audio: the file itself.")
    duration: float | None = Field(None, description="Seconds, 10 to 600.")
    seed: int | None = Field(None, description="Drawn unless given.")
    bpm: int | None = None
    key_scale: str | None = None
    time_signature: str | int | None = None
    vocal_language: str | None = None
    inference_steps: int | None = None
    guidance_scale: float | None = None
    shift: float | None = None
    thinking: bool = False
    use_format: bool = False
    use_cot_caption: bool = True
    use_cot_language: bool = True
    lm_temperature: float | None = None
    lm_cfg_scale: float | None = None


def to_request(fields: Mapping[str, Any], catalogue: Catalogue) -> tuple[MusicRequest, list[str]]:
    """One song, and what was sent that could not be used. Raises InvalidRequest."""
    try:
        body = SpeechBody.model_validate(fields)
        style, warnings = _style(body)
        if not (style or body.input.strip()):
            raise InvalidRequest("neither input (the lyrics) nor instructions (the style) say what to make")
        if body.stream_format != "audio":
            raise InvalidRequest(f"stream_format {body.stream_format!r}: allowed is audio")
        values = {name: value for name in TAKEN_OVER if (value := getattr(body, name)) is not None}
        values |= {
            "model": body.model.rpartition("/")[2] or catalogue.default_model.name,
            "prompt": style,
            "lyrics": body.input,
            "audio_format": body.response_format,
            "audio_duration": body.duration,
            "seeds": [secrets.randbelow(MAX_SEED + 1) if body.seed in (None, -1) else body.seed],
        }
        return MusicRequest.model_validate(values), warnings
    except ValidationError as error:
        raise InvalidRequest(told(error, NAMES)) from None


def _style(body: SpeechBody) -> tuple[str, list[str]]:
    warnings = [f"{name}: not known here, not used" for name in body.model_extra or {}]
    voice = body.voice if isinstance(body.voice, str) else ""
    is_speaker = bool(body.voice) and voice.lower() in (*SPEAKERS, "")
    if is_speaker or (voice and body.instructions.strip()):
        warnings.append("voice: not used; instructions tell who sings, and how")
    return body.instructions.strip() or ("" if is_speaker else voice.strip()), warnings


SPOKEN: dict[int | str, dict[str, Any]] = {
    200: {"description": "The song's file.", "content": {"audio/*": {"schema": {"type": "string"}}}},
    **NOT_MADE,
}


def routes(desk: Desk, access: Access, timeout_s: float) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/audio/speech",
        response_class=Response,
        response_model=None,
        openapi_extra=openapi_body(SpeechBody),
        responses=SPOKEN,
    )
    async def speech(request: Request) -> Response:
        """Makes one song and answers with its file."""
        owner = access.owner_by_header(request, Scope.GENERATE)
        asked, warnings = to_request(await read_object(request), desk.catalogue)
        job = await desk.submit(asked, owner, terms=Terms(deadline_s=timeout_s))
        made = made_of(await attend(desk, request, job, timeout_s))
        file = await open_made(desk, made.tracks[0])
        headers = {"content-length": str(file.size), "x-job-id": job.id, "x-seed": str(asked.seeds[0])}
        if warnings := [*warnings, *made.remarks]:
            headers[WARNINGS] = json.dumps(warnings)
        return StreamingResponse(file.read(0, file.size - 1), headers=headers, media_type=file.media_type)

    return router
