"""The body of `POST /v2/jobs`: a MusicRequest's fields, by its names and within its ranges, and a few of our own."""

from __future__ import annotations

import copy
from typing import Annotated, Any

from pydantic import ConfigDict, Field, JsonValue, create_model
from pydantic.fields import FieldInfo

from models.music import MAX_SONGS, MusicRequest, Seed, Value
from serve_app.jobs.job import Priority

MAX_DEADLINE_S = 7 * 86_400
EXAMPLES: list[JsonValue] = [
    {"prompt": "upbeat pop song", "lyrics": "[Verse]\nHello world", "audio_duration": 30, "audio_format": "mp3"},
    {"prompt": "slow piano, rain", "lyrics": "[Instrumental]", "seeds": [7, 8], "bpm": 60, "key_scale": "A minor"},
]
AUDIO = "an upload's id, or a finished track by its id or address, such as /v2/jobs/ID/tracks/1"

DESCRIPTIONS = {
    "lm_model": "The LM to plan with; unless given, this server's default.",
    "task_type": "What to make of what.",
    "analysis": "Makes no song: plan is what the LM would make of the request, codes what src_audio is heard as, song "
    "the caption, metadata and lyrics of src_audio or of audio_codes.",
    "prompt": "What the music is like.",
    "lyrics": "Empty or [Instrumental]: no voice.",
    "bpm": "Beats a minute; unless given, the LM's choice.",
    "key_scale": "Such as C major or Am; unless given, the LM's choice.",
    "time_signature": "Beats of a bar; unless given, the LM's choice.",
    "audio_duration": "Seconds; unless given, the LM's choice. A song made from a source is as long as it.",
    "vocal_language": "Such as en, zh, ja; unless given, the LM's choice.",
    "audio_format": "What the songs are written as.",
    "audio_bitrate": "In kbit/s; unless given, the format's own. Not for wav and flac.",
    "audio_sample_rate": "In Hz.",
    "inference_steps": "Of the diffusion; unless given, the model's own. Turbo models take 20 at most.",
    "guidance_scale": "How strictly the prompt is followed; unless given, the model's own. Not on turbo models.",
    "shift": "Of the schedule; unless given, the model's own.",
    "infer_method": "How a step is made.",
    "timesteps": "The schedule itself, from noise, 1, down to music, 0.",
    "use_adg": "Guides by angles. Not on turbo models.",
    "cfg_interval_start": "Share of the way from which on a song is guided. Not on turbo models.",
    "cfg_interval_end": "Share of the way up to which a song is guided. Not on turbo models.",
    "velocity_norm_threshold": "0 is off.",
    "velocity_ema_factor": "0 is off.",
    "dcw_enabled": "Corrects each step by the wavelets of what it leads to.",
    "dcw_scaler": "Of what changes slowly.",
    "dcw_high_scaler": "Of what changes quickly.",
    "retake_seeds": "One a song; drawn where retake_variance is given without them.",
    "retake_variance": "How far a song turns to that of its retake seed.",
    "loras": "Adapters of this server, by name.",
    "thinking": "The LM plans the song's audio codes.",
    "sample_query": "The LM invents caption, lyrics and metadata after this description; empty: what it likes.",
    "use_format": "The LM rewrites caption and lyrics first.",
    "audio_codes": "Codes at 5 a second, one list a song, as a finished track has them.",
    "lm_backend": "Unless given, what the LM runs on.",
    "lm_temperature": "0 is greedy.",
    "lm_cfg_scale": "1 or less is off.",
    "lm_negative_prompt": "What the music is not like.",
    "lm_top_k": "0 is off.",
    "lm_top_p": "1 is off.",
    "lm_repetition_penalty": "1 is off.",
    "use_cot_caption": "The LM may reword the caption.",
    "use_cot_language": "The LM may name the language.",
    "constrained_decoding": "The LM keeps to the form.",
    "constrained_decoding_debug": "Traces how.",
    "allow_lm_batch": "A job's songs are planned side by side.",
    "src_audio": f"What the songs are made from: {AUDIO}.",
    "reference_audio": f"What the songs are to sound like: {AUDIO}.",
    "instruction": "To the DiT; unless given, made from the task.",
    "track_name": "The track that lego makes or extract takes out, such as drums.",
    "track_classes": "The tracks that complete adds.",
    "repainting_start": "Seconds of the source; below 0, before its beginning.",
    "repainting_end": "Seconds of the source; unless given, its end.",
    "repaint_mode": "How strictly the rest of the source is kept.",
    "repaint_strength": "Of mode balanced: 0 is conservative, 1 aggressive.",
    "chunk_mask_mode": "How the part that is made anew is marked.",
    "audio_cover_strength": "Share of the steps that keep to the source.",
    "cover_noise_strength": "How far a song starts from its source rather than from noise.",
}


class Webhook(Value):
    url: Annotated[str, Field(min_length=1, max_length=2048)]


class OwnFields(Value):
    """What a MusicRequest has not, or has otherwise."""

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})

    model: str | None = Field(None, description="A DiT of this server; unless given, its default.")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_SONGS)] | None = Field(
        None, description="One a song: the same seed makes the same song. Drawn unless given."
    )
    batch_size: Annotated[int, Field(ge=1, le=MAX_SONGS)] | None = Field(
        None, description="Songs to make, where seeds are drawn; 1 unless given."
    )
    priority: Priority = Field(Priority.NORMAL, description="Of the place in the queue.")
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S, allow_inf_nan=False)] | None = Field(
        None, description="Seconds from now on, after which the job fails unless it has ended."
    )
    webhook: Webhook | None = Field(
        None, description="An address that is told, signed, once the job has ended; where the server allows it."
    )
    reuse: bool = Field(
        False, description="Takes what an earlier job of the same request and seeds made, where it is still kept."
    )


def _taken(name: str, info: FieldInfo) -> tuple[Any, FieldInfo]:
    told = copy.copy(info)
    told.description = DESCRIPTIONS.get(name)
    return info.annotation, told


JobRequest: type[OwnFields] = create_model(
    "JobRequest",
    __base__=OwnFields,
    __doc__="One job: one to eight songs. Unknown fields are refused.",
    **{  # type: ignore[call-overload]  # fields by name
        name: _taken(name, info)
        for name, info in MusicRequest.model_fields.items()
        if name not in OwnFields.model_fields
    },
)
