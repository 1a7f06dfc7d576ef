"""From what the current API's clients send to the request that is meant."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from models.errors import InvalidRequest
from models.music import HEARD, MAX_AUDIO_CODE, MAX_SEED, MAX_SONGS, Analysis, AudioFormat, MusicRequest, Task
from serve_app.dialects.attachments import AUDIO_FILES, find_attachments
from serve_app.dialects.bodies import Fields
from serve_app.dialects.current.analysis import analysis_of, check_source, not_used_by
from serve_app.dialects.desk import Attachments, Catalogue
from serve_app.dialects.parameters import BY_NAME, Given
from serve_app.dialects.replies import NOT_KNOWN
from serve_app.dialects.strict_json import BadJson, read_json
from serve_app.jobs.job import Idempotency, Priority, Terms

SONGS_UNLESS_GIVEN = 2
CODE = re.compile(r"<\|audio_code_(\d{1,9})\|>")
TEXT2MUSIC_INSTRUCTION = "Fill the audio semantic mask based on the given conditions:"  # sent with any task, by clients
TO_THE_END = (0.0, -1.0)  # repainting_end of a client that means none
LOSSLESS = (AudioFormat.WAV, AudioFormat.FLAC)

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
    analysis = analysis_of(given)
    texts = _code_texts(given["audio_code_string"])
    songs = 1 if analysis else given["batch_size"] or (len(texts) if len(texts) > 1 else SONGS_UNLESS_GIVEN)
    if not 1 <= songs <= MAX_SONGS:
        raise InvalidRequest(f"batch_size {songs} is out of range; allowed: 1 to {MAX_SONGS}")
    seeds, warnings = _seeds(given, songs)
    retake_seeds, not_retaken = _retake_seeds(given, songs)
    codes = () if analysis is Analysis.CODES else _codes(texts, songs)
    attachments, not_attached = find_attachments(given, fields, has_codes=bool(codes), is_heard=analysis in HEARD)
    check_source(analysis, attachments, has_codes=bool(codes))
    strange = [*given.unknown(AUDIO_FILES), *sorted(fields.files.keys() - AUDIO_FILES)]
    warnings += [
        *not_retaken,
        *not_attached,
        *not_used_by(analysis, given),
        *given.not_applied(),
        *(f"{name}: not known here, not used" for name in strange),
    ]
    values = values_of(given, catalogue)
    if values["audio_format"] in LOSSLESS and values.pop("audio_bitrate", None) is not None:
        warnings.append(f"audio_bitrate: not used, {values['audio_format']} has none")
    values |= {"seeds": seeds, "retake_seeds": retake_seeds, "audio_codes": codes}
    if analysis:
        values |= {"analysis": analysis, "task_type": Task.TEXT2MUSIC}
    return validated(values), attachments, warnings


async def terms_of(fields: Fields, key: str | None) -> Terms:
    """`key`: of the header `Idempotency-Key`. Raises InvalidRequest."""
    once = None if key is None else Idempotency(key, await fields.sha256())
    return Terms(priority_of(fields), idempotency=once)


def priority_of(fields: Fields) -> Priority:
    """Raises InvalidRequest."""
    asked = Given(fields.values)["priority"]
    try:
        return Priority(asked)
    except ValueError:
        raise InvalidRequest(f"priority {asked!r}: allowed are {', '.join(Priority)}") from None


def values_of(given: Given, catalogue: Catalogue) -> dict[str, Any]:
    """Of a MusicRequest, all but what there is one of for each song. Raises InvalidRequest."""
    values = {field: given[name] for field, name in TAKEN_OVER.items() if given[name] is not None}
    values |= {field: given[name].strip() or None for field, name in BLANK_IS_NONE.items() if given[name] is not None}
    for field in BLANK_IS_NONE:
        if values.get(field) == NOT_KNOWN:
            values[field] = None
    if values.get("instruction") == TEXT2MUSIC_INSTRUCTION:
        values["instruction"] = None
    query = given["sample_query"].strip()
    values |= {
        "model": (given["model"] or "").strip().removeprefix("acestep/") or catalogue.default_model.name,
        "bpm": given["bpm"] or None,
        "audio_duration": _seconds(given["audio_duration"]),
        "sample_query": query if query or given["sample_mode"] else None,
        "infer_method": _method(given),
        "timesteps": _timesteps(given["timesteps"]),
        "repainting_end": None if given["repainting_end"] in TO_THE_END else given["repainting_end"],
        "lm_top_k": max(0, given["lm_top_k"] or 0),
    }
    if given["lm_top_p"] is not None:
        values["lm_top_p"] = min(1.0, given["lm_top_p"])
    _check_correction(given)
    return values


def validated(values: Mapping[str, Any]) -> MusicRequest:
    """Raises InvalidRequest that tells what is wrong by the names that callers know."""
    try:
        return MusicRequest.model_validate(values)
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
    return drawn_to(songs, asked), warnings


def _retake_seeds(given: Given, songs: int) -> tuple[tuple[int, ...], list[str]]:
    asked = [seed for seed in _numbers("retake_seed", given["retake_seed"]) if seed != -1]
    if not given["retake_variance"]:
        return (), ["retake_seed: not used, retake_variance is 0"] if asked else []
    return drawn_to(songs, asked), [f"retake_seed: {len(asked)} given, {songs} used"] if len(asked) > songs else []


def drawn_to(songs: int, asked: Sequence[int] = ()) -> tuple[int, ...]:
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


def _code_texts(value: Any) -> list[str]:
    """Of a list, of JSON of one as forms send it, or of a single text. Raises InvalidRequest."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = read_json(value)
        except BadJson:
            raise InvalidRequest(f"audio_code_string begins as a list and is not JSON: {value[:100]!r}") from None
    return [str(text) for text in (value if isinstance(value, list) else [value]) if text]


def _codes(texts: list[str], songs: int) -> tuple[tuple[int, ...], ...]:
    """Codes for each song; a single text serves all."""
    if not texts:
        return ()
    if len(texts) == 1:
        texts = texts * songs
    if len(texts) != songs:
        raise InvalidRequest(
            f"audio_code_string has {len(texts)} texts for {songs} songs; give one for each, or one for all"
        )
    read = tuple(tuple(map(int, CODE.findall(text))) for text in texts)
    if not all(read):
        raise InvalidRequest("audio_code_string holds no codes; a code is written <|audio_code_123|>")
    if (highest := max(max(codes) for codes in read)) > MAX_AUDIO_CODE:
        raise InvalidRequest(f"audio_code_string holds code {highest}; allowed: 0 to {MAX_AUDIO_CODE}")
    return read
