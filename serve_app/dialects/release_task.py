"""The current ACE-Step API: `/release_task`, `/query_result`, `/v1/audio` and what belongs to them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import ValidationError

from models.errors import InvalidRequest
from models.music import MAX_AUDIO_CODE, MAX_SEED, MAX_SONGS, AudioFormat, Made, MusicRequest, SongPlan
from serve_app.dialects.access import Access, Scope
from serve_app.dialects.attachments import AUDIO_FILES, find_attachments
from serve_app.dialects.bodies import Fields, read_fields, read_query_fields
from serve_app.dialects.desk import Attachments, Catalogue, Desk
from serve_app.dialects.downloads import send_track
from serve_app.dialects.parameters import BY_NAME, Given, openapi_body
from serve_app.dialects.replies import envelope
from serve_app.dialects.strict_json import BadJson, read_json
from serve_app.jobs.job import Job, Status

SONGS_UNLESS_GIVEN = 2
IDS_AT_MOST = 1000
CODE = re.compile(r"<\|audio_code_(\d+)\|>")
ENVIRONMENT = "development"  # what the reference puts into every result
NOT_KNOWN = "N/A"  # so does this, for metadata nobody knows
TEXT2MUSIC_INSTRUCTION = "Fill the audio semantic mask based on the given conditions:"  # sent with any task, by clients
TO_THE_END = (0.0, -1.0)  # repainting_end of a client that means none
LOSSLESS = (AudioFormat.WAV, AudioFormat.FLAC)
NUMBER_OF = {Status.QUEUED: 0, Status.RUNNING: 0, Status.SUCCEEDED: 1, Status.FAILED: 2, Status.CANCELLED: 2}

# MusicRequest field: documented parameter, for those that are taken over as they are where they are given
TAKEN_OVER = {
    "prompt": "prompt",
    "lyrics": "lyrics",
    "thinking": "thinking",
    "use_format": "use_format",
    "audio_format": "audio_format",
    "audio_bitrate": "audio_bitrate",
    "audio_sample_rate": "audio_sample_rate",
    "inference_steps": "inference_steps",
    "guidance_scale": "guidance_scale",
    "shift": "shift",
    "use_adg": "use_adg",
    "cfg_interval_start": "cfg_interval_start",
    "cfg_interval_end": "cfg_interval_end",
    "lm_backend": "lm_backend",
    "lm_temperature": "lm_temperature",
    "lm_cfg_scale": "lm_cfg_scale",
    "lm_repetition_penalty": "lm_repetition_penalty",
    "lm_negative_prompt": "lm_negative_prompt",
    "use_cot_caption": "use_cot_caption",
    "use_cot_language": "use_cot_language",
    "constrained_decoding": "constrained_decoding",
    "constrained_decoding_debug": "constrained_decoding_debug",
    "allow_lm_batch": "allow_lm_batch",
    "task_type": "task_type",
    "track_name": "track_name",
    "track_classes": "track_classes",
    "repainting_start": "repainting_start",
    "repaint_mode": "repaint_mode",
    "repaint_strength": "repaint_strength",
    "chunk_mask_mode": "chunk_mask_mode",
    "audio_cover_strength": "audio_cover_strength",
    "cover_noise_strength": "cover_noise_strength",
    "loras": "loras",
    "velocity_norm_threshold": "velocity_norm_threshold",
    "velocity_ema_factor": "velocity_ema_factor",
    "dcw_enabled": "dcw_enabled",
    "dcw_scaler": "dcw_scaler",
    "dcw_high_scaler": "dcw_high_scaler",
    "retake_variance": "retake_variance",
}
# those where an empty text means that nothing was given
BLANK_IS_NONE = {
    "lm_model": "lm_model_path",
    "key_scale": "key_scale",
    "time_signature": "time_signature",
    "vocal_language": "vocal_language",
    "instruction": "instruction",
}


def to_request(fields: Fields, catalogue: Catalogue) -> tuple[MusicRequest, Attachments, list[str]]:
    """The canonical request, the audio it is about, and what was sent that could not be used. Raises InvalidRequest."""
    given = Given(fields.values)
    songs = given["batch_size"] or SONGS_UNLESS_GIVEN
    if not 1 <= songs <= MAX_SONGS:
        raise InvalidRequest(f"batch_size {songs} is out of range; allowed: 1 to {MAX_SONGS}")
    seeds, warnings = _seeds(given, songs)
    retake_seeds, not_retaken = _retake_seeds(given, songs)
    codes = _codes(given["audio_code_string"], songs)
    attachments, not_attached = find_attachments(given, fields, has_codes=bool(codes))
    strange = [*given.unknown(AUDIO_FILES), *sorted(fields.files.keys() - AUDIO_FILES)]
    warnings += [*not_retaken, *not_attached, *(f"{name}: not known here, not used" for name in strange)]
    values = {field: given[name] for field, name in TAKEN_OVER.items() if given[name] is not None}
    values |= {field: given[name].strip() or None for field, name in BLANK_IS_NONE.items() if given[name] is not None}
    if values.get("key_scale") == NOT_KNOWN:
        values["key_scale"] = None
    if values.get("instruction") == TEXT2MUSIC_INSTRUCTION:
        values["instruction"] = None
    if values["audio_format"] in LOSSLESS and values.pop("audio_bitrate", None) is not None:
        warnings.append(f"audio_bitrate: not used, {values['audio_format']} has none")
    query = given["sample_query"].strip()
    values |= {
        "model": (given["model"] or "").strip().removeprefix("acestep/") or catalogue.default_model.name,
        "seeds": seeds,
        "retake_seeds": retake_seeds,
        "bpm": given["bpm"] or None,
        "audio_duration": _seconds(given["audio_duration"]),
        "sample_query": query if query or given["sample_mode"] else None,
        "audio_codes": codes,
        "infer_method": _method(given),
        "timesteps": _timesteps(given["timesteps"]),
        "repainting_end": None if given["repainting_end"] in TO_THE_END else given["repainting_end"],
        "lm_top_k": max(0, given["lm_top_k"] or 0),
    }
    if given["lm_top_p"] is not None:
        values["lm_top_p"] = min(1.0, given["lm_top_p"])
    _check_correction(given)
    try:
        return MusicRequest.model_validate(values), attachments, warnings
    except ValidationError as error:
        raise InvalidRequest("; ".join(_told(fault) for fault in error.errors())) from error


def _told(fault: Mapping[str, Any]) -> str:
    """A pydantic fault by the name that the caller knows."""
    field = str(fault["loc"][0]) if fault["loc"] else ""
    name = {**BLANK_IS_NONE, "audio_codes": "audio_code_string", "seeds": "seed", "retake_seeds": "retake_seed"}.get(
        field, field
    )
    note = BY_NAME[name].note if name in BY_NAME else ""
    seen = "" if not field else f"{name} {fault['input']!r}: "
    return f"{seen}{fault['msg']}. {note}".strip()


def _seconds(value: float | None) -> float | None:
    """Zero and less mean that the length is left open, as documented."""
    return None if value is None or value <= 0 else value


def _seeds(given: Given, songs: int) -> tuple[tuple[int, ...], list[str]]:
    """One seed a song; those not given, or given as -1, are drawn."""
    asked: list[int] = []
    if not given["use_random_seed"]:
        asked = [seed for seed in _numbers("seed", given["seed"]) if seed != -1]
    warnings = [f"seed: {len(asked)} given, {songs} used"] if len(asked) > songs else []
    if given["use_random_seed"] and "seed" in given and given["seed"] not in (-1, "-1", ""):
        warnings.append("seed: not used, use_random_seed is true")
    return _drawn_to(songs, asked), warnings


def _retake_seeds(given: Given, songs: int) -> tuple[tuple[int, ...], list[str]]:
    asked = [seed for seed in _numbers("retake_seed", given["retake_seed"]) if seed != -1]
    if not given["retake_variance"]:
        return (), ["retake_seed: not used, retake_variance is 0"] if asked else []
    return _drawn_to(songs, asked), [f"retake_seed: {len(asked)} given, {songs} used"] if len(asked) > songs else []


def _drawn_to(songs: int, asked: Sequence[int]) -> tuple[int, ...]:
    drawn = [secrets.randbelow(MAX_SEED + 1) for _ in range(songs - len(asked))]
    return tuple([*asked, *drawn][:songs])


def _method(given: Given) -> str:
    """Two parameters of the reference, of which one says how a step is made and the other whether noise is added."""
    method, mode = str(given["infer_method"]), given["sampler_mode"]
    if mode not in ("euler", "heun"):
        raise InvalidRequest(f"sampler_mode {mode!r}: allowed are euler and heun")
    if mode == "heun" and method == "sde":
        raise InvalidRequest("sampler_mode 'heun' with infer_method 'sde': heun's steps add no noise; allowed: ode")
    return "heun" if mode == "heun" else "ode" if method == "euler" else method


def _check_correction(given: Given) -> None:
    if given["dcw_enabled"] and (given["dcw_mode"], given["dcw_wavelet"]) != ("double", "haar"):
        seen = f"dcw_mode {given['dcw_mode']!r}, dcw_wavelet {given['dcw_wavelet']!r}"
        raise InvalidRequest(f"{seen}: allowed is 'double' with 'haar'")


def _numbers(name: str, value: Any) -> list[int]:
    parts = [value] if isinstance(value, (int, float)) else str(value or "").split(",")
    try:
        return [int(float(part)) if isinstance(part, float) else int(part) for part in parts if str(part).strip()]
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name} is not a number or a list of numbers: {value!r}") from None


def _timesteps(value: Any) -> tuple[float, ...] | None:
    if value is None or value in ("", []):
        return None
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise InvalidRequest(f"timesteps is not a list of numbers: {value!r}. {BY_NAME['timesteps'].note}") from None


def _codes(value: Any, songs: int) -> tuple[tuple[int, ...], ...]:
    """Codes for each song: a list has one text a song, a single text serves all."""
    texts = [text for text in value if text] if isinstance(value, list) else [value] * songs
    if not any(texts):
        return ()
    if len(texts) != songs:
        raise InvalidRequest(
            f"audio_code_string has {len(texts)} texts for {songs} songs; give one for each, or one for all"
        )
    read = tuple(tuple(int(code) for code in CODE.findall(str(text))) for text in texts)
    if not all(read):
        raise InvalidRequest("audio_code_string holds no codes; a code is written <|audio_code_123|>")
    if (highest := max(max(codes) for codes in read)) > MAX_AUDIO_CODE:
        raise InvalidRequest(f"audio_code_string holds code {highest}; allowed: 0 to {MAX_AUDIO_CODE}")
    return read


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
        "generation_info": _generation_info(made),
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
            "file": f"/v1/audio?path={quote(track.ref, safe='')}",
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


def _generation_info(made: Made) -> str:
    total = sum(made.seconds_by_stage.values())
    stages = "\n".join(f"- {stage}: {seconds:.2f}s" for stage, seconds in made.seconds_by_stage.items())
    return f"**Total generation time ({len(made.tracks)} songs): {total:.2f}s**\n{stages}"


def _progress_text(job: Job) -> str:
    if job.status is Status.QUEUED:
        return f"queued, number {job.queue_position} in line"
    if job.status.is_final:
        return job.error_message or job.status.value
    return f"{job.stage}, {job.progress:.0%}"


def read_task_ids(value: Any) -> list[str]:
    """A list, JSON of one in a string, ids separated by commas, or one id."""
    if isinstance(value, str):
        try:
            value = read_json(value)
        except BadJson:
            value = value.split(",")
    if isinstance(value, str):
        value = [value]
    ids = [str(id_).strip() for id_ in value if isinstance(id_, (str, int))] if isinstance(value, list) else []
    if len(ids) > IDS_AT_MOST:
        raise InvalidRequest(f"task_id_list holds {len(ids)} ids; allowed: {IDS_AT_MOST}")
    return [id_ for id_ in ids if id_]


def routes(desk: Desk, access: Access) -> APIRouter:
    router = APIRouter()

    @router.post("/release_task", openapi_extra=openapi_body())
    async def release_task(request: Request) -> dict[str, Any]:
        """Takes a job of one to eight songs and answers at once; `/query_result` tells what became of it."""
        async with read_fields(request) as fields:
            owner = access.owner_by_fields(request, fields.values, Scope.GENERATE)
            asked, attachments, warnings = to_request(fields, desk.catalogue)
            job = await desk.submit(asked, owner, attachments)
        data = {"task_id": job.id, "status": "queued", "queue_position": max(1, job.queue_position)}
        return envelope(data | {"warnings": warnings} if warnings else data)

    @router.post("/query_result")
    async def query_result(request: Request) -> dict[str, Any]:
        """State and result of jobs, in the order asked: status 0 under way, 1 done, 2 failed."""
        fields = await read_query_fields(request)
        owner = access.owner_by_fields(request, fields.values, Scope.READ)
        ids = read_task_ids(fields.values.get("task_id_list"))
        jobs = await desk.look_up(ids, owner)
        entries = [unknown_reply(id_) if job is None else to_reply(job) for id_, job in zip(ids, jobs, strict=True)]
        return envelope(entries)

    @router.post("/cancel_task")
    async def cancel_task(request: Request) -> dict[str, Any]:
        """Withdraws a job: at once while it is queued, within a second or so when it runs."""
        fields = await read_query_fields(request)
        owner = access.owner_by_fields(request, fields.values, Scope.GENERATE)
        task_id = str(fields.values.get("task_id") or "")
        job = await desk.cancel(task_id, owner)
        if job is None:
            raise HTTPException(404, f"no task {task_id!r}")
        return envelope({"task_id": job.id, "status": job.status.value})

    @router.head("/v1/audio", include_in_schema=False)
    @router.get("/v1/audio")
    async def audio(request: Request, path: str) -> Response:
        """A finished file, whole or in part."""
        access.owner_by_query(request, Scope.READ)
        if path.startswith(("/", "\\")) or ".." in path:
            raise HTTPException(403, "Access denied: path outside allowed directory")
        file = await desk.open_track(path)
        if file is None:
            raise HTTPException(404, "Audio file not found")
        return send_track(file, request)

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """What this server runs, its default first."""
        access.owner_by_header(request, Scope.READ)
        data = _models(desk.catalogue)
        return {**envelope(data), "models": data["models"], "default_model": data["default_model"]}

    @router.get("/v1/stats")
    async def stats(request: Request) -> dict[str, Any]:
        """The queue in numbers."""
        access.owner_by_header(request, Scope.READ)
        seen = await desk.stats()
        jobs = {
            name: getattr(seen, name) for name in ("total", "queued", "running", "succeeded", "failed", "cancelled")
        }
        return envelope(
            {
                "jobs": jobs,
                "queue_size": seen.queued,
                "queue_maxsize": seen.queue_limit,
                "avg_job_seconds": round(seen.avg_job_seconds, 3),
            }
        )

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Alive, and able to take jobs; `/readyz` tells part by part whether all models are up."""
        told = {"status": "ok", "service": "ACE-Step API", "version": "1.0"}
        return {**envelope(told), **told, "healthy": True}

    return router


def _models(catalogue: Catalogue) -> dict[str, Any]:
    cards: Sequence[dict[str, Any]] = [
        {
            "name": card.name,
            "is_default": card.is_default,
            "is_loaded": True,
            "supported_task_types": list(card.tasks),
            "default_inference_steps": card.default_steps,
            "max_inference_steps": card.max_steps,
        }
        for card in catalogue.models
    ]
    return {
        "models": cards,
        "default_model": catalogue.default_model.name,
        "lm_models": [{"name": name, "is_loaded": True} for name in catalogue.lm_models],
        "loaded_lm_model": catalogue.lm_models[0] if catalogue.lm_models else None,
        "llm_initialized": bool(catalogue.lm_models),
    }
