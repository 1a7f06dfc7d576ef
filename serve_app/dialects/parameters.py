"""The parameters of `/release_task`: their names and aliases, where they are looked up, and what they become."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import InvalidRequest
from serve_app.dialects.bodies import nested
from serve_app.dialects.replies import NOT_KNOWN
from serve_app.dialects.strict_json import BadJson, read_json

METAS = ("metas", "meta", "metadata", "user_metadata", "userMetadata")
NESTING = ("param_obj", *METAS)
SOURCE_FILES = ("ctx_audio", "src_audio")  # fields of a form, the first one that is there counts
REFERENCE_FILES = ("ref_audio", "reference_audio")
FORMS_WITHOUT_FILES = ("application/json", "application/x-www-form-urlencoded")
TRUE = ("1", "true", "yes", "y", "on")
FALSE = ("0", "false", "no", "n", "off")

EXAMPLE = {"prompt": "upbeat pop song", "lyrics": "Hello world", "audio_duration": 10, "inference_steps": 8}

Read = Callable[[Any], Any]


def text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def whole(value: Any) -> int | None:
    """An integer, however it is written; blank is not given."""
    number = real(value)
    if number is None:
        return None
    if not number.is_integer():
        raise ValueError("is not a whole number")
    return int(value) if isinstance(value, int) else int(number)


def real(value: Any) -> float | None:
    """A finite number, however it is written; blank is not given, and neither is what results say of the unknown."""
    if isinstance(value, str) and value.strip() in ("", NOT_KNOWN):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    return number


def yes_or_no(value: Any) -> bool | None:
    """What ACE-Step takes for true and false; blank is not given, any other word is false, as its clients expect."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    return None if not word else word in TRUE


def kilobits(value: Any) -> int | None:
    """A bit rate in kbit/s: `192`, `192k`, or 192000."""
    number = whole(value.strip().lower().removesuffix("k") if isinstance(value, str) else value)
    return number if number is None or number < 1000 or number % 1000 else number // 1000


def word(value: Any) -> str | None:
    """One of a few words; blank is not given."""
    return text(value).strip() or None


def choice(value: Any) -> str | None:
    """One of a few words in small letters; blank is not given."""
    return text(value).strip().lower() or None


def words(value: Any) -> list[str]:
    """A list, JSON of one, or words separated by commas or bars."""
    if isinstance(value, str):
        value = _json(value) if value.lstrip().startswith("[") else re.split(r"[,|]", value)
    if not isinstance(value, list):
        raise ValueError("is not a list of words")
    return [text(one).strip() for one in value if text(one).strip()]


def loras(value: Any) -> list[Any]:
    """A list of `{name, scale}` or of names, JSON of one, or names separated by commas."""
    if isinstance(value, str):
        value = _json(value) if value.lstrip()[:1] in ("[", "{") else words(value)
    given = [value] if isinstance(value, dict) else value
    if not isinstance(given, list):
        raise ValueError("is not a list of adapters")
    return [{"name": one} if isinstance(one, str) else one for one in given]


def _json(value: str) -> Any:
    try:
        return read_json(value)
    except BadJson:
        raise ValueError("is not JSON") from None


@dataclass(frozen=True, slots=True)
class Parameter:
    """`names` in the order in which they are looked up; the first is the documented one."""

    names: tuple[str, ...]
    read: Read
    default: Any = None
    note: str = ""

    @property
    def name(self) -> str:
        return self.names[0]


def _parameter(read: Read, names: str, default: Any = None, note: str = "") -> Parameter:
    return Parameter(tuple(names.split()), read, default, note)


PARAMETERS = tuple(
    _parameter(*row)
    for row in (
        (text, "prompt caption", "", "What the music is like."),
        (text, "lyrics", "", "Empty or [Instrumental]: no voice."),
        (yes_or_no, "thinking", False, "The 5 Hz LM plans the song's audio codes."),
        (yes_or_no, "sample_mode sampleMode", False, "The LM invents caption, lyrics and metadata."),
        (text, "sample_query sampleQuery description desc", "", "As sample_mode, following this description."),
        (yes_or_no, "use_format useFormat format", False, "The LM rewrites caption and lyrics first."),
        (text, "model model_name modelName dit_model ditModel", None, "A DiT of /v1/models."),
        (whole, "bpm", None, "30 to 300."),
        (text, "key_scale keyscale keyScale key", "", "Such as C major or Am."),
        (text, "time_signature timesignature timeSignature", "", "2, 3, 4 or 6; 4/4 is 4."),
        (real, "audio_duration duration audioDuration target_duration targetDuration", None, "Seconds, 10 to 600."),
        (text, "vocal_language vocalLanguage language", "", "Such as en, zh, ja."),
        (choice, "audio_format audioFormat", "mp3", "mp3, wav, flac, opus or aac."),
        (kilobits, "audio_bitrate audioBitrate mp3_bitrate mp3Bitrate", None, "In kbit/s, such as 192 or 192k."),
        (whole, "audio_sample_rate audioSampleRate mp3_sample_rate mp3SampleRate", None, "48000 or 44100."),
        (lambda value: value, "audio_code_string audioCodeString audio_codes", "", "Codes as text, one or a list."),
        (whole, "inference_steps inferenceSteps", None, "1 to 20 on turbo models, to 200 on others."),
        (real, "guidance_scale guidanceScale", None, "Not on turbo models."),
        (yes_or_no, "use_random_seed useRandomSeed", True, "False: `seed` decides."),
        (lambda value: value, "seed", None, "A number, or several as text, separated by commas."),
        (whole, "batch_size batchSize", None, "Songs to make, 1 to 8; 2 unless given."),
        (real, "shift", None, "1 to 5."),
        (choice, "infer_method inferMethod", "ode", "ode (or euler), sde or heun."),
        (word, "sampler_mode samplerMode", "euler", "heun: two forwards a step, with infer_method ode."),
        (lambda value: value, "timesteps", None, "Values of t from 1 to 0, separated by commas."),
        (yes_or_no, "use_adg useAdg", False, "Not on turbo models."),
        (real, "cfg_interval_start cfgIntervalStart", None, "0 to 1."),
        (real, "cfg_interval_end cfgIntervalEnd", None, "0 to 1."),
        (text, "lm_model_path lmModelPath", "", "The LM to plan with."),
        (choice, "lm_backend lmBackend", None, "vllm or pt; unless given, what the LM runs on."),
        (real, "lm_temperature lmTemperature", None, "0 is greedy."),
        (real, "lm_cfg_scale lmCfgScale", None, "1 or less is off."),
        (real, "lm_repetition_penalty lmRepetitionPenalty", None, "1 is off."),
        (whole, "lm_top_k lmTopK", None, "0 is off."),
        (real, "lm_top_p lmTopP", None, "1 or more is off."),
        (text, "lm_negative_prompt lmNegativePrompt", None, "What the music is not like."),
        (yes_or_no, "use_cot_caption cot_caption cot-caption useCotCaption", None, "The LM may reword the caption."),
        (yes_or_no, "use_cot_language cot_language cot-language useCotLanguage", None, "It may name the language."),
        (yes_or_no, "constrained_decoding constrainedDecoding constrained", None, "The LM keeps to the form."),
        (yes_or_no, "constrained_decoding_debug constrainedDecodingDebug", None, "Traces how."),
        (yes_or_no, "allow_lm_batch allowLmBatch parallel_thinking", None, "A job's songs planned side by side."),
        (choice, "task_type taskType", "text2music", "What to make of what."),
        (yes_or_no, "analysis_only analysisOnly", False, "What the LM would have the song be, and no song."),
        (yes_or_no, "full_analysis_only fullAnalysisOnly", False, "Caption, metadata and lyrics of the source."),
        (yes_or_no, "extract_codes_only extractCodesOnly", False, "The audio codes of the source."),
        (text, "instruction", "", "Made from the task where it is not given."),
        (word, "track_name trackName", None, "The track that lego makes or extract takes out, such as drums."),
        (words, "track_classes trackClasses instruments", (), "The tracks that complete adds."),
        (real, "repainting_start repaintingStart", None, "Seconds of the source; below 0, before its beginning."),
        (real, "repainting_end repaintingEnd", None, "Seconds of the source; 0, -1 or not given: its end."),
        (word, "repaint_mode repaintMode", None, "conservative, balanced or aggressive."),
        (real, "repaint_strength repaintStrength", None, "0 is conservative, 1 aggressive; for balanced."),
        (word, "chunk_mask_mode chunkMaskMode", None, "explicit, auto or auto_legacy."),
        (
            real,
            "audio_cover_strength audioCoverStrength cover_strength coverStrength",
            None,
            "0 to 1, the share of the steps that keep to the source.",
        ),
        (real, "cover_noise_strength coverNoiseStrength", None, "0 to 1, how far it starts from the source."),
        (
            text,
            "reference_audio_path ref_audio_path referenceAudioPath refAudioPath",
            "",
            "A track to sound like, by its /v1/audio address.",
        ),
        (
            text,
            "src_audio_path ctx_audio_path sourceAudioPath srcAudioPath ctxAudioPath",
            "",
            "A track to work on, by its /v1/audio address.",
        ),
        (word, "priority", "normal", "high, normal or low: how soon the job's turn comes."),
        (loras, "loras", (), "Adapters of this server: a list of {name, scale}, scale -2 to 2."),
        (real, "velocity_norm_threshold velocityNormThreshold", None, "0 is off, to 100."),
        (real, "velocity_ema_factor velocityEmaFactor", None, "0 is off, below 1."),
        (yes_or_no, "dcw_enabled dcwEnabled", None, "Corrects each step by the wavelets of what it leads to."),
        (word, "dcw_mode dcwMode", "double", "double."),
        (word, "dcw_wavelet dcwWavelet", "haar", "haar."),
        (real, "dcw_scaler dcwScaler", None, "0 to 1, of what changes slowly."),
        (real, "dcw_high_scaler dcwHighScaler", None, "0 to 1, of what changes quickly."),
        (lambda value: value, "retake_seed retakeSeed", None, "A number, or several as text, separated by commas."),
        (real, "retake_variance retakeVariance", None, "0 to 1, how far a song turns to that of its retake_seed."),
    )
)

# what ACE-Step's documents and code name as well: the value that changes nothing, and why another is not applied
NOT_APPLIED = tuple(
    _parameter(*row)
    for row in (
        (yes_or_no, "use_tiled_decode useTiledDecode", True, "sound is always decoded in tiles"),
        (yes_or_no, "is_format_caption isFormatCaption", False, "a caption is read alike, whoever wrote it"),
        (text, "global_caption globalCaption", "", "prompt is all that is read"),
        (
            whole,
            "repaint_latent_crossfade_frames repaintLatentCrossfadeFrames",
            10,
            "repaint_mode and repaint_strength say how wide the seams are",
        ),
        (
            real,
            "repaint_wav_crossfade_sec repaintWavCrossfadeSec",
            0.0,
            "repaint_mode and repaint_strength say how wide the seams are",
        ),
        (real, "latent_shift latentShift", 0.0, "latents are decoded as the model makes them"),
        (real, "latent_rescale latentRescale", 1.0, "latents are decoded as the model makes them"),
        (real, "eta", None, "infer_method sde adds all of its noise"),
        (real, "momentum", None, "guidance keeps the momentum that the model was published with"),
        (word, "guidance_variant guidanceVariant", "apg_classic", "guidance is apg_classic, or adg with use_adg"),
        (lambda value: value or None, "guidance_params guidanceParams", None, "guidance has no other settings"),
    )
)


class Given:
    """The parameters of one request: looked up at the top, then in `param_obj`, then in the first metadata there is."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        metas = next((fields[name] for name in METAS if fields.get(name)), None)
        self._sources = (fields, nested(fields.get("param_obj")), nested(metas))

    def __getitem__(self, name: str) -> Any:
        """The value of a documented name, or its default. Raises InvalidRequest that names what was sent."""
        return self._value_of(BY_NAME[name])

    def _value_of(self, parameter: Parameter) -> Any:
        for sent_as, value in self._found(parameter):
            try:
                read = parameter.read(value)
            except ValueError as error:
                raise InvalidRequest(f"{sent_as} {error}: {value!r}. {parameter.note}") from None
            return parameter.default if read is None else read
        return parameter.default

    def __contains__(self, name: str) -> bool:
        return next(self._found(BY_NAME[name]), None) is not None

    def not_applied(self) -> list[str]:
        """Why what was sent changes nothing, where it would. Raises InvalidRequest."""
        return [
            f"{parameter.name}: not applied, {parameter.note}"
            for parameter in NOT_APPLIED
            if self._value_of(parameter) != parameter.default
        ]

    def unknown(self, also_known: Collection[str] = (), used: Collection[Parameter] = PARAMETERS) -> list[str]:
        """Names sent that mean nothing where only these parameters are used."""
        also_read = NOT_APPLIED if used is PARAMETERS else ()
        known = {name for parameter in (*used, *also_read) for name in parameter.names} | {
            *also_known,
            *NESTING,
            "ai_token",
        }
        return sorted({name for source in self._sources for name in source if name not in known})

    def _found(self, parameter: Parameter) -> Iterator[tuple[str, Any]]:
        for source in self._sources:
            for name in parameter.names:
                if source.get(name) is not None:
                    yield name, source[name]


BY_NAME: Mapping[str, Parameter] = {parameter.name: parameter for parameter in PARAMETERS}


def openapi_body(parameters: Collection[Parameter] = PARAMETERS, *, has_files: bool = False) -> dict[str, Any]:
    """The request body for the API page: every documented name."""
    types: dict[Any, str] = {
        **{text: "string", word: "string", choice: "string", whole: "integer", real: "number", yes_or_no: "boolean"},
        kilobits: "integer",
        **{words: "array", loras: "array"},
    }
    properties = {
        parameter.name: {
            **({"type": types[parameter.read]} if parameter.read in types else {}),
            **({"items": {}} if types.get(parameter.read) == "array" else {}),
            "description": " ".join(
                [parameter.note, *([f"Also: {', '.join(parameter.names[1:])}."] if parameter.names[1:] else [])]
            ),
            **({} if parameter.default in (None, "", ()) else {"default": parameter.default}),
        }
        for parameter in parameters
    }
    files = {
        name: {"type": "string", "format": "binary", "description": f"An audio file {use}. Also: {other}."}
        for (name, other), use in ((SOURCE_FILES, "to work on"), (REFERENCE_FILES, "to sound like"))
    }
    content = {
        **{
            kind: {"schema": {"type": "object", "properties": properties}, "examples": {"a song": {"value": EXAMPLE}}}
            for kind in FORMS_WITHOUT_FILES
        },
        "multipart/form-data": {"schema": {"type": "object", "properties": properties | (files if has_files else {})}},
    }
    return {"requestBody": {"required": True, "content": content}}


def short_body(name: str, example: Any) -> dict[str, Any]:
    """The request body of a route that reads one field, as JSON or as a form."""
    kind = "array" if isinstance(example, list) else "string"
    field = {"type": kind, "items": {"type": "string"}} if kind == "array" else {"type": kind}
    content = {"schema": {"type": "object", "properties": {name: field}}, "example": {name: example}}
    return {"requestBody": {"required": False, "content": {"application/json": content}}}
