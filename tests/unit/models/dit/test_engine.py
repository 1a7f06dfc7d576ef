"""Real engines on tiny checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.batching import BatchLimits
from models.dit.engine import DitEngine
from models.errors import InvalidRequest
from tests.unit.models.dit.songs import distance, song, values

CPU = torch.device("cpu")
CODES = tuple(range(0, 64_000, 1000))


@pytest.fixture(scope="module")
def turbo(tiny: Path) -> Iterator[DitEngine]:
    yield from running(DitEngine(tiny, "acestep-v15-turbo", BatchLimits(), CPU, packs_rows=True))


@pytest.fixture(scope="module")
def base(tiny: Path) -> Iterator[DitEngine]:
    yield from running(DitEngine(tiny, "acestep-v15-base", BatchLimits(songs=16), CPU, packs_rows=True))


def running(engine: DitEngine) -> Iterator[DitEngine]:
    yield engine
    engine.close()


async def test_a_seed_is_a_song_to_the_last_bit(turbo: DitEngine) -> None:
    first, again = await values(turbo, song(seed=5)), await values(turbo, song(seed=5))

    assert first.shape == (250, 64)
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert distance(await values(turbo, song(seed=6)), first) > 0.1


async def test_a_song_among_seven_others_is_the_song_alone(turbo: DitEngine) -> None:
    asked = song(seconds=12.3, seed=3)
    others = [song(seconds=10.0 + 1.7 * number, seed=number, inference_steps=3 + number) for number in range(7)]
    alone = await values(turbo, asked)

    among, *_ = await asyncio.gather(values(turbo, asked), *(values(turbo, other) for other in others))

    assert distance(among, alone) <= 1e-5


async def test_guided_songs_of_every_method_share_a_batch_and_stay_themselves(base: DitEngine) -> None:
    songs = [
        song(inference_steps=4),
        song(11.0, 2, inference_steps=3, use_adg=True, guidance_scale=4.0),
        song(12.0, 3, inference_steps=5, infer_method="sde", cfg_interval_end=0.7),
        song(10.5, 4, inference_steps=3, infer_method="heun", guidance_scale=1.0),
        song(13.0, 5, inference_steps=4, plan={"codes": CODES}, audio_cover_strength=0.5),
    ]
    alone = [await values(base, asked) for asked in songs]

    together = await asyncio.gather(*(values(base, asked) for asked in songs))

    assert max(distance(one, other) for one, other in zip(together, alone, strict=True)) <= 1e-5


async def test_without_packing_neighbours_do_not_change_a_bit(tiny: Path) -> None:
    engine = DitEngine(tiny, "acestep-v15-xl-turbo", BatchLimits(), CPU, packs_rows=False)
    alone = await values(engine, song(inference_steps=2))

    among, _ = await asyncio.gather(
        values(engine, song(inference_steps=2)), values(engine, song(11.0, 9, inference_steps=3))
    )

    engine.close()
    assert np.array_equal(among, alone)


async def test_words_codes_and_how_long_they_hold_change_a_song(turbo: DitEngine) -> None:
    plain = await values(turbo, song())

    coded = await values(turbo, song(plan={"codes": CODES}))
    let_go = await values(turbo, song(plan={"codes": CODES}, audio_cover_strength=0.5))
    instrumental = await values(turbo, song(plan={"lyrics": ""}))

    seen = [plain, coded, let_go, instrumental]
    assert min(distance(one, other) for one in seen for other in seen if one is not other) > 1e-4


async def test_what_was_cut_off_or_not_applied_is_remarked_on(turbo: DitEngine) -> None:
    long = song(plan={"caption": "piano " * 300}, guidance_scale=3.0, audio_cover_strength=0.5, inference_steps=1)

    remarks = (await turbo.denoise(long)).remarks

    assert [remark.split(":")[0] for remark in remarks] == [
        "guidance_scale",
        "caption and metadata",
        "audio_cover_strength",
    ]


async def test_progress_arrives_in_the_callers_own_thread(turbo: DitEngine) -> None:
    told: list[tuple[int, int]] = []

    await values(turbo, song(inference_steps=3), lambda done, planned: told.append((done, planned)))
    await asyncio.sleep(0)

    assert told == [(1, 3), (2, 3), (3, 3)]


async def test_a_cancelled_song_leaves_and_the_next_one_is_made(turbo: DitEngine) -> None:
    started = asyncio.Event()
    doomed = asyncio.create_task(values(turbo, song(60.0, inference_steps=20), lambda done, planned: started.set()))
    await started.wait()

    doomed.cancel()

    with pytest.raises(asyncio.CancelledError):
        await doomed
    await values(turbo, song(inference_steps=1))
    assert turbo.health().songs <= 1


def test_a_caller_whose_event_loop_has_ended_does_no_harm(turbo: DitEngine) -> None:
    async def ask_and_leave() -> None:
        asyncio.get_running_loop().create_task(values(turbo, song(inference_steps=20)))
        await asyncio.sleep(0.01)

    asyncio.run(ask_and_leave())

    assert asyncio.run(values(turbo, song(inference_steps=1))).shape == (250, 64)
    turbo.check_health()


async def test_what_the_engine_cannot_make_is_refused(turbo: DitEngine) -> None:
    with pytest.raises(InvalidRequest, match="inference_steps 99"):
        await turbo.denoise(song(inference_steps=99))


def test_warming_up_needs_no_event_loop(turbo: DitEngine) -> None:
    turbo.warm_up()
    turbo.check_health()
