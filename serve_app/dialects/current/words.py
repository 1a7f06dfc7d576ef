"""`/format_input` and `/v1/create_sample`: the LM asked for words and metadata, without a job."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from models.errors import AceError, DeadlineExceeded, EngineError
from models.music import INSTRUMENTAL_LYRICS, MusicRequest, SongPlan
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import Fields, read_query_fields
from serve_app.dialects.current.requests import drawn_to, validated, values_of
from serve_app.dialects.desk import Catalogue, Desk
from serve_app.dialects.parameters import BY_NAME, Given, openapi_body, yes_or_no
from serve_app.dialects.replies import envelope, failure

log = logging.getLogger(__name__)

NO_LM = "LLM not initialized. Set ACESTEP_INIT_LLM=true in .env to enable."  # the reference's words
NOT_SAID = ("unknown", "")
METADATA = ("bpm", "key_scale", "time_signature", "audio_duration", "vocal_language")
DRAWING = (
    *("lm_model_path", "lm_backend", "lm_temperature", "lm_top_k", "lm_top_p", "lm_repetition_penalty"),
    "constrained_decoding",
)
FORMAT = tuple(BY_NAME[name] for name in ("prompt", "lyrics", *METADATA, *DRAWING))
SAMPLE = tuple(BY_NAME[name] for name in ("sample_query", "lyrics", *METADATA, *DRAWING))


def to_format(fields: Fields, catalogue: Catalogue) -> tuple[MusicRequest, list[str]]:
    """What is to be reworded, and what was sent that is not used. Raises InvalidRequest."""
    given = Given(_renamed(fields))
    values = _values(given, catalogue) | {"use_format": True}
    return validated(values), _not_used(given.unknown(used=FORMAT))


def to_sample(fields: Fields, catalogue: Catalogue) -> tuple[MusicRequest, list[str]]:
    """What is to be invented, and what was sent that is not used. Raises InvalidRequest."""
    given = Given(_renamed(fields))
    values = _values(given, catalogue) | {"sample_query": given["sample_query"].strip()}
    if yes_or_no(fields.values.get("instrumental") or ""):
        values["lyrics"] = INSTRUMENTAL_LYRICS
    return validated(values), _not_used(given.unknown(("instrumental",), SAMPLE))


def _renamed(fields: Fields) -> dict[str, Any]:
    """Two names are shorter here than in `/release_task`."""
    names = {"temperature": "lm_temperature", "query": "sample_query"}
    return {names.get(name, name): value for name, value in fields.values.items()}


def _values(given: Given, catalogue: Catalogue) -> dict[str, Any]:
    """Without `lm_top_p` all tokens are drawn from, as the reference does here."""
    values = {"lm_top_p": 1.0} | values_of(given, catalogue) | {"seeds": drawn_to(1), "sample_query": None}
    return values | ({"vocal_language": None} if values.get("vocal_language") in NOT_SAID else {})


def _not_used(names: list[str]) -> list[str]:
    return [f"{name}: not known here, not used" for name in names]


def to_song(song: SongPlan) -> dict[str, Any]:
    """A song's words and metadata under the names of `/format_input`."""
    metas = song.metas
    duration = metas.duration
    return {
        "caption": song.caption,
        "lyrics": song.lyrics,
        "bpm": metas.bpm,
        "key_scale": metas.key_scale or "",
        "time_signature": metas.time_signature or "",
        "duration": int(duration) if duration is not None and duration.is_integer() else duration,
        "vocal_language": song.language,
    }


def routes(desk: Desk, access: Access) -> APIRouter:
    router = APIRouter()

    @router.post("/format_input", openapi_extra=openapi_body(FORMAT))
    async def format_input(request: Request) -> dict[str, Any]:
        """Caption and lyrics reworded in more detail by the LM; metadata that is given stays as it is."""
        fields = await read_query_fields(request)
        access.owner_by_fields(request, fields.values, Scope.GENERATE)
        _refuse_without_lm(desk)
        asked, warnings = to_format(fields, desk.catalogue)
        return await _answer(desk, asked, "format_sample", warnings)

    @router.post("/v1/create_sample", openapi_extra=openapi_body(SAMPLE))
    async def create_sample(request: Request) -> dict[str, Any]:
        """A whole song's words and metadata, invented by the LM from a few words or none."""
        fields = await read_query_fields(request)
        access.owner_by_fields(request, fields.values, Scope.GENERATE)
        _refuse_without_lm(desk)
        asked, warnings = to_sample(fields, desk.catalogue)
        return await _answer(desk, asked, "create_sample", warnings)

    return router


def _refuse_without_lm(desk: Desk) -> None:
    if not desk.catalogue.lm_models:
        raise HTTPException(503, NO_LM)


async def _answer(desk: Desk, request: MusicRequest, what: str, warnings: list[str]) -> dict[str, Any]:
    """What the LM made of it; what the server failed at is code 500 under HTTP 200, as clients know it."""
    try:
        song = await desk.describe(request)
    except (EngineError, DeadlineExceeded) as error:
        log.warning("%s failed: %s: %s", what, error.code, error)
        return failure(500, f"{what} failed: {_reason(error)}")
    told = to_song(song)
    told |= {"keyscale": told["key_scale"], "timesignature": told["time_signature"]}  # as other endpoints spell them
    warnings += song.remarks
    return envelope(told | {"warnings": warnings} if warnings else told)


def _reason(error: AceError) -> str:
    return error.message if error.is_public else error.code
