"""One job's way through the LM: words completed, metadata written, codes written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine

from models.errors import BadPlan
from models.lm import planning
from models.lm.constraints import Rules
from models.lm.decoding import Decoding
from models.lm.parse import Metadata, codes_of_text, metadata_of
from models.lm.planning import Drawing
from models.lm.prompts import (
    Prompts,
    caption_or_default,
    codes_text,
    cot_text,
    lyrics_or_default,
    sample_query_or_default,
)
from models.lm.trace import trace
from models.lm.writing import Budget, Counts, Writer
from models.music import (
    DEFAULT_SECONDS,
    MAX_AUDIO_CODE,
    Metas,
    MusicRequest,
    SongPlan,
    codes_of,
)
from models.pipeline import all_or_none

logger = logging.getLogger(__name__)

MOST_TOKENS = 4032  # of metadata, or of a song described: the reference's budget
FEWEST_TOKENS = 256  # room without which a description is not begun
METADATA_TOKENS = 150  # of a metadata block, about; for progress only
FREE_MARGIN = 500  # tokens beside the codes where the LM is unconstrained

Codes = tuple[int, ...]
Trace = tuple[str, ...]


class Planner:
    """What an engine does for one call; keeps count of tokens, and of steps where they are asked for."""

    def __init__(self, name: str, writer: Writer, prompts: Prompts, counts: Counts) -> None:
        self._name = name
        self._writer = writer
        self._prompts = prompts
        self._counts = counts
        self._has_run = False
        self._trace: list[str] = []
        self._remarks: list[str] = []

    async def plan(self, request: MusicRequest) -> tuple[SongPlan, ...]:
        self._counts.expect(_expected_tokens(request))
        completed = await self._complete(request)
        metadata = await self._metadata(completed, is_sampled=request.sample_query is not None)
        before = tuple(self._trace)
        songs = await self._codes(completed, metadata)
        name = self._name if self._has_run else None
        return tuple(
            planning.plan_of(completed, metadata, codes, name).model_copy(
                update={"trace": before + lines, "remarks": tuple(self._remarks)}
            )
            for codes, lines in songs
        )

    async def describe(self, request: MusicRequest) -> SongPlan:
        completed = await self._complete(request)
        plan = planning.plan_of(completed, {}, (), self._name if self._has_run else None)
        return plan.model_copy(update={"trace": tuple(self._trace)})

    async def create_sample(
        self, query: str, is_instrumental: bool, language: str | None, drawing: Drawing
    ) -> SongPlan:
        prompt = self._prompts.create_sample(sample_query_or_default(query), is_instrumental)
        song = await self._describe(prompt, planning.sample_rules(language, drawing.is_constrained), drawing)
        return song.model_copy(update={"lyrics": planning.instrumental_or(song.lyrics, is_instrumental)})

    async def format(self, song: SongPlan, drawing: Drawing) -> SongPlan:
        prompt = self._prompts.format(caption_or_default(song.caption), lyrics_or_default(song.lyrics))
        rules = planning.format_rules(song.metas, song.language, drawing.is_constrained)
        formatted = await self._describe(prompt, rules, drawing)
        return formatted.model_copy(update={"lyrics": planning.formatted_or(formatted.lyrics, song.lyrics)})

    async def understand(self, codes: Codes, drawing: Drawing) -> SongPlan:
        rules = planning.sample_rules(None, drawing.is_constrained)
        song = await self._describe(self._prompts.understand(codes_text(codes)), rules, drawing)
        if not song.caption and song.metas == Metas():
            raise BadPlan("the LM said nothing that can be used of these codes")
        return song

    async def _complete(self, request: MusicRequest) -> MusicRequest:
        drawing = self._drawing(request, request.seeds[0])
        if request.sample_query is not None:
            is_instrumental = planning.asks_for_instrumental(request)
            language = request.vocal_language or planning.language_asked(request.sample_query)
            sample = await self.create_sample(request.sample_query, is_instrumental, language, drawing)
            request = planning.with_sample(request, sample)
        if request.use_format:
            song = planning.plan_of(request, {}, (), None)
            request = planning.with_format(request, await self.format(song, drawing))
        return request

    async def _metadata(self, request: MusicRequest, is_sampled: bool) -> Metadata:
        """What the LM adds; the caller's values stand above it."""
        if planning.is_complete(request.metas) or is_sampled:
            return planning.known_metadata(request.metas)
        prompts = (
            self._prompts.metadata(request.prompt, request.lyrics),
            self._prompts.metadata_unguided(request.lyrics, request.lm_negative_prompt),
        )
        rules = planning.metadata_rules(request)
        drawing = self._drawing(request, request.seeds[0])
        decoding = self._decoding(rules, drawing, request.lm_cfg_scale)
        on_token = self._counts.plan(METADATA_TOKENS)
        ids = await self._write(prompts, decoding, Budget(FEWEST_TOKENS, MOST_TOKENS), on_token)
        self._trace += self._lines("metadata", drawing, rules, ids)
        return {**planning.sound(metadata_of(self._text_of(ids))), **planning.given_metadata(request)}

    async def _codes(self, request: MusicRequest, metadata: Metadata) -> tuple[tuple[Codes, Trace], ...]:
        if request.audio_codes:
            return tuple((codes, ()) for codes in request.audio_codes)
        if not request.thinking:
            return (((), ()),) * request.songs
        self._counts.settle()
        runs = [self._song_codes(request, metadata, seed) for seed in request.seeds]
        if request.allow_lm_batch:
            return tuple(await all_or_none([run() for run in runs]))
        return tuple([await run() for run in runs])

    def _song_codes(
        self, request: MusicRequest, metadata: Metadata, seed: int
    ) -> Callable[[], Coroutine[None, None, tuple[Codes, Trace]]]:
        """Counted at once, written when called: the planned total of a job is known before its first song is done."""
        expected = planning.metas_of(metadata).duration if request.audio_duration is None else request.audio_duration
        on_token = self._counts.plan(codes_of(expected or DEFAULT_SECONDS) + 1)

        async def write() -> tuple[Codes, Trace]:
            prompts = (
                self._prompts.codes(request.prompt, request.lyrics, cot_text(metadata)),
                self._prompts.codes_unguided(request.prompt, request.lyrics, request.lm_negative_prompt),
            )
            rules = planning.code_rules(request)
            drawing = self._drawing(request, seed)
            decoding = self._decoding(rules, drawing, request.lm_cfg_scale)
            ids = await self._write(prompts, decoding, _code_budget(rules), on_token)
            codes = self._codes_in(ids, rules)
            if ids[-1] != self._writer.vocabulary.eos and len(codes) < (rules.most_codes or 0):
                self._remarks.append(f"audio_duration: not given, and the LM had room for {len(codes)} codes only")
            return codes, self._lines(f"codes of seed {seed}", drawing, rules, ids)

        return write

    def _codes_in(self, ids: list[int], rules: Rules) -> Codes:
        text = self._writer.vocabulary.decode(ids)
        codes = tuple(code for code in codes_of_text(text) if code <= MAX_AUDIO_CODE)[: rules.most_codes]
        if not codes or (rules.is_constrained and len(codes) < rules.fewest_codes):
            raise BadPlan(f"the LM wrote {len(codes)} audio codes where at least {max(1, rules.fewest_codes)} were due")
        return codes

    async def _describe(self, prompt: str, rules: Rules, drawing: Drawing) -> SongPlan:
        on_token = self._counts.plan(METADATA_TOKENS)
        decoding = self._decoding(rules, drawing, 1.0)
        ids = await self._write((prompt, ""), decoding, Budget(FEWEST_TOKENS, MOST_TOKENS), on_token)
        self._trace += self._lines("description", drawing, rules, ids)
        return planning.read_song(self._text_of(ids), self._name)

    def _text_of(self, ids: list[int]) -> str:
        """Without the end token, which an LM may write anywhere, in the middle of a caption too."""
        return self._writer.vocabulary.decode([index for index in ids if index != self._writer.vocabulary.eos])

    async def _write(
        self, prompts: tuple[str, str], decoding: Decoding, budget: Budget, on_token: Callable[[], None]
    ) -> list[int]:
        self._has_run = True
        return await self._writer.write(prompts, decoding, budget, on_token)

    def _drawing(self, request: MusicRequest, seed: int) -> Drawing:
        return Drawing.of(request, self._writer.order, seed)

    def _decoding(self, rules: Rules, drawing: Drawing, scale: float) -> Decoding:
        return Decoding(rules, drawing.sampling, scale, drawing.seed)

    def _lines(self, what: str, drawing: Drawing, rules: Rules, ids: list[int]) -> Trace:
        """The steps of a run, logged too, where they are asked for."""
        if not drawing.is_traced:
            return ()
        lines = tuple(f"{what} {line}" for line in trace(self._writer.vocabulary, rules, ids))
        for line in lines:
            logger.info(line)
        return lines


def _expected_tokens(request: MusicRequest) -> int:
    """Of all phases to come, about; for progress only."""
    descriptions = (request.sample_query is not None) + request.use_format
    block = METADATA_TOKENS * (not planning.is_complete(request.metas) and request.sample_query is None)
    writes_codes = request.thinking and not request.audio_codes
    codes = request.songs * (codes_of(request.audio_duration or DEFAULT_SECONDS) + 1) if writes_codes else 0
    return descriptions * METADATA_TOKENS + block + codes


def _code_budget(rules: Rules) -> Budget:
    most = rules.most_codes or 0
    if not rules.is_constrained:
        return Budget(rules.fewest_codes, most + FREE_MARGIN)
    return Budget(rules.fewest_codes + 1, most + 1)
