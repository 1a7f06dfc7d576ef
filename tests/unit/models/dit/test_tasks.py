"""Every task over real engines on tiny checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.batching import BatchLimits
from models.dit.engine import DitEngine
from models.errors import InvalidRequest, TooLong
from models.music import Latents, Song, Source, Task
from tests.unit.models.dit.songs import distance, edited, noise, song, values

STEPS: dict[str, Any] = {"inference_steps": 3}
WINDOW: dict[str, Any] = {"repainting_start": 1.0, "repainting_end": 2.0}
SOURCE = noise(60, 0)


@pytest.fixture(scope="module")
def base(tiny: Path) -> Iterator[DitEngine]:
    yield from running(DitEngine(tiny, "acestep-v15-base", BatchLimits(), torch.device("cpu")))


@pytest.fixture(scope="module")
def turbo(tiny: Path) -> Iterator[DitEngine]:
    yield from running(DitEngine(tiny, "acestep-v15-turbo", BatchLimits(), torch.device("cpu")))


def running(engine: DitEngine) -> Iterator[DitEngine]:
    yield engine
    engine.close()


async def test_every_task_makes_another_song_of_the_same_source(base: DitEngine) -> None:
    songs = [edited(task, **STEPS) for task in Task if task is not Task.TEXT2MUSIC]

    made = [await values(base, asked) for asked in songs]

    assert {one.shape for one in made} == {(60, 64)}
    assert min(distance(one, other) for one in made for other in made if one is not other) > 1e-3


@pytest.mark.parametrize(
    ("task", "given", "changed"),
    [
        ("extract", {}, {"track_name": "drums"}),
        ("lego", {}, {"track_name": "drums"}),
        ("lego", {}, WINDOW),
        ("complete", {}, {"track_classes": ("drums", "bass")}),
        ("complete", {}, {"chunk_mask_mode": "auto"}),
        ("cover", {}, {"cover_noise_strength": 0.4}),
        ("cover", {}, {"audio_cover_strength": 0.5}),
        ("cover", {}, {"instruction": "Play it backwards"}),
        ("repaint", {}, WINDOW),
        ("repaint", WINDOW, {"repaint_mode": "conservative"}),
        ("repaint", WINDOW, {"repaint_mode": "aggressive"}),
        ("repaint", WINDOW, {"repaint_strength": 0.2}),
        ("repaint", WINDOW, {"chunk_mask_mode": "auto"}),
        ("repaint", WINDOW, {"chunk_mask_mode": "auto_legacy"}),
    ],
)
async def test_every_field_of_a_task_is_heard(
    base: DitEngine, task: str, given: dict[str, Any], changed: dict[str, Any]
) -> None:
    plain, other = edited(task, **STEPS, **given), edited(task, **STEPS, **{**given, **changed})

    assert distance(await values(base, other), await values(base, plain)) > 1e-4


async def test_kept_strictly_a_source_is_itself_outside_the_window(turbo: DitEngine) -> None:
    asked = edited("repaint", 100, repainting_start=2.0, repainting_end=2.4, repaint_mode="conservative")

    made = await values(turbo, asked)

    source = noise(100, 0)
    assert np.array_equal(made[: 50 - 25], source[: 50 - 25])
    assert np.array_equal(made[60 + 25 :], source[60 + 25 :])
    assert distance(made[50:60], source[50:60]) > 0.1
    ramp = [distance(made[frame : frame + 1], source[frame : frame + 1]) for frame in range(25, 50)]
    assert 0 < np.mean(ramp[:5]) < np.mean(ramp[-5:])


async def test_a_song_grows_at_both_ends(turbo: DitEngine) -> None:
    asked = edited("repaint", 60, repainting_start=-1.0, repainting_end=4.0)

    assert (await values(turbo, asked)).shape == (25 + 60 + 40, 64)


@pytest.mark.parametrize("mode", ["explicit", "auto_legacy"])
async def test_a_source_let_go_of_at_once_is_no_source(turbo: DitEngine, mode: str) -> None:
    plain = await values(turbo, song(10.0))

    for task in ("cover", "repaint"):
        asked = edited(task, 250, audio_cover_strength=0.0, chunk_mask_mode=mode)
        assert distance(await values(turbo, asked), plain) < 1e-5


async def test_codes_given_for_a_cover_are_its_source(turbo: DitEngine) -> None:
    codes = tuple(range(0, 64_000, 1280))
    planned = song(plan={"codes": codes})
    asked = song(plan={"codes": codes}, task_type="cover", audio_codes=(codes,))

    assert np.array_equal(await values(turbo, asked), await values(turbo, planned))


async def test_the_source_is_where_a_song_may_begin(turbo: DitEngine) -> None:
    near, far = [edited("cover", cover_noise_strength=strength) for strength in (1.0, 0.1)]

    made = [await values(turbo, asked) for asked in (near, far)]

    assert [(await turbo.denoise(asked)).remarks for asked in (near, far)] == [(), ()]
    assert distance(made[0], SOURCE) < distance(made[1], SOURCE)


@pytest.mark.parametrize("asked", [song(**STEPS), edited("cover", **STEPS)])
async def test_a_song_may_sound_like_a_reference(turbo: DitEngine, asked: Song) -> None:
    def like(seed: int) -> Song:
        return Song(asked.request, 0, asked.plan, asked.source, Latents(noise(750, seed)))

    plain, one, other = [await values(turbo, each) for each in (asked, like(1), like(2))]

    assert min(distance(plain, one), distance(plain, other), distance(one, other)) > 1e-5


async def test_a_task_of_another_variant_is_refused(turbo: DitEngine) -> None:
    with pytest.raises(InvalidRequest, match="'extract' is not one of acestep-v15-turbo's"):
        await turbo.denoise(edited("extract"))


async def test_a_source_longer_than_the_checkpoint_knows_silence_is_refused(turbo: DitEngine) -> None:
    with pytest.raises(TooLong, match=r"600\.04 s"):
        await turbo.denoise(song(source=Source(np.zeros((15_001, 64), np.float32), 1), task_type="cover"))


async def test_what_a_source_is_heard_as_is_what_a_cover_of_it_is_made_from(turbo: DitEngine) -> None:
    source = Source(noise(250, 3), 250 * 1920)
    codes = await turbo.codes(source)
    assert len(codes) == 50
    assert all(0 <= code <= 63_999 for code in codes)
    assert len(set(codes)) > 10

    given = song(plan={"codes": codes}, task_type="cover", audio_codes=(codes,))
    heard = dataclasses.replace(edited(Task.COVER), source=source, plan=given.plan.model_copy(update={"codes": ()}))
    # the source itself is where a cover starts from only where it is told to
    assert distance(await values(turbo, heard), await values(turbo, given)) < 1e-5


async def test_a_started_code_counts_and_the_rest_is_silence(turbo: DitEngine) -> None:
    assert len(await turbo.codes(Source(noise(251, 3), 251 * 1920))) == 51
    assert len(await turbo.codes(Source(noise(1, 3), 1920))) == 1
