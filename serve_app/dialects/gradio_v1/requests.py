"""The parameters of `/generate_music`: what a 1.5 model makes of them, and what it cannot."""

from __future__ import annotations

import re
import reprlib
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InvalidRequest
from models.music import MAX_SEED, Finite, MusicRequest, Share, Task
from serve_app.dialects.attachments import named
from serve_app.dialects.desk import Attachments, Catalogue, ModelCard, ServerPath

OUTPUTS = "./outputs/"  # in front of a track's id; a client sees a path, and may take it for an address
OUTPUT = re.compile(r"(?:https?://[^/]+/|\.?/)outputs/([^/\\?#]+)")
METHOD_OF = {"euler": "ode", "heun": "heun", "pingpong": "sde"}
NO_LORA = ("", "none")
V1_NAME_OF = {
    "audio_format": "format",
    "inference_steps": "infer_step",
    "seeds": "manual_seeds",
    "cfg_interval_start": "guidance_interval",
    "cfg_interval_end": "guidance_interval",
    "cover_noise_strength": "ref_audio_strength",
    "audio_cover_strength": "ref_audio_strength",
}
# what the v1 documents send; the parameters that are a v1 model's own among them
DOCUMENTED: dict[str, Any] = {
    "format": "wav",
    "audio_duration": 30.0,
    "prompt": "acoustic guitar, calm, peaceful",
    "lyrics": "",
    "infer_step": 60,
    "guidance_scale": 15.0,
    "scheduler_type": "euler",
    "cfg_type": "apg",
    "omega_scale": 10.0,
    "manual_seeds": None,
    "guidance_interval": 0.5,
    "guidance_interval_decay": 0.0,
    "min_guidance_scale": 3.0,
    "use_erg_tag": True,
    "use_erg_lyric": False,
    "use_erg_diffusion": True,
    "oss_steps": None,
    "guidance_scale_text": 0.0,
    "guidance_scale_lyric": 0.0,
    "audio2audio_enable": False,
    "ref_audio_strength": 0.5,
    "ref_audio_input": None,
    "lora_name_or_path": "none",
    "lora_weight": 1.0,
}


class GenerateMusic(BaseModel):
    """Unless sent, steps and guidance are the 1.5 model's own: the v1 model's defaults are for the v1 model."""

    model_config = ConfigDict(frozen=True, extra="allow", json_schema_extra={"example": DOCUMENTED})

    format: str = Field("wav", description="wav, mp3, flac, opus or aac.")
    audio_duration: Finite = Field(30.0, description="Seconds, 10 to 600.")
    prompt: str = ""
    lyrics: str = ""
    infer_step: int | None = Field(None, description="More than the model takes are cut to what it takes.")
    guidance_scale: Finite | None = Field(None, description="0 to 30; not on turbo models.")
    scheduler_type: str = Field("euler", description="euler, heun or pingpong.")
    cfg_type: str = Field("apg", description="apg.")
    omega_scale: Finite | None = Field(None, description="Not applied.")
    manual_seeds: str | int | None = Field(None, description="The first of several, separated by commas, is used.")
    guidance_interval: Share | None = Field(None, description="The middle share that is guided; not on turbo models.")
    guidance_interval_decay: Finite = Field(0.0, description="Not applied.")
    min_guidance_scale: Finite | None = Field(None, description="Not applied.")
    use_erg_tag: bool = Field(False, description="Not applied.")
    use_erg_lyric: bool = Field(False, description="Not applied.")
    use_erg_diffusion: bool = Field(False, description="Not applied.")
    oss_steps: str | list[int] | None = Field(None, description="Not applied.")
    guidance_scale_text: Finite = Field(0.0, description="Not applied.")
    guidance_scale_lyric: Finite = Field(0.0, description="Not applied.")
    audio2audio_enable: bool = Field(False, description="Makes the song from `ref_audio_input`.")
    ref_audio_strength: Share = Field(0.5, description="How far the song keeps to it.")
    ref_audio_input: str | None = Field(None, description="A finished track, by its `audio_path` or `audio_url`.")
    lora_name_or_path: str = Field("none", description="An adapter of this server, by its name.")
    lora_weight: Annotated[Finite, Field(description="-2 to 2.")] = 1.0

    def documented(self) -> dict[str, Any]:
        """All that is known here, as it was sent."""
        return self.model_dump(include=set(GenerateMusic.model_fields))


def to_request(asked: GenerateMusic, catalogue: Catalogue) -> tuple[MusicRequest, Attachments, list[str]]:
    """The canonical request, the audio it is about, and what of it a 1.5 model cannot do. Raises InvalidRequest.

    `audio2audio` starts from the noised reference, which is what cover's two strengths do together here.
    """
    model = catalogue.default_model
    seeds = _seeds(asked.manual_seeds)
    source = _source(asked)
    values: dict[str, Any] = {
        "model": model.name,
        "prompt": asked.prompt,
        "lyrics": asked.lyrics,
        "use_cot_caption": False,  # a v1 model is given the words as they are
        "audio_format": asked.format,
        "audio_duration": None if source else asked.audio_duration,
        "seeds": seeds[:1] or (secrets.randbelow(MAX_SEED + 1),),
        "inference_steps": model.default_steps if asked.infer_step is None else min(asked.infer_step, model.max_steps),
        "infer_method": METHOD_OF.get(asked.scheduler_type, "ode"),
        **({} if model.is_turbo else _guidance(asked)),
        **(_made_from_source(asked) if source else {}),
    }
    if asked.lora_name_or_path not in NO_LORA:
        values["loras"] = ({"name": asked.lora_name_or_path, "scale": asked.lora_weight},)
    return _validated(values), Attachments(source=source), _not_applied(asked, model, seeds, has_source=bool(source))


def _guidance(asked: GenerateMusic) -> dict[str, Any]:
    """The interval lies in the middle; v1 counts it in steps, 1.5 in noise levels."""
    values: dict[str, Any] = {} if asked.guidance_scale is None else {"guidance_scale": asked.guidance_scale}
    if asked.guidance_interval is not None:
        margin = (1.0 - asked.guidance_interval) / 2
        values |= {"cfg_interval_start": margin, "cfg_interval_end": 1.0 - margin}
    return values


def _made_from_source(asked: GenerateMusic) -> dict[str, Any]:
    strengths = dict.fromkeys(("cover_noise_strength", "audio_cover_strength"), asked.ref_audio_strength)
    return {"task_type": Task.COVER, **strengths}


def _source(asked: GenerateMusic) -> str | ServerPath | None:
    if not asked.audio2audio_enable:
        return None
    sent = (asked.ref_audio_input or "").strip()
    if not sent:
        raise InvalidRequest("audio2audio_enable is true, and ref_audio_input names no audio")
    own = OUTPUT.fullmatch(sent)
    return own[1] if own else named("ref_audio_input", sent)


def _seeds(sent: str | int | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str("" if sent is None else sent).split(",") if part.strip())
    except ValueError:
        raise InvalidRequest(f"manual_seeds is not a number or a list of numbers: {reprlib.repr(sent)}") from None


def _not_applied(asked: GenerateMusic, model: ModelCard, seeds: tuple[int, ...], has_source: bool) -> list[str]:
    v1_only, not_guided = "a 1.5 model has no such thing", f"{model.name} is not guided"
    steps = asked.infer_step or 0
    rows = (
        ("scheduler_type", asked.scheduler_type not in METHOD_OF, f"euler is; allowed: {', '.join(METHOD_OF)}"),
        (
            "infer_step",
            steps > model.max_steps,
            f"{model.name} takes at most {model.max_steps}, and {model.max_steps} are made",
        ),
        ("guidance_scale", model.is_turbo and asked.guidance_scale is not None, not_guided),
        ("guidance_interval", model.is_turbo and asked.guidance_interval is not None, not_guided),
        ("cfg_type", asked.cfg_type != "apg", "apg is the only one here"),
        ("guidance_interval_decay", asked.guidance_interval_decay != 0, v1_only),
        ("min_guidance_scale", asked.min_guidance_scale is not None, v1_only),
        ("omega_scale", asked.omega_scale is not None, v1_only),
        ("use_erg_tag", asked.use_erg_tag, v1_only),
        ("use_erg_lyric", asked.use_erg_lyric, v1_only),
        ("use_erg_diffusion", asked.use_erg_diffusion, v1_only),
        ("oss_steps", bool(asked.oss_steps), v1_only),
        ("guidance_scale_text", asked.guidance_scale_text != 0, v1_only),
        ("guidance_scale_lyric", asked.guidance_scale_lyric != 0, v1_only),
        ("manual_seeds", len(seeds) > 1, f"one song is made, of the first of {len(seeds)}"),
        ("ref_audio_input", bool(asked.ref_audio_input) and not has_source, "audio2audio_enable is false"),
        (
            "audio_duration",
            has_source and "audio_duration" in asked.model_fields_set,
            "a song made from a source is as long as it",
        ),
        *((name, True, "not known here") for name in sorted(asked.model_extra or {})),
    )
    return [f"{name}: not applied, {reason}" for name, is_asked, reason in rows if is_asked]


def _validated(values: Mapping[str, Any]) -> MusicRequest:
    try:
        return MusicRequest.model_validate(values)
    except ValidationError as error:
        raise InvalidRequest("; ".join(_told(fault) for fault in error.errors())) from error


def _told(fault: Mapping[str, Any]) -> str:
    """A pydantic fault by the name that a v1 client knows."""
    match fault["loc"]:
        case ("loras", _, part):
            name = "lora_weight" if part == "scale" else "lora_name_or_path"
        case (field, *_):
            name = V1_NAME_OF.get(str(field), str(field))
        case _:
            return str(fault["msg"])
    return f"{name} {reprlib.repr(fault['input'])}: {fault['msg']}"
