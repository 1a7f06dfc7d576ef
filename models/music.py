"""The vocabulary: what is asked for, what is planned, what is made. No torch here: the ingress imports this."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

SAMPLE_RATE = 48_000
CHANNELS = 2
LATENT_CHANNELS = 64
SAMPLES_PER_FRAME = 1920
FRAMES_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_FRAME  # 25
CODES_PER_SECOND = 5
MAX_AUDIO_CODE = 63_999
SILENCE = 1e-6  # sound with no louder sample than this
MIN_SECONDS = 10.0
MAX_SECONDS = 600.0
DEFAULT_SECONDS = 60.0  # where neither caller, source nor LM says how long
MAX_SONGS = 8
MAX_PROMPT_LETTERS = 2048
MAX_LYRICS_LETTERS = 8192
MAX_LORAS = 4
MAX_SEED = 2**32 - 1
NO_NEGATIVE_PROMPT = "NO USER INPUT"
INSTRUMENTAL_LYRICS = "[Instrumental]"

# the reference's constants.py; `unknown` is its word for "none of these"
LANGUAGES = (
    "ar az bg bn ca cs da de el en es fa fi fr he hi hr ht hu id is it ja ko la lt ms ne nl no pa pl pt ro ru sa "
    "sk sr sv sw ta te th tl tr uk ur vi yue zh unknown"
).split()
KEYSCALES = tuple(
    f"{note}{accidental} {mode}"
    for note in "ABCDEFG"
    for accidental in ("", "#", "b", "♯", "♭")
    for mode in ("major", "minor")
)
KEY = (  # how one may be written; every one that is written so is one of KEYSCALES
    r"\s*([A-Ga-g])([#b♯♭]?)[\s_-]*(m|M|[Mm][Ii][Nn](?:[Oo][Rr])?|[Mm][Aa][Jj](?:[Oo][Rr])?)?\s*"
)
TIME_SIGNATURES = ("2", "3", "4", "6")
TIME_SIGNATURE_OF = {"2/4": "2", "3/4": "3", "4/4": "4", "6/8": "6"}


class Task(StrEnum):
    TEXT2MUSIC = "text2music"
    COVER = "cover"
    REPAINT = "repaint"
    LEGO = "lego"
    EXTRACT = "extract"
    COMPLETE = "complete"


SOURCE_TASKS = tuple(task for task in Task if task is not Task.TEXT2MUSIC)  # those that need audio to work on


class Analysis(StrEnum):
    """What is told of a song instead of making it."""

    PLAN = "plan"  #: what the LM would have it be
    CODES = "codes"  #: the audio codes that its source is heard as
    SONG = "song"  #: caption, metadata and lyrics of its source, or of given audio codes


HEARD = (Analysis.CODES, Analysis.SONG)


class AudioFormat(StrEnum):
    MP3 = "mp3"
    WAV = "wav"
    FLAC = "flac"
    OPUS = "opus"
    AAC = "aac"


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a song is written as. `kbit_per_s`: `None` is the format's own."""

    audio_format: AudioFormat
    sample_rate: int = SAMPLE_RATE
    kbit_per_s: int | None = None


class Value(BaseModel):
    """A frozen value that travels between processes and into the job store as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _as_key_scale(value: object) -> object:
    """`Am`, `c# min`, `F♯ Minor` become a member of KEYSCALES; anything else is returned as it is, to be refused."""
    match = re.fullmatch(KEY, value) if isinstance(value, str) else None
    if match is None:
        return value
    note, accidental, mode = match[1].upper(), match[2], match[3] or "major"
    is_minor = mode == "m" or mode.lower().startswith("min")
    return f"{note}{accidental} {'minor' if is_minor else 'major'}"


def _as_time_signature(value: object) -> object:
    """`4/4`, `6/8` and the number 3 become `4`, `6` and `3`, the beats of a bar."""
    text = str(value).strip() if isinstance(value, (str, int)) else value
    return TIME_SIGNATURE_OF.get(text, text) if isinstance(text, str) else text


def _known_key(value: str) -> str:
    if value not in KEYSCALES:
        raise ValueError(
            f"{value!r} is not a key; a key is a note A to G, optionally # or b, then major or minor, as in 'C# minor'"
        )
    return value


def _known_language(value: str) -> str:
    if value not in LANGUAGES:
        raise ValueError(f"{value!r} is not a known language; allowed: {', '.join(LANGUAGES)}")
    return value


Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Bpm = Annotated[int, Field(ge=30, le=300)]
Seconds = Annotated[float, Field(ge=MIN_SECONDS, le=MAX_SECONDS, allow_inf_nan=False)]
KeyScale = Annotated[
    str,
    BeforeValidator(_as_key_scale),
    AfterValidator(_known_key),
    Field(json_schema_extra={"pattern": f"^{KEY}$", "examples": ["C# minor", "Am"]}),
]
TimeSignature = Annotated[
    Literal["2", "3", "4", "6"],
    BeforeValidator(_as_time_signature),
    WithJsonSchema({"enum": [*TIME_SIGNATURES, *TIME_SIGNATURE_OF, *map(int, TIME_SIGNATURES)]}),
]
Language = Annotated[str, AfterValidator(_known_language), Field(json_schema_extra={"enum": [*LANGUAGES]})]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
TrackName = Annotated[str, Field(min_length=1, max_length=64)]


class Metas(Value):
    """What is known of a song's music; `None` is not known yet. `duration` in seconds."""

    bpm: Bpm | None = None
    key_scale: KeyScale | None = None
    time_signature: TimeSignature | None = None
    duration: Seconds | None = None


class Lora(Value):
    """An adapter of the DiT by name, and how strongly it is applied."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    scale: Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)] = 1.0


class MusicRequest(Value):
    """One job: as many songs as there are seeds. Field names are those of ACE-Step's current API, one spelling each.

    `None` in a sampling field means the variant's own default. `src_audio` and `reference_audio` are artefact ids.
    """

    model: str
    lm_model: str | None = None  # None: this server's default LM, if it has one
    task_type: Task = Task.TEXT2MUSIC
    analysis: Analysis | None = None  # None: songs are made
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_LETTERS)] = ""
    lyrics: Annotated[str, Field(max_length=MAX_LYRICS_LETTERS)] = ""
    bpm: Bpm | None = None
    key_scale: KeyScale | None = None
    time_signature: TimeSignature | None = None
    audio_duration: Seconds | None = None
    vocal_language: Language | None = None  # None: not given
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_SONGS)]
    audio_format: AudioFormat = AudioFormat.MP3
    audio_bitrate: int | None = None  # kbit/s; None: the format's own
    audio_sample_rate: int = SAMPLE_RATE

    inference_steps: Annotated[int, Field(ge=1, le=200)] | None = None
    guidance_scale: Annotated[float, Field(ge=0.0, le=30.0, allow_inf_nan=False)] | None = None
    shift: Annotated[float, Field(ge=1.0, le=5.0, allow_inf_nan=False)] | None = None
    infer_method: Literal["ode", "sde", "heun"] = "ode"
    timesteps: Annotated[tuple[Share, ...], Field(min_length=1, max_length=201)] | None = None
    use_adg: bool = False
    cfg_interval_start: Share = 0.0
    cfg_interval_end: Share = 1.0
    velocity_norm_threshold: Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)] = 0.0  # 0: off
    velocity_ema_factor: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = 0.0  # 0: off
    dcw_enabled: bool = False
    dcw_scaler: Share = 0.05
    dcw_high_scaler: Share = 0.02
    retake_seeds: Annotated[tuple[Seed, ...], Field(max_length=MAX_SONGS)] = ()  # one a song
    retake_variance: Share = 0.0  # how far each song's noise turns to that of its retake seed

    loras: Annotated[tuple[Lora, ...], Field(max_length=MAX_LORAS)] = ()

    thinking: bool = False
    sample_query: Annotated[str, Field(max_length=2048)] | None = None  # "" : surprise me
    use_format: bool = False
    audio_codes: Annotated[
        tuple[
            Annotated[
                tuple[Annotated[int, Field(ge=0, le=MAX_AUDIO_CODE)], ...],
                Field(max_length=int(MAX_SECONDS) * CODES_PER_SECOND),
            ],
            ...,
        ],
        Field(max_length=MAX_SONGS),
    ] = ()
    lm_backend: Literal["vllm", "pt"] | None = None  # None: whichever this LM runs on
    lm_temperature: Annotated[float, Field(ge=0.0, le=5.0, allow_inf_nan=False)] = 0.85
    lm_cfg_scale: Annotated[float, Field(ge=0.0, le=30.0, allow_inf_nan=False)] = 2.5
    lm_negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT_LETTERS)] = NO_NEGATIVE_PROMPT
    lm_top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0  # 0: off
    lm_top_p: Annotated[float, Field(ge=1e-6, le=1.0, allow_inf_nan=False)] = 0.9  # 1: off
    lm_repetition_penalty: Annotated[float, Field(gt=0.0, le=5.0, allow_inf_nan=False)] = 1.0
    use_cot_caption: bool = True
    use_cot_language: bool = True
    constrained_decoding: bool = True
    constrained_decoding_debug: bool = False
    allow_lm_batch: bool = True

    src_audio: str | None = None
    reference_audio: str | None = None
    instruction: Annotated[str, Field(max_length=1024)] | None = None  # None: made from the task
    track_name: TrackName | None = None  # lego, extract: the track to make
    track_classes: Annotated[tuple[TrackName, ...], Field(max_length=16)] = ()  # complete: the tracks to add
    repainting_start: Finite = 0.0  # seconds of the source; below 0: before its beginning
    repainting_end: Finite | None = None  # None: to the source's end
    repaint_mode: Literal["conservative", "balanced", "aggressive"] = "balanced"
    repaint_strength: Share = 0.5  # balanced only: 0 is conservative, 1 aggressive
    chunk_mask_mode: Literal["explicit", "auto", "auto_legacy"] = "explicit"
    audio_cover_strength: Share = 1.0  # share of the steps after which the source is let go of
    cover_noise_strength: Share = 0.0  # how far the song starts from its source rather than from noise

    @model_validator(mode="after")
    def _fits_together(self) -> MusicRequest:
        if messages := [message for _, message in self.contradictions()]:
            raise ValueError("; ".join(messages))
        return self

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Fields whose values, each of them allowed, do not go with others; and why."""
        if self.cfg_interval_start > self.cfg_interval_end:
            yield (
                "cfg_interval_start",
                f"cfg_interval_start {self.cfg_interval_start} is after cfg_interval_end {self.cfg_interval_end}",
            )
        names = [lora.name for lora in self.loras]
        if len(set(names)) != len(names):
            yield "loras", f"loras: {', '.join(names)} names an adapter twice"
        if self.retake_seeds and len(self.retake_seeds) != len(self.seeds):
            yield (
                "retake_seeds",
                f"{len(self.retake_seeds)} retake seeds for {len(self.seeds)} songs; give one for each",
            )
        if bool(self.retake_seeds) != (self.retake_variance > 0):
            yield (
                "retake_variance",
                f"retake_variance {self.retake_variance:g} with {len(self.retake_seeds)} retake seeds",
            )
        if self.repainting_end is not None and self.repainting_end <= self.repainting_start:
            yield (
                "repainting_end",
                f"repainting_end {self.repainting_end:g} s is not after repainting_start {self.repainting_start:g} s",
            )
        if self.audio_codes and len(self.audio_codes) != len(self.seeds):
            yield (
                "audio_codes",
                f"{len(self.audio_codes)} lists of audio codes for {len(self.seeds)} songs; give one for each",
            )

    @property
    def songs(self) -> int:
        return len(self.seeds)

    @property
    def metas(self) -> Metas:
        """What the caller said of the music; the LM never changes these."""
        return Metas(
            bpm=self.bpm, key_scale=self.key_scale, time_signature=self.time_signature, duration=self.audio_duration
        )

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.audio_format, self.audio_sample_rate, self.audio_bitrate)

    @property
    def is_instrumental(self) -> bool:
        return self.lyrics.strip().lower() in ("", "[inst]", "[instrumental]")


class SongPlan(Value):
    """What one song will be: the caller's words completed by the LM. `codes` (5 Hz) may be empty."""

    caption: str
    lyrics: str
    language: str
    metas: Metas
    codes: tuple[int, ...] = ()
    lm_model: str | None = None  # the LM that ran, if one did
    trace: tuple[str, ...] = ()  # what the LM was allowed and wrote, step by step, where debugging was asked for
    remarks: tuple[str, ...] = ()  # what was asked for and could not be applied


@dataclass(frozen=True, slots=True)
class Latents:
    """A song between DiT and VAE. `remarks` tell the caller what could not be applied."""

    values: NDArray[np.float32]  # (frame, channel)
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.values) / FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True)
class Source:
    """The audio a song is made from, as the VAE hears it: with silence at its ends where the window sticks out."""

    values: NDArray[np.float32]  # (frame, channel)
    samples: int  # of the audio as it came


@dataclass(frozen=True, slots=True)
class Song:
    """One song as the DiT takes it. `reference` is thirty seconds of the audio it is to sound like.

    `deadline_s` after it was handed over it fails unless it is done.
    """

    request: MusicRequest
    index: int
    plan: SongPlan
    source: Source | None = None
    reference: Latents | None = None
    deadline_s: float | None = None

    @property
    def seed(self) -> int:
        return self.request.seeds[self.index]

    @property
    def retake_seed(self) -> int | None:
        return self.request.retake_seeds[self.index] if self.request.retake_seeds else None

    @property
    def frames(self) -> int:
        """A song made from a source is as long as it."""
        if self.source is not None:
            return len(self.source.values)
        assert self.plan.metas.duration is not None, "the pipeline settles every song's length"
        return frames_of(self.plan.metas.duration)


class Track(Value):
    """A finished file. `ref` is its opaque id, which ends in the format's file extension."""

    ref: str
    audio_format: AudioFormat
    seconds: float
    size: int  # bytes
    sha256: str


class Made(Value):
    """What came of one request, song by song."""

    tracks: tuple[Track, ...]  # none of an analysis
    plans: tuple[SongPlan, ...]
    dit_model: str
    lm_model: str | None
    seconds_by_stage: dict[str, float]
    remarks: tuple[str, ...] = ()  # what was asked for and could not be applied


class Stage(StrEnum):
    ENCODE = "encode"
    PLAN = "plan"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `planned` units (tokens, steps, tracks) of a stage, over all songs of the job."""

    stage: Stage
    done: int
    planned: int


OnProgress = Callable[[int, int], None]  # (done, planned) of one call to one stage


def ignore(done: int, planned: int) -> None:
    """For callers that do not watch."""


def frames_of(seconds: float) -> int:
    """Latent frames of a song of this length (reference rule: seconds rounded to 0.1, then floored to frames)."""
    return int(round(seconds, 1) * SAMPLE_RATE) // SAMPLES_PER_FRAME


def codes_of(seconds: float) -> int:
    """Audio codes of a song of this length: exactly 5 a second, a started code not counted."""
    return math.floor(seconds * CODES_PER_SECOND + 1e-9)


def seconds_of(codes: Sequence[int]) -> float:
    """The length of a song of these audio codes, within what a song may have."""
    return min(max(len(codes) / CODES_PER_SECOND, MIN_SECONDS), MAX_SECONDS)
