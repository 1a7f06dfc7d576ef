import asyncio

import numpy as np
import pytest

from models.editing import WHOLE, Splice, Window
from models.errors import BadAudio, InvalidRequest
from models.music import (
    SAMPLES_PER_FRAME,
    Encoding,
    Latents,
    Made,
    Metas,
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
)
from models.pipeline import Stages, make_music, needs_lm, plan_as_asked, wants_lm, with_duration

SOURCE_SAMPLES = 12 * 48_000


def request(**fields: object) -> MusicRequest:
    return MusicRequest.model_validate({"model": "acestep-v15-turbo", "seeds": (7,), **fields})


class StageFakes:
    """LM, DiT and VAE that do the least their faces allow and write down what they were asked."""

    def __init__(self) -> None:
        self.planned = 0
        self.understood: list[tuple[int, ...]] = []
        self.songs: list[Song] = []
        self.fail_on_seed: int | None = None
        self.cancelled: list[int] = []
        self.encoded: list[tuple[str, Window | None]] = []
        self.splices: list[Splice | None] = []

    async def encode(self, audio: str, window: Window = WHOLE) -> Source:
        self.encoded.append((audio, window))
        span = window.on(SOURCE_SAMPLES)
        frames = (span.before + SOURCE_SAMPLES + span.after) // SAMPLES_PER_FRAME
        return Source(np.ones((frames, 64), np.float32), SOURCE_SAMPLES)

    async def encode_reference(self, audio: str) -> Latents:
        self.encoded.append((audio, None))
        return Latents(np.ones((750, 64), np.float32))

    async def plan(self, request: MusicRequest, on_progress: OnProgress = ignore) -> tuple[SongPlan, ...]:
        self.planned += 1
        on_progress(3, 3)
        metas = Metas(bpm=99, key_scale="C major", time_signature="4", duration=20.0)
        plan = SongPlan(
            caption="by the LM", lyrics=request.lyrics, language="en", metas=metas, codes=(1,) * 100, lm_model="lm"
        )
        return (plan,) * request.songs

    async def understand(self, codes: tuple[int, ...], request: MusicRequest) -> SongPlan:
        self.understood.append(codes)
        return SongPlan(caption="heard", lyrics="la", language="en", metas=Metas(bpm=77), lm_model="lm")

    async def codes(self, source: Source) -> tuple[int, ...]:
        return tuple(range(len(source.values) // 5))

    async def denoise(self, song: Song, on_progress: OnProgress = ignore) -> Latents:
        self.songs.append(song)
        try:
            for step in range(1, 4):
                await asyncio.sleep(0)
                on_progress(step, 3)
            if self.fail_on_seed is not None and song.seed != self.fail_on_seed:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.append(song.seed)
            raise
        if song.seed == self.fail_on_seed:
            raise BadAudio("silence")
        return Latents(np.full((song.frames, 64), song.seed, np.float32), ("one remark",))

    async def decode(self, latents: Latents, encoding: Encoding, splice: Splice | None = None) -> Track:
        self.splices.append(splice)
        ref = f"{latents.values[0, 0]:.0f}.mp3"
        return Track(ref=ref, audio_format=encoding.audio_format, seconds=latents.seconds, size=1, sha256="")


@pytest.fixture
def fakes() -> StageFakes:
    return StageFakes()


async def make(fakes: StageFakes, asked: MusicRequest, has_lm: bool = True) -> tuple[Made, list[Progress]]:
    seen: list[Progress] = []
    made = await make_music(asked, Stages(fakes if has_lm else None, fakes, fakes), seen.append)
    return made, seen


async def test_a_song_reaches_the_dit_with_the_time_that_is_left_of_its_jobs() -> None:
    fakes = StageFakes()

    await make_music(request(), Stages(fakes, fakes, fakes), lambda progress: None, deadline_s=60.0)
    await make_music(request(), Stages(fakes, fakes, fakes), lambda progress: None)

    first, second = fakes.songs
    assert first.deadline_s is not None
    assert 0 < first.deadline_s < 60
    assert second.deadline_s is None


async def test_every_seed_becomes_one_track_in_its_order(fakes: StageFakes) -> None:
    made, _ = await make(fakes, request(seeds=(5, 6, 7)))
    assert [track.ref for track in made.tracks] == ["5.mp3", "6.mp3", "7.mp3"]
    assert [song.seed for song in fakes.songs] == [5, 6, 7]


async def test_the_result_names_the_models_that_ran(fakes: StageFakes) -> None:
    with_lm, _ = await make(fakes, request(thinking=True))
    without, _ = await make(fakes, request(), has_lm=False)
    assert (with_lm.dit_model, with_lm.lm_model) == ("acestep-v15-turbo", "lm")
    assert (without.dit_model, without.lm_model) == ("acestep-v15-turbo", None)


async def test_a_remark_of_every_song_is_told_once(fakes: StageFakes) -> None:
    made, _ = await make(fakes, request(seeds=(1, 2)))
    assert made.remarks == ("one remark",)


async def test_progress_goes_stage_by_stage_and_never_falls(fakes: StageFakes) -> None:
    _, seen = await make(fakes, request(seeds=(1, 2), thinking=True))
    assert list(dict.fromkeys(progress.stage for progress in seen)) == [Stage.PLAN, Stage.DENOISE, Stage.DECODE]
    for stage in (Stage.DENOISE, Stage.DECODE):
        shares = [progress.done / progress.planned for progress in seen if progress.stage is stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


async def test_a_failed_song_cancels_its_neighbours_and_raises_its_own_error(fakes: StageFakes) -> None:
    fakes.fail_on_seed = 2
    with pytest.raises(BadAudio, match="silence"):
        await make(fakes, request(seeds=(1, 2, 3)))
    assert sorted(fakes.cancelled) == [1, 3]


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.TEXT2MUSIC])
async def test_what_is_made_from_a_source_is_as_long_as_it_and_in_the_callers_own_words(
    fakes: StageFakes, task: Task
) -> None:
    asked = request(task_type=task, src_audio="a.wav", thinking=True, audio_duration=30, prompt="jazz")
    made, _ = await make(fakes, asked)
    assert fakes.planned == 0
    assert (made.plans[0].caption, made.plans[0].metas.duration) == ("jazz", 12.0)
    assert fakes.songs[0].frames == 300


async def test_source_and_reference_are_encoded_once_for_all_songs(fakes: StageFakes) -> None:
    asked = request(seeds=(1, 2, 3), task_type="cover", src_audio="a.wav", reference_audio="b.wav")
    _, seen = await make(fakes, asked)
    assert fakes.encoded == [("a.wav", WHOLE), ("b.wav", None)]
    first, *rest = fakes.songs
    assert first.source is not None
    assert first.reference is not None
    assert all(song.source is first.source and song.reference is first.reference for song in rest)
    assert seen[0] == Progress(Stage.ENCODE, 1, 1)


async def test_a_repainted_song_is_lengthened_and_gets_its_sources_sound_back(fakes: StageFakes) -> None:
    window = {"repainting_start": -1.0, "repainting_end": 14.0}
    made, _ = await make(fakes, request(task_type="repaint", src_audio="a.wav", **window))
    assert fakes.encoded == [("a.wav", Window(-1.0, 14.0))]
    assert fakes.splices == [Splice("a.wav", Window(-1.0, 14.0), 0.025)]
    assert made.plans[0].metas.duration == 15.0


async def test_a_source_that_is_not_used_is_not_encoded(fakes: StageFakes) -> None:
    await make(fakes, request(src_audio="a.wav"))
    await make(fakes, request(task_type="cover", src_audio="a.wav", audio_codes=((1,) * 60,)))
    assert fakes.encoded == []
    assert fakes.splices == [None, None]


async def test_text_to_music_with_a_reference_is_planned_as_ever(fakes: StageFakes) -> None:
    await make(fakes, request(reference_audio="b.wav", thinking=True))
    assert fakes.planned == 1
    assert fakes.songs[0].reference is not None


COMPLETE = {"bpm": 120, "key_scale": "C major", "time_signature": "4", "audio_duration": 30}
SILENT_LM = {"use_cot_caption": False, "use_cot_language": False}


@pytest.mark.parametrize(
    ("fields", "wants", "needs"),
    [
        ({}, True, False),
        ({**COMPLETE}, True, False),
        ({**SILENT_LM}, True, False),
        ({**COMPLETE, **SILENT_LM}, False, False),
        ({**COMPLETE, **SILENT_LM, "thinking": True}, True, True),
        ({**COMPLETE, **SILENT_LM, "sample_query": ""}, True, True),
        ({**COMPLETE, **SILENT_LM, "use_format": True}, True, True),
        ({"task_type": "repaint", "thinking": True}, False, False),
    ],
)
def test_the_lm_is_asked_where_something_is_missing_or_wished_for(
    fields: dict[str, object], wants: bool, needs: bool
) -> None:
    assert (wants_lm(request(**fields)), needs_lm(request(**fields))) == (wants, needs)


def test_without_an_lm_a_plan_holds_the_callers_own_words() -> None:
    (plan,) = plan_as_asked(request(prompt="jazz", lyrics="la", vocal_language="fr", bpm=90, audio_codes=((3, 4),)))
    assert plan == SongPlan(caption="jazz", lyrics="la", language="fr", metas=Metas(bpm=90), codes=(3, 4))


def test_a_length_nobody_gave_is_what_the_codes_fill_or_a_minute() -> None:
    plan = SongPlan(caption="", lyrics="", language="unknown", metas=Metas())
    with_codes = plan.model_copy(update={"codes": (0,) * 75})
    assert with_duration(with_codes).metas.duration == 15.0
    assert with_duration(plan).metas.duration == 60.0


def test_a_source_shorter_than_a_song_may_be_is_no_metadata() -> None:
    plan = SongPlan(caption="", lyrics="", language="unknown", metas=Metas(duration=60.0))
    assert with_duration(plan, Source(np.ones((50, 64), np.float32), 96_000)).metas.duration is None


HEARD_CODES = tuple(range(60))  # of twelve seconds


async def test_of_a_heard_source_the_codes_are_told_and_no_song_is_made(fakes: StageFakes) -> None:
    made, seen = await make(fakes, request(analysis="codes", src_audio="take"), has_lm=False)
    assert (made.tracks, [plan.codes for plan in made.plans]) == ((), [HEARD_CODES])
    assert (fakes.encoded, fakes.songs, fakes.planned) == ([("take", WHOLE)], [], 0)
    assert made.plans[0].metas.duration == 12.0
    assert {progress.stage for progress in seen} == {Stage.ENCODE, Stage.PLAN}
    assert all(progress.done == progress.planned for progress in seen)


async def test_a_heard_source_is_described_by_the_lm(fakes: StageFakes) -> None:
    made, _ = await make(fakes, request(analysis="song", src_audio="take", prompt="said"))
    (plan,) = made.plans
    assert fakes.understood == [HEARD_CODES] == [plan.codes]
    assert (plan.caption, plan.lyrics, plan.metas) == ("heard", "la", Metas(bpm=77, duration=12.0))
    assert (made.tracks, made.lm_model) == ((), "lm")


async def test_given_codes_stand_in_for_a_source_that_is_described(fakes: StageFakes) -> None:
    made, _ = await make(fakes, request(analysis="song", audio_codes=((5, 6),)))
    assert (fakes.understood, fakes.encoded, made.plans[0].codes) == ([(5, 6)], [], (5, 6))


async def test_without_an_lm_nothing_is_described(fakes: StageFakes) -> None:
    with pytest.raises(InvalidRequest, match="runs no LM"):
        await make(fakes, request(analysis="song", src_audio="take"), has_lm=False)


async def test_a_plan_alone_is_a_plan_without_a_song(fakes: StageFakes) -> None:
    made, _ = await make(fakes, request(analysis="plan", thinking=True))
    assert (made.tracks, made.plans[0].caption, fakes.songs) == ((), "by the LM", [])


def test_an_analysis_needs_an_lm_where_it_has_one_write() -> None:
    assert needs_lm(request(analysis="song"))
    assert needs_lm(request(analysis="plan", thinking=True))
    assert not needs_lm(request(analysis="plan"))
    assert not needs_lm(request(analysis="codes", thinking=True))
