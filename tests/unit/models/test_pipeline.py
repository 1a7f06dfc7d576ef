import asyncio

import numpy as np
import pytest

from models.errors import BadAudio
from models.music import (
    AudioFormat,
    Latents,
    Made,
    Metas,
    MusicRequest,
    OnProgress,
    Progress,
    Song,
    SongPlan,
    Stage,
    Track,
    frames_of,
    ignore,
)
from models.pipeline import Stages, make_music, needs_lm, plan_as_asked, wants_lm, with_duration


def request(**fields: object) -> MusicRequest:
    return MusicRequest.model_validate({"model": "acestep-v15-turbo", "seeds": (7,), **fields})


class StageFakes:
    """LM, DiT and VAE that do the least their faces allow and write down what they were asked."""

    def __init__(self) -> None:
        self.planned = 0
        self.songs: list[Song] = []
        self.fail_on_seed: int | None = None
        self.cancelled: list[int] = []

    async def plan(self, request: MusicRequest, on_progress: OnProgress = ignore) -> tuple[SongPlan, ...]:
        self.planned += 1
        on_progress(3, 3)
        metas = Metas(bpm=99, key_scale="C major", time_signature="4", duration=20.0)
        plan = SongPlan(
            caption="by the LM", lyrics=request.lyrics, language="en", metas=metas, codes=(1,) * 100, lm_model="lm"
        )
        return (plan,) * request.songs

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
        assert song.plan.metas.duration is not None
        return Latents(np.full((frames_of(song.plan.metas.duration), 64), song.seed, np.float32), ("one remark",))

    async def decode(self, latents: Latents, audio_format: AudioFormat) -> Track:
        ref = f"{latents.values[0, 0]:.0f}.mp3"
        return Track(ref=ref, audio_format=audio_format, seconds=latents.seconds, size=1, sha256="")


@pytest.fixture
def fakes() -> StageFakes:
    return StageFakes()


async def make(fakes: StageFakes, asked: MusicRequest, has_lm: bool = True) -> tuple[Made, list[Progress]]:
    seen: list[Progress] = []
    made = await make_music(asked, Stages(fakes if has_lm else None, fakes, fakes), seen.append)
    return made, seen


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


async def test_the_lm_takes_no_part_in_covers(fakes: StageFakes) -> None:
    await make(fakes, request(task_type="cover", src_audio="a.wav", thinking=True))
    assert fakes.planned == 0


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
