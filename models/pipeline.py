"""From a request to finished tracks: encode, plan, denoise, decode. The whole product in one screen."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from models.editing import WHOLE, Splice, Window, source_of, splice_of, window_of
from models.errors import InvalidRequest
from models.music import (
    DEFAULT_SECONDS,
    FRAMES_PER_SECOND,
    HEARD,
    MAX_SECONDS,
    MIN_SECONDS,
    Analysis,
    Encoding,
    Latents,
    Made,
    MusicRequest,
    OnProgress,
    Progress,
    Song,
    SongPlan,
    Source,
    Stage,
    Task,
    Track,
    ignore,
    seconds_of,
)

T = TypeVar("T")


class Lm(Protocol):
    async def plan(self, request: MusicRequest, on_progress: OnProgress = ignore) -> tuple[SongPlan, ...]:
        """One plan a song, in the order of the request's seeds. Values given by the caller come back unchanged."""
        ...

    async def understand(self, codes: tuple[int, ...], request: MusicRequest) -> SongPlan:
        """What audio codes sound like: caption, metadata, lyrics."""
        ...


class Dit(Protocol):
    async def denoise(self, song: Song, on_progress: OnProgress = ignore) -> Latents: ...

    async def codes(self, source: Source) -> tuple[int, ...]:
        """What a source is heard as, five audio codes a second."""
        ...


class Vae(Protocol):
    """Audio goes by its artefact id: samples do not travel."""

    async def encode(self, audio: str, window: Window = WHOLE) -> Source:
        """The latents of a source, lengthened by silence so that it holds the window."""
        ...

    async def encode_reference(self, audio: str) -> Latents:
        """The latents of thirty seconds of what a song is to sound like."""
        ...

    async def decode(self, latents: Latents, encoding: Encoding, splice: Splice | None = None) -> Track:
        """Keeps the file and returns what it is kept as."""
        ...


@dataclass(frozen=True, slots=True)
class Stages:
    """The engines one job runs through. `lm` is `None` on a server without an LM."""

    lm: Lm | None
    dit: Dit
    vae: Vae


async def make_music(
    request: MusicRequest, stages: Stages, on_progress: Callable[[Progress], None], deadline_s: float | None = None
) -> Made:
    """Makes every song of a request, side by side, or only hears or plans one where an analysis is asked for; fails at
    the first step of the DiT that ends after `deadline_s`.

    Raises AceError. One song that fails fails the job: its neighbours are cancelled before the error leaves.
    """
    clock, watch = _Clock(), _Watch(request.songs, on_progress)
    ends_at = None if deadline_s is None else time.monotonic() + deadline_s
    with clock.measures(Stage.ENCODE):
        source, reference = await _encode(request, stages.vae, watch)
    with clock.measures(Stage.PLAN):
        plans = await _plan(request, source, stages, watch)
    plans = tuple(with_duration(plan, source) for plan in plans)

    async def make(index: int) -> tuple[Latents, Track]:
        left_s = None if ends_at is None else ends_at - time.monotonic()
        song = Song(request, index, plans[index], source, reference, left_s)
        with clock.measures(Stage.DENOISE):
            latents = await stages.dit.denoise(song, watch.of(Stage.DENOISE, index))
        with clock.measures(Stage.DECODE):
            track = await stages.vae.decode(latents, request.encoding, splice_of(request))
        watch.of(Stage.DECODE, index)(1, 1)
        return latents, track

    made = await all_or_none([make(index) for index in range(request.songs)]) if request.analysis is None else []
    return Made(
        tracks=tuple(track for _, track in made),
        plans=plans,
        dit_model=request.model,
        lm_model=next((plan.lm_model for plan in plans if plan.lm_model), None),
        seconds_by_stage=clock.seconds,
        remarks=tuple(
            dict.fromkeys(
                [remark for plan in plans for remark in plan.remarks]
                + [remark for latents, _ in made for remark in latents.remarks]
            )
        ),
    )


def needs_lm(request: MusicRequest) -> bool:
    """Whether the request cannot be honoured without an LM."""
    if request.analysis is not None:
        return request.analysis is Analysis.SONG or (request.analysis is Analysis.PLAN and _is_written(request))
    if request.task_type is not Task.TEXT2MUSIC:  # the rest is made from a source, with the caller's own words
        return False
    return _is_written(request)


def _is_written(request: MusicRequest) -> bool:
    return request.thinking or request.sample_query is not None or request.use_format


def wants_lm(request: MusicRequest) -> bool:
    """Whether an LM, where there is one, takes part: it completes missing metadata, caption and language."""
    if request.task_type is not Task.TEXT2MUSIC:
        return False
    metas = request.metas
    is_incomplete = None in (metas.bpm, metas.key_scale, metas.time_signature, metas.duration)
    return needs_lm(request) or is_incomplete or request.use_cot_caption or request.use_cot_language


def plan_as_asked(request: MusicRequest) -> tuple[SongPlan, ...]:
    """Plans that hold the caller's own words, for requests the LM takes no part in."""
    return tuple(
        SongPlan(
            caption=request.prompt,
            lyrics=request.lyrics,
            language=request.vocal_language or "unknown",
            metas=request.metas,
            codes=request.audio_codes[index] if request.audio_codes else (),
        )
        for index in range(request.songs)
    )


def with_duration(plan: SongPlan, source: Source | None = None) -> SongPlan:
    """The length is settled here, once: the source's, else as planned, else what the codes fill, else a minute."""
    if source is not None:
        own = len(source.values) / FRAMES_PER_SECOND
        return _lasting(
            plan, own if MIN_SECONDS <= own <= MAX_SECONDS else None
        )  # a shorter one is not in the metadata
    if plan.metas.duration is not None:
        return plan
    return _lasting(plan, seconds_of(plan.codes) if plan.codes else DEFAULT_SECONDS)


def _lasting(plan: SongPlan, seconds: float | None) -> SongPlan:
    return plan.model_copy(update={"metas": plan.metas.model_copy(update={"duration": seconds})})


async def _encode(request: MusicRequest, vae: Vae, watch: _Watch) -> tuple[Source | None, Latents | None]:
    """Once for all songs of a request: what they are made from, and what they are to sound like."""
    audio, reference = source_of(request), request.reference_audio
    if audio is None and reference is None:
        return None, None
    made = (
        None if audio is None else await vae.encode(audio, window_of(request)),
        None if reference is None else await vae.encode_reference(reference),
    )
    watch.of(Stage.ENCODE, 0)(1, 1)
    return made


async def _plan(request: MusicRequest, source: Source | None, stages: Stages, watch: _Watch) -> tuple[SongPlan, ...]:
    if request.analysis in HEARD:
        return (await _hear(request, source, stages, watch),)
    if stages.lm is None or not wants_lm(request):
        return plan_as_asked(request)
    return await stages.lm.plan(request, watch.of(Stage.PLAN, 0))


async def _hear(request: MusicRequest, source: Source | None, stages: Stages, watch: _Watch) -> SongPlan:
    """What is analysed: a source, or the codes that stand in for it."""
    (plan,) = plan_as_asked(request)
    if source is not None:
        plan = plan.model_copy(update={"codes": await stages.dit.codes(source)})
    if request.analysis is Analysis.SONG:
        if stages.lm is None:
            raise InvalidRequest("this server runs no LM any more, and only an LM can tell what a song is like")
        heard = await stages.lm.understand(plan.codes, request)
        plan = heard.model_copy(update={"codes": plan.codes})
    watch.of(Stage.PLAN, 0)(1, 1)
    return plan


async def all_or_none(works: list[Awaitable[T]]) -> list[T]:
    """Like gather, but the first failure cancels the rest and waits for them to be gone."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class _Clock:
    """Wall seconds a stage was busy with at least one song."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: dict[Stage, int] = defaultdict(int)
        self._since: dict[Stage, float] = {}

    @contextmanager
    def measures(self, stage: Stage) -> Iterator[None]:
        if self._inside[stage] == 0:
            self._since[stage] = time.monotonic()
        self._inside[stage] += 1
        try:
            yield
        finally:
            self._inside[stage] -= 1
            if self._inside[stage] == 0:
                self.seconds[stage] += time.monotonic() - self._since[stage]


class _Watch:
    """Adds up the progress of a job's songs, so that a job has one stage and one count at a time."""

    def __init__(self, songs: int, on_progress: Callable[[Progress], None]) -> None:
        self._songs = songs
        self._on_progress = on_progress
        self._counts: dict[Stage, dict[int, tuple[int, int]]] = defaultdict(dict)

    def of(self, stage: Stage, index: int) -> OnProgress:
        def report(done: int, planned: int) -> None:
            counts = self._counts[stage]
            counts[index] = (done, planned)
            songs = 1 if stage in (Stage.ENCODE, Stage.PLAN) else self._songs
            total = (
                sum(planned for _, planned in counts.values()) * songs // len(counts)
            )  # songs not yet heard of: as the others
            self._on_progress(Progress(stage, sum(done for done, _ in counts.values()), total))

        return report
