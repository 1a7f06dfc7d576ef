"""Chat completions that ask for music, as requests for music."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from models.errors import InvalidRequest
from models.music import MAX_AUDIO_CODE, MAX_SEED, MAX_SONGS, MusicRequest, Task
from serve_app.dialects.desk import Attached, Attachments, Catalogue
from serve_app.dialects.openrouter.inline_audio import decoded

SECTIONS = ("[verse", "[chorus", "[bridge", "[intro", "[outro", "[hook", "[pre-chorus", "[refrain", "[inst")
LINES_OF_LYRICS, LETTERS_OF_A_LINE = 4, 60  # so many lines, shorter than that on average, are taken for lyrics
INSTRUMENTAL = "[inst]"
CODE = re.compile(r"<\|audio_code_(\d+)\|>")
TO_THE_END = (0.0, -1.0)  # repainting_end of a client that means none
LEAST_TOP_P = 1e-6  # keeps the likeliest token only, as 0 would
NOTHING_ASKED = "No valid prompt, lyrics, sample query, or input audio found in request"
NO_USE = {
    "max_tokens": "a song is as long as audio_config.duration says",
    "stop": "a song ends where it ends",
    "use_cot_metas": "what is not given of the music is always planned where there is an LM",
}


def _without_nulls(value: Any) -> Any:
    """Clients send null for what they leave open."""
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


class Body(BaseModel):
    """Names that are not here are let in, and told to the caller as not used."""

    model_config = ConfigDict(extra="allow", frozen=True)
    strip_nulls = model_validator(mode="before")(_without_nulls)


class AudioConfig(Body):
    duration: float | None = Field(None, description="Seconds, 10 to 600.")
    format: str = Field("mp3", description="mp3, wav, flac, opus or aac.")
    bpm: int | None = Field(None, description="30 to 300.")
    key_scale: str = Field("", description="Such as C major or Am.")
    time_signature: str | int = Field("", description="2, 3, 4 or 6; 4/4 is 4.")
    vocal_language: str = Field("", description="Such as en, zh, ja.")
    instrumental: bool = Field(False, description="No voice, unless lyrics are given.")


class Message(Body):
    role: str
    content: str | list[Any] = Field("", description="Text, or parts of type text or input_audio (base64).")


def _without_commas(value: Any) -> Any:
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Seeds = Annotated[list[int], BeforeValidator(_without_commas)]


class StreamOptions(Body):
    include_usage: bool = False


class ChatBody(Body):
    model: str = Field(
        "", description="A DiT, with or without a provider before a slash; this server's first unless given."
    )
    messages: list[Message] = Field(description="The last one of the user counts.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    modalities: list[str] = ["text", "audio"]
    audio_config: AudioConfig = AudioConfig()
    lyrics: str = Field("", description="Where given, the message is the prompt.")
    sample_mode: bool = Field(False, description="The message is a description that the LM invents a song from.")
    use_format: bool = Field(False, description="The LM rewrites caption and lyrics first.")
    thinking: bool = Field(False, description="The LM plans the song's audio codes.")
    use_cot_caption: bool = True
    use_cot_language: bool = True
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.85
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.9
    top_k: Annotated[int, Field(ge=0)] = 0
    lm_cfg_scale: float = 2.0
    seed: int | Seeds | None = Field(None, description="A number, several in a list or as text separated by commas.")
    batch_size: Annotated[int, Field(ge=1, le=MAX_SONGS)] = 1
    n: Annotated[int, Field(ge=1, le=1, description="One choice; batch_size puts several songs into it.")] = 1
    guidance_scale: float | None = Field(None, description="Not on turbo models.")
    inference_steps: int | None = None
    infer_method: str = "ode"
    task_type: str = Task.TEXT2MUSIC.value
    repainting_start: float = 0.0
    repainting_end: float | None = None
    audio_cover_strength: float = 1.0
    cover_noise_strength: float = 0.0
    audio_codes: str | list[str] = ""


@dataclass(frozen=True, slots=True)
class Said:
    """What a message and the fields beside it come to. `query`: of sample mode."""

    prompt: str = ""
    lyrics: str = ""
    query: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    request: MusicRequest
    attached: Attachments
    model: str  # as the caller calls it
    streams: bool
    wants_usage: bool
    warnings: tuple[str, ...]


def to_request(fields: Mapping[str, Any], catalogue: Catalogue) -> Asked:
    """Raises InvalidRequest."""
    try:
        body = ChatBody.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(f"Invalid request format: {told(error)}") from None
    users = [message for message in body.messages if message.role == "user"]
    text, sounds = _parts(users[-1].content) if users else ("", [])
    said = _said(body, text)
    attached, warnings = _attached(body.task_type, sounds)
    codes = _codes(body.audio_codes, body.batch_size)
    if not (said.prompt or said.lyrics or said.query or sounds or codes):
        raise InvalidRequest(NOTHING_ASKED)
    seeds, of_seeds = _seeds(body)
    name = body.model.rpartition("/")[2] or catalogue.default_model.name
    return Asked(
        _request(body, said, name, seeds, codes),
        attached,
        body.model or f"acestep/{name}",
        body.stream,
        body.stream_options.include_usage,
        (*_not_used(body, said), *warnings, *of_seeds),
    )


def openapi_body(body: type[BaseModel]) -> dict[str, Any]:
    """For routes that read it themselves, so that its faults are told in their own words."""
    schema = body.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(one) for one in node]
        if not isinstance(node, dict):
            return node
        own = {key: whole(value) for key, value in node.items() if key != "$ref"}
        return whole(parts[node["$ref"].rpartition("/")[2]]) | own if "$ref" in node else own

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": whole(schema)}}}}


def told(error: ValidationError, names: Mapping[str, str] | None = None) -> str:
    """A sentence a fault, by the names that the caller knows; no value, since one may be a whole file."""
    faults = []
    for fault in error.errors(include_input=False):
        field, *inner = map(str, fault["loc"] or ("",))
        faults.append(f"{'.'.join([(names or {}).get(field, field), *inner])}: {fault['msg']}".removeprefix(": "))
    return "; ".join(faults)


NAMES = {
    "audio_duration": "audio_config.duration",
    "audio_format": "audio_config.format",
    "bpm": "audio_config.bpm",
    "key_scale": "audio_config.key_scale",
    "time_signature": "audio_config.time_signature",
    "vocal_language": "audio_config.vocal_language",
    "seeds": "seed",
    "sample_query": "messages",
    "prompt": "messages",
}


def _request(
    body: ChatBody, said: Said, model: str, seeds: tuple[int, ...], codes: tuple[tuple[int, ...], ...]
) -> MusicRequest:
    sound = body.audio_config
    values = {
        "model": model,
        "task_type": body.task_type,
        "prompt": said.prompt,
        "lyrics": said.lyrics,
        "sample_query": said.query,
        "bpm": sound.bpm or None,
        "key_scale": sound.key_scale.strip() or None,
        "time_signature": sound.time_signature or None,
        "audio_duration": sound.duration if sound.duration and sound.duration > 0 else None,
        "vocal_language": sound.vocal_language.strip() or None,
        "audio_format": sound.format,
        "seeds": seeds,
        "inference_steps": body.inference_steps,
        "guidance_scale": body.guidance_scale,
        "infer_method": "ode" if body.infer_method == "euler" else body.infer_method,
        "thinking": body.thinking,
        "use_format": body.use_format,
        "use_cot_caption": body.use_cot_caption,
        "use_cot_language": body.use_cot_language,
        "lm_temperature": body.temperature,
        "lm_top_p": max(LEAST_TOP_P, body.top_p),
        "lm_top_k": body.top_k,
        "lm_cfg_scale": body.lm_cfg_scale,
        "audio_codes": codes,
        "repainting_start": body.repainting_start,
        "repainting_end": None if body.repainting_end in TO_THE_END else body.repainting_end,
        "audio_cover_strength": body.audio_cover_strength,
        "cover_noise_strength": body.cover_noise_strength,
    }
    try:
        return MusicRequest.model_validate(values)
    except ValidationError as error:
        raise InvalidRequest(f"Invalid request format: {told(error, NAMES)}") from None


def _parts(content: str | list[Any]) -> tuple[str, list[str]]:
    """The text of a message, and the audio in it. Raises InvalidRequest."""
    if isinstance(content, str):
        return content.strip(), []
    texts, sounds = [], []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "input_audio", "input_audio": {"data": str(data)}}:
                sounds.append(data)
            case _:
                kind = part.get("type") if isinstance(part, dict) else part
                raise InvalidRequest(
                    f"Invalid request format: a part of a message is of type {str(kind)[:40]!r}; allowed are "
                    "{type: text, text} and {type: input_audio, input_audio: {data}}"
                )
    return "\n".join(texts).strip(), sounds


def _said(body: ChatBody, text: str) -> Said:
    """What is meant by a text, by the first rule that fits; a text that could be anything is the prompt."""
    prompt, lyrics = _tagged("prompt", text), _tagged("lyrics", text)
    if body.lyrics.strip():
        said = Said(text if prompt is None else prompt, body.lyrics)
    elif body.sample_mode:
        said = Said(query=text)
    elif prompt is not None or lyrics is not None:
        said = Said(prompt or "", lyrics or "")
    elif _looks_like_lyrics(text):
        said = Said(lyrics=text)
    else:
        said = Said(text)
    is_wordless = body.audio_config.instrumental and not said.lyrics
    return Said(said.prompt, INSTRUMENTAL, said.query) if is_wordless else said


def _tagged(tag: str, text: str) -> str | None:
    match = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.IGNORECASE | re.DOTALL)
    return match and match[1].strip()


def _looks_like_lyrics(text: str) -> bool:
    if any(section in text.lower() for section in SECTIONS):
        return True
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) >= LINES_OF_LYRICS and sum(map(len, lines)) / len(lines) < LETTERS_OF_A_LINE


def _attached(task: str, sounds: list[str]) -> tuple[Attachments, list[str]]:
    """Music from text has a reference only; whatever is made from audio has that first, and then a reference."""
    uses = ("reference",) if task == Task.TEXT2MUSIC else ("source", "reference")
    audio: dict[str, Attached] = {
        use: decoded(f"input_audio.data (the {use} audio)", data) for use, data in zip(uses, sounds, strict=False)
    }
    spare = len(sounds) - len(uses)
    return Attachments(**audio), [f"input_audio: the last {spare} not used by {task}"] if spare > 0 else []


def _seeds(body: ChatBody) -> tuple[tuple[int, ...], list[str]]:
    """One a song; those not given, or given as -1, are drawn."""
    given = [body.seed] if isinstance(body.seed, int) else body.seed or []
    asked = [seed for seed in given if seed != -1]
    drawn = [secrets.randbelow(MAX_SEED + 1) for _ in range(body.batch_size - len(asked))]
    spare = len(asked) > body.batch_size
    warnings = [f"seed: {len(asked)} given, {body.batch_size} used"] if spare else []
    return tuple([*asked, *drawn][: body.batch_size]), warnings


def _codes(given: str | list[str], songs: int) -> tuple[tuple[int, ...], ...]:
    """A list has a text for each song, a single text serves all. Raises InvalidRequest."""
    texts = given if isinstance(given, list) else [given] * songs
    if not any(texts):
        return ()
    read = tuple(tuple(int(code[:9]) for code in CODE.findall(text)) for text in texts)
    if len(read) != songs or not all(read) or max(map(max, read)) > MAX_AUDIO_CODE:
        raise InvalidRequest(
            f"audio_codes: {len(read)} texts for {songs} songs; allowed is one for all or one for each, written "
            f"<|audio_code_0|> to <|audio_code_{MAX_AUDIO_CODE}|>"
        )
    return read


def _not_used(body: ChatBody, said: Said) -> list[str]:
    warnings = [f"{name}: not known here, not used" for name in body.model_extra or {} if name not in NO_USE]
    warnings += [f"{name}: not used, {why}" for name, why in NO_USE.items() if name in (body.model_extra or {})]
    warnings += [f"audio_config.{name}: not known here, not used" for name in body.audio_config.model_extra or {}]
    if "audio" not in body.modalities:
        warnings.append("modalities: not used, every answer has audio")
    if len(body.messages) > 1:
        warnings.append("messages: only the last one of the user is used")
    if body.audio_config.instrumental and said.lyrics != INSTRUMENTAL:
        warnings.append("audio_config.instrumental: not used, lyrics were given")
    return warnings
