"""From a request to what the LM may write for it, and from what it wrote to a plan. No model here, no clock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError

from models.errors import BadPlan
from models.lm.constraints import Rules, Then
from models.lm.parse import Metadata, lyrics_of, metadata_of
from models.lm.prompts import lyrics_or_default
from models.lm.sampling import Order, Sampling
from models.music import (
    INSTRUMENTAL_LYRICS,
    LANGUAGES,
    MAX_LYRICS_LETTERS,
    MAX_PROMPT_LETTERS,
    MAX_SECONDS,
    MIN_SECONDS,
    Metas,
    MusicRequest,
    SongPlan,
    codes_of,
    seconds_of,
)

LONGEST_SECONDS = int(MAX_SECONDS)
METADATA_NAMES = {"bpm": "bpm", "key_scale": "keyscale", "time_signature": "timesignature", "duration": "duration"}
UNKNOWN = "unknown"
INSTRUMENTAL_WORDS = ("instrumental", "pure music", "pure instrument")
LANGUAGE_WORDS = {
    "english": "en",
    "chinese": "zh",
    "mandarin": "zh",
    "中文": "zh",
    "cantonese": "yue",
    "粤语": "yue",
    "japanese": "ja",
    "日语": "ja",
    "korean": "ko",
    "韩语": "ko",
    "spanish": "es",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "portuguese": "pt",
    "russian": "ru",
    "bengali": "bn",
    "hindi": "hi",
    "arabic": "ar",
    "thai": "th",
    "vietnamese": "vi",
    "indonesian": "id",
    "turkish": "tr",
    "dutch": "nl",
    "polish": "pl",
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are drawn for one call, whatever is written."""

    sampling: Sampling
    seed: int
    is_constrained: bool = True
    is_traced: bool = False

    @classmethod
    def of(cls, request: MusicRequest, order: Order, seed: int) -> Drawing:
        sampling = Sampling(
            temperature=request.lm_temperature,
            top_k=request.lm_top_k,
            top_p=request.lm_top_p,
            repetition_penalty=request.lm_repetition_penalty,
            order=order,
        )
        return cls(sampling, seed, request.constrained_decoding, request.constrained_decoding_debug)


def known_metadata(metas: Metas) -> Metadata:
    """The caller's values under the LM's names. The LM counts whole seconds."""
    known: Metadata = {METADATA_NAMES[name]: value for name, value in metas.model_dump().items() if value is not None}
    if metas.duration is not None:
        known["duration"] = int(metas.duration)
    return known


def given_metadata(request: MusicRequest) -> Metadata:
    """What the metadata phase writes by force: the caller's values, the length of given codes, a language as well."""
    known = known_metadata(request.metas)
    if request.audio_codes and request.audio_duration is None:
        known["duration"] = int(seconds_of(request.audio_codes[0]))
    if request.use_cot_language and request.vocal_language not in (None, UNKNOWN):
        known["language"] = str(request.vocal_language)
    return known


def sound(metadata: Metadata) -> Metadata:
    """What the LM wrote without the values no song can have: they would mislead it when it reads them back."""
    names = {lm_name: name for name, lm_name in METADATA_NAMES.items()}
    return {
        key: value
        for key, value in metadata.items()
        if (key not in names or _fits(names[key], value)) and (key != "language" or value in LANGUAGES)
    }


def asks_for_instrumental(request: MusicRequest) -> bool:
    """By the lyrics, or by the words of the query (the reference's list)."""
    query = (request.sample_query or "").lower().strip()
    is_said = any(words in query for words in INSTRUMENTAL_WORDS) or query.endswith(" solo")
    return is_said or (bool(request.lyrics.strip()) and request.is_instrumental)


def language_asked(query: str) -> str | None:
    """The first language a query names."""
    found = [(match.start(), code) for word, code in LANGUAGE_WORDS.items() if (match := _word(word).search(query))]
    return min(found)[1] if found else None


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{word}\b" if word.isascii() else word, re.IGNORECASE)


def is_complete(metas: Metas) -> bool:
    """Whether the metadata phase has nothing to add: the reference then skips it, caption and language included."""
    return None not in (metas.bpm, metas.key_scale, metas.time_signature, metas.duration)


def metadata_rules(request: MusicRequest) -> Rules:
    skipped = {"genres"}
    if not request.use_cot_caption:
        skipped.add("caption")
    if not request.use_cot_language:
        skipped.add("language")
    return Rules(
        is_constrained=request.constrained_decoding,
        then=Then.NOTHING,
        skipped=frozenset(skipped),
        given=_as_text(given_metadata(request)),
        longest_seconds=LONGEST_SECONDS,
    )


def code_rules(request: MusicRequest) -> Rules:
    """Exactly the requested length, else a length of the LM's choosing that a song may have."""
    exact = request.audio_duration
    return Rules(
        is_constrained=request.constrained_decoding,
        begins_with_codes=True,
        fewest_codes=codes_of(exact if exact is not None else MIN_SECONDS),
        most_codes=codes_of(exact if exact is not None else MAX_SECONDS),
    )


def sample_rules(language: str | None, is_constrained: bool) -> Rules:
    """For a new song from a few words, or for understanding one; a given language is written, not chosen."""
    is_given = language is not None and language != UNKNOWN
    return _prose_rules({"language": str(language)} if is_given else {}, is_constrained)


def format_rules(metas: Metas, language: str | None, is_constrained: bool) -> Rules:
    """With a language given, the reference leaves the field out altogether."""
    given = known_metadata(metas)
    if language is None or language == UNKNOWN:
        return _prose_rules(given, is_constrained)
    return _prose_rules({**given, "language": language}, is_constrained, frozenset({"language"}))


def _prose_rules(given: Metadata, is_constrained: bool, skipped: frozenset[str] = frozenset()) -> Rules:
    return Rules(
        is_constrained=is_constrained,
        then=Then.LYRICS,
        skipped=skipped,
        given=_as_text(given),
        longest_seconds=LONGEST_SECONDS,
    )


def read_song(text: str, lm_model: str) -> SongPlan:
    """A whole song as the LM described it. Raises BadPlan where it wrote nothing."""
    if not text.strip():
        raise BadPlan("the LM wrote nothing")
    metadata = metadata_of(text)
    return SongPlan(
        caption=_text_of(metadata, "caption")[:MAX_PROMPT_LETTERS],
        lyrics=lyrics_of(text)[:MAX_LYRICS_LETTERS],
        language=language_of(metadata) or UNKNOWN,
        metas=metas_of(metadata),
        lm_model=lm_model,
    )


def metas_of(metadata: Metadata) -> Metas:
    """Of what the LM wrote, the values a song can have; the others are as if not written."""
    return Metas(**{name: metadata[key] for name, key in METADATA_NAMES.items() if _fits(name, metadata.get(key))})


def language_of(metadata: Metadata) -> str | None:
    language = _text_of(metadata, "language")
    return language if language in LANGUAGES else None


def filled(metas: Metas, by: Metas) -> Metas:
    """`metas`, and what it leaves open taken from `by`."""
    return by.model_copy(update={name: value for name, value in metas.model_dump().items() if value is not None})


def with_sample(request: MusicRequest, sample: SongPlan) -> MusicRequest:
    """The request completed by a sample. Whatever the caller gave stays."""
    return request.model_copy(
        update={
            "prompt": request.prompt if request.prompt.strip() else sample.caption,
            "lyrics": request.lyrics if request.lyrics.strip() else sample.lyrics,
            **_open_fields(request, sample),
        }
    )


def with_format(request: MusicRequest, formatted: SongPlan) -> MusicRequest:
    """The request with caption and lyrics rewritten, which is what was asked for; metadata the caller gave stays."""
    return request.model_copy(
        update={
            "prompt": formatted.caption or request.prompt,
            "lyrics": formatted.lyrics or request.lyrics,
            **_open_fields(request, formatted),
        }
    )


def _open_fields(request: MusicRequest, song: SongPlan) -> dict[str, object]:
    metas = filled(request.metas, song.metas)
    language = None if song.language == UNKNOWN else song.language
    return {
        "bpm": metas.bpm,
        "key_scale": metas.key_scale,
        "time_signature": metas.time_signature,
        "audio_duration": metas.duration,
        "vocal_language": request.vocal_language or language,
    }


def plan_of(request: MusicRequest, metadata: Metadata, codes: tuple[int, ...], lm_model: str | None) -> SongPlan:
    """The caller's words, completed by the LM's where the caller gave none or asked for the LM's."""
    caption = _text_of(metadata, "caption") if request.use_cot_caption else ""
    language = language_of(metadata) if request.use_cot_language else None
    metas = filled(request.metas, metas_of(metadata))
    if codes and request.audio_duration is None:
        # the LM need not keep to the length it planned; what there are codes for is what there is to hear
        metas = metas.model_copy(update={"duration": seconds_of(codes)})
    return SongPlan(
        caption=caption or request.prompt,
        lyrics=request.lyrics,
        language=request.vocal_language or language or UNKNOWN,
        metas=metas,
        codes=codes,
        lm_model=lm_model,
    )


def instrumental_or(lyrics: str, is_instrumental: bool) -> str:
    return lyrics or (INSTRUMENTAL_LYRICS if is_instrumental else "")


def formatted_or(lyrics: str, given: str) -> str:
    return lyrics or lyrics_or_default(given)


def _as_text(values: Metadata) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _text_of(metadata: Metadata, name: str) -> str:
    return str(metadata.get(name, ""))


def _fits(name: str, value: object) -> bool:
    try:
        partial(Metas, **{name: value})()
    except ValidationError:
        return False
    return value is not None
